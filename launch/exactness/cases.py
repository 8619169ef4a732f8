"""Voices that the JAX engine of the DX7 and dexed-py both render."""

import dataclasses
from collections.abc import Iterator

import dexed as oracle
import numpy as np
import tabulate
import tqdm
from jaxtyping import Float, Int, UInt8

import proxy.spaces
from datasets.engines import dexed
from proxy.synths import dx7

_BATCH = 256
_RATES = (16_000, 32_000, 44_100, 48_000)
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Case:
    """Voices, and how each is played.

    Attributes:
      name: what the case is about.
      voices: VCED bytes and switches.
      note: MIDI note of each.
      velocity: MIDI velocity of each.
      hold: seconds that each is held.
      duration: seconds of sound.
      sample_rate: in Hz.
    """

    name: str
    voices: UInt8[np.ndarray, "voices bytes"]
    note: Int[np.ndarray, " voices"]
    velocity: Int[np.ndarray, " voices"]
    hold: Float[np.ndarray, " voices"]
    duration: float
    sample_rate: int


def draw(
    name: str,
    voices: UInt8[np.ndarray, "voices bytes"],
    *,
    duration: float,
    sample_rate: int = 32_000,
    longest: float = 4.0,
) -> Case:
    """Draws a note (24 to 108), a velocity and a hold for each voice."""
    rng = np.random.default_rng(_SEED)
    count = len(voices)
    return Case(
        name,
        voices,
        rng.integers(24, 109, count),
        rng.integers(1, 128, count),
        rng.uniform(0.1, longest, count).astype(np.float32),
        duration,
        sample_rate,
    )


def uniform(count: int, seed: int = _SEED) -> UInt8[np.ndarray, "voices bytes"]:
    """Voices of uniform presets."""
    space = proxy.spaces.get("dexed")
    rng = np.random.default_rng(seed)
    numbers = rng.random((count, space.num_used)).astype(np.float32)
    return dexed.to_voices(
        np.asarray(space.to_plugin(space.from_uniform(numbers))), space
    )


def varied(count: int, seed: int = _SEED) -> UInt8[np.ndarray, "voices bytes"]:
    """Loud voices in which every byte varies, and every rare case is there.

    All pairs of algorithm and feedback, LFO waves with and without key sync,
    fixed frequencies, scaling, tremolo and vibrato, transposition, operators
    switched off.
    """
    rng = np.random.default_rng(seed)
    voices = rng.integers(0, dexed.largest() + 1, (count, dexed.VOICE_BYTES))
    rows = np.arange(count)
    operators = voices[:, :126].reshape(count, 6, 21)
    operators[..., 4:7] = rng.integers(60, 100, operators[..., 4:7].shape)
    operators[..., 16] = rng.integers(70, 100, operators[..., 16].shape)
    # Fixed in every fourth operator, not in every other.
    operators[..., 17] = rng.random(operators[..., 17].shape) < 0.25
    voices[:, 134] = rows % 32
    voices[:, 135] = rows // 32 % 8
    voices[:, 142] = rows % 6
    voices[:, 141] = rows // 6 % 2
    # Half of them all on; operators that are off leave the others' buses.
    switches = rng.integers(0, 64, count)
    voices[:, dexed.SWITCHES_BYTE] = np.where(rows % 2, switches, 63)
    return voices.astype(np.uint8)


def cases(
    bank: UInt8[np.ndarray, "voices bytes"], uniforms: int = 4096
) -> Iterator[Case]:
    """All that is compared."""
    if len(bank):
        yield draw("bank", bank, duration=1.5)
        yield draw("bank, 5 s", bank[:: max(1, len(bank) // 512)], duration=5.0)
    yield draw("uniform", uniform(uniforms), duration=1.5)
    yield draw("uniform, 5 s", uniform(min(512, uniforms), 1), duration=5.0)
    for rate in _RATES:
        yield draw(
            f"every byte varied, {rate / 1000:g} kHz",
            varied(1024, rate),
            duration=1.0,
            sample_rate=rate,
            longest=0.8,
        )
    extreme = varied(256, 1)
    extreme[:, 144] = 48
    extreme[:, 130:134] = 99
    yield draw("pitch as high as it gets", extreme, duration=0.5, longest=0.4)


def played(case: Case, rows: slice) -> Float[np.ndarray, "voices samples"]:
    """What dexed-py makes of some of a case's voices."""
    synth = oracle._RawDexedSynth(float(case.sample_rate), 0)
    samples = round(case.duration * case.sample_rate)
    sounds = []
    for i in range(len(case.voices))[rows]:
        synth.load_sysex(dexed._silence_switched_off(case.voices[i]))
        sound = synth.render(
            int(case.note[i]),
            int(case.velocity[i]),
            float(case.hold[i]),
            # Half a sample more, so that the engine's truncation is ours.
            (samples + 0.5) / case.sample_rate,
        )
        sounds.append(sound[:samples])
    return np.stack(sounds)


def rendered(
    case: Case, rows: slice, batch: int = _BATCH
) -> Float[np.ndarray, "voices samples"]:
    """What the JAX engine makes of them, in a batch that is filled up."""
    index = np.arange(len(case.voices))[rows]
    filled = np.pad(index, (0, batch - len(index)), mode="edge")
    sound = dx7.render(
        case.voices[filled],
        note=case.note[filled],
        velocity=case.velocity[filled],
        hold=case.hold[filled],
        duration=case.duration,
        sample_rate=case.sample_rate,
    )
    return np.asarray(sound)[: len(index)]


def compare(
    case: Case, batch: int = _BATCH
) -> tuple[Int[np.ndarray, " voices"], int]:
    """Compares a case's voices.

    Args:
      case: what is compared.
      batch: voices that are rendered at once.

    Returns:
      Each voice's first sample that differs, -1 for none; and how many of
      the voices are silent.
    """
    first, silent = [], 0
    starts = range(0, len(case.voices), batch)
    for start in tqdm.tqdm(starts, desc=case.name, leave=False):
        rows = slice(start, start + batch)
        theirs, ours = played(case, rows), rendered(case, rows, batch)
        differs = theirs != ours
        first.append(np.where(differs.any(1), differs.argmax(1), -1))
        silent += int(np.sum(~theirs.any(1)))
    return np.concatenate(first), silent


def run(bank: UInt8[np.ndarray, "voices bytes"]) -> str:
    """Compares all cases; returns a table, and a line for every difference."""
    rows, notes = [], []
    for case in cases(bank):
        first, silent = compare(case)
        wrong = np.flatnonzero(first >= 0)
        rows.append(
            (
                case.name,
                len(first),
                len(first) - len(wrong),
                silent,
                100 * (1 - len(wrong) / len(first)),
            )
        )
        notes += [
            f"{case.name}: voice {i} (algorithm {case.voices[i, 134] + 1}, "
            f"feedback {case.voices[i, 135]}) differs from sample {first[i]}"
            for i in wrong[:20]
        ]
    headers = ("case", "voices", "equal", "silent", "equal, %")
    table = tabulate.tabulate(
        rows, headers, intfmt=",", floatfmt=".3f", tablefmt="simple"
    )
    return "\n".join([table, *notes])
