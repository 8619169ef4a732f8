"""Which parameter of a plug-in is which parameter of a space: by name.

Never by position: a plug-in's next version inserts a parameter. Names are
compared without case, punctuation and what separates words, as long as that
leaves no choice; some were renamed by the plug-in's makers. Where a plug-in
shows one name several times, the space tells them apart by a module before it
("env1:attack"), or by a number behind it ("level#2"); the n-th of these is the
n-th the plug-in shows.
"""

import collections
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence

from proxy.space import ParameterSpace

# By space: our name, and what other versions of the plug-in call it.
RENAMED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "dexed": {"middle_c": ("transpose",)},
    # As the open-source version's own source (DISTRHO's ports) calls them.
    "talnm": {
        "master_volume": ("volume",),
        "filter_cutoff": ("cutoff",),
        "filter_resonance": ("resonance",),
        "filter_keyfollow": ("keyfollow",),
        "portamento_amount": ("portamento",),
        "velocity_filter": ("velocitycutoff",),
        "master_high_pass": ("highpass",),
        "master_detune": ("detune",),
        "envelope_destination": ("envelopeeditordest1",),
        "envelope_speed": ("envelopeeditorspeed",),
        "envelope_amount": ("envelopeeditoramount",),
        "envelope_one_shot_mode": ("envelopeoneshot",),
        "delay_x2_l": ("delayfactorl",),
        "delay_x2_r": ("delayfactorr",),
    },
}

# What is no part of a preset: the host's own switches, and one parameter for
# each MIDI controller, which many plug-ins add by the thousand.
_SKIPPED = re.compile(
    r"(midi_.*|(master_|plugin_|host_|soft_)?bypass|panic|all_notes_off"
    r"|(current_|preset_|midi_)?program(_change|_number)?|p\d\d\d|reserved.*"
    r"|unused\d*|)"
)


class BindingError(ValueError):
    """Used parameters of a space that a plug-in does not have."""


def plain(name: str) -> str:
    """A name without case and punctuation: "Osc 1: FM" is "osc_1_fm"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def joined(name: str) -> str:
    """A name without separators, too: "Osc 1: FM" is "osc1fm"."""
    return plain(name).replace("_", "")


def skipped(name: str) -> bool:
    """Whether a plug-in's parameter is no part of a preset."""
    return _SKIPPED.fullmatch(plain(name)) is not None


def _bare(name: str) -> str:
    """A space's name without what qualifies it."""
    return plain(re.sub(r"#\d+$", "", name).rpartition(":")[2])


def qualified(names: Sequence[str]) -> list[str]:
    """A plug-in's names made fit for a space: plain, and no two alike.

    Returns:
      One for each: those that occur more than once are numbered "level#1",
      "level#2" in the plug-in's order.
    """
    short = [plain(name) for name in names]
    total, seen = collections.Counter(short), collections.Counter[str]()
    out = []
    for name in short:
        seen[name] += 1
        out.append(f"{name}#{seen[name]}" if total[name] > 1 else name)
    return out


@dataclasses.dataclass(frozen=True)
class Binding:
    """Which plug-in parameter each parameter of a space is.

    Attributes:
      positions: place in the space's table -> place in the plug-in's list.
      missing: parameters of the space without a match, used or not.
      extra: places in the plug-in's list that nothing is bound to, without
        those that are no part of a preset.
      free: the plug-in's names of these by what they are without case and
        punctuation.
    """

    positions: Mapping[int, int]
    missing: tuple[str, ...]
    extra: tuple[int, ...]
    free: Mapping[str, str]

    def near(self, name: str) -> str:
        """What to say of the plug-in's names that are like a missing one."""
        close = difflib.get_close_matches
        found = close(plain(name), self.free, n=3)
        found += close(_bare(name), self.free, n=2)
        named = ", ".join(self.free[match] for match in dict.fromkeys(found))
        return named or "nothing like it"

    def check(self, space: ParameterSpace, plugin: str) -> None:
        """Checks that every used parameter has a match.

        Raises:
          BindingError: listing those that have none, with near names.
        """
        used = {p.name for p in space.used}
        lost = [name for name in self.missing if name in used]
        if not lost:
            return
        lines = []
        for name in lost[:8]:
            lines.append(f"{name} (near: {self.near(name)})")
        more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
        raise BindingError(
            f"{plugin} lacks {len(lost)} of the {space.num_used} parameters "
            f"that presets of {space.name} vary: {'; '.join(lines)}{more}. "
            "Is it the right plug-in and version? `python -m launch.plugin "
            "inspect PATH` lists what it has"
        )


def bind(space: ParameterSpace, names: Sequence[str]) -> Binding:
    """Finds the parameters of a space among those of a plug-in.

    Args:
      space: space of the synthesizer.
      names: every parameter of the plug-in, in its order.

    Returns:
      What was found, and what was not; `Binding.check` refuses the latter.
    """
    places: dict[str, list[int]] = collections.defaultdict(list)
    for i, name in enumerate(names):
        if not skipped(name):
            places[plain(name)].append(i)
    bare = collections.defaultdict(list)
    for row, parameter in enumerate(space.parameters):
        bare[_bare(parameter.name)].append(row)

    positions: dict[int, int] = {}
    taken: set[int] = set()

    def take(row: int, place: int) -> None:
        if place not in taken:
            positions[row] = place
            taken.add(place)

    for row, parameter in enumerate(space.parameters):
        found = places.get(plain(parameter.name), [])
        if len(found) == 1:
            take(row, found[0])
    # A name shown several times: only if the space knows it as often.
    for name, rows in bare.items():
        found = places.get(name, [])
        open_rows = [row for row in rows if row not in positions]
        if len(open_rows) == len(rows) == len(found):
            for row, place in zip(rows, found, strict=True):
                take(row, place)
    for row, place in _alike(space, names, places, positions).items():
        take(row, place)
    free = [p for ps in places.values() for p in ps if p not in taken]
    missing = [
        p.name for i, p in enumerate(space.parameters) if i not in positions
    ]
    free = sorted(free)
    texts = {plain(names[place]): names[place] for place in free}
    return Binding(positions, tuple(missing), tuple(free), texts)


def _alike(
    space: ParameterSpace,
    names: Sequence[str],
    places: Mapping[str, Sequence[int]],
    positions: Mapping[int, int],
) -> dict[int, int]:
    """Matches of what is left, without separators or under another name.

    Only where one parameter and one name of the plug-in are left for each
    other: "osc11tune" may be either of osc_1_1_tune and osc_11_tune.
    """
    taken = set(positions.values())
    shown, wanted = (
        collections.defaultdict[str, list[int]](list) for _ in "12"
    )
    for place in (p for found in places.values() for p in found):
        if place not in taken:
            shown[joined(names[place])].append(place)
    renamed = RENAMED.get(space.name, {})
    for row, parameter in enumerate(space.parameters):
        if row not in positions:
            for name in (parameter.name, *renamed.get(parameter.name, ())):
                wanted[joined(name)].append(row)
    found = [
        (rows[0], shown[name][0])
        for name, rows in wanted.items()
        if len(rows) == 1 and len(shown[name]) == 1
    ]
    rows = collections.Counter(row for row, _ in found)
    return {row: place for row, place in found if rows[row] == 1}
