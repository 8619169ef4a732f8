"""Binding by name, and first parameter tables, without a plug-in."""

import json

import numpy as np
import pytest

from datasets.engines.vst3 import binding as vst3_binding
from datasets.engines.vst3 import scaffold as vst3_scaffold
from proxy import space as sp
from proxy import spaces
from tests.plugins import OLD_TALNM
from tests.shared import shared


def bind(space, names):
    return vst3_binding.bind(space, names)


def by_name(space, names):
    """Which plug-in name each parameter of a space was bound to."""
    positions = bind(space, names).positions
    return {space.parameters[i].name: names[p] for i, p in positions.items()}


def test_names_are_compared_without_case_and_punctuation():
    space = sp.space(
        "s",
        [
            sp.numerical("osc_1:fm", 0.0),
            sp.numerical("p_mode_sens.", 0.0),
            sp.binary("delay_x2_l", 0.0),
        ],
    )
    names = ["P MODE SENS", "Osc 1 / FM", "Delay x2 L"]
    assert by_name(space, names) == {
        "osc_1:fm": "Osc 1 / FM",
        "p_mode_sens.": "P MODE SENS",
        "delay_x2_l": "Delay x2 L",
    }


@pytest.mark.parametrize(
    ("synth", "plugin", "renamed"),
    [
        ("dexed", "Dexed 1.0.1", {"middle_c": "TRANSPOSE"}),
        ("talnm", "TAL-NoiseMaker (open-source port)", {}),
    ],
)
def test_real_plugins_bind_whatever_their_order(synth, plugin, renamed):
    listed = json.loads(
        shared("synths/plugin_parameter_names.json").read_text()
    )
    space, names = spaces.get(synth), listed[plugin]
    midi = [f"MIDI CC {c}|{n}" for c in range(16) for n in range(128)]
    names = [*midi, *names]
    for order in (names, names[::-1]):
        binding = bind(space, order)
        assert not binding.missing
        binding.check(space, plugin)
        found = by_name(space, order)
        for parameter in space.parameters:
            wanted = renamed.get(parameter.name, parameter.name)
            assert vst3_binding.plain(found[parameter.name]) == (
                vst3_binding.plain(wanted)
            )
        extra = {order[place] for place in binding.extra}
        assert not {"Bypass", "Panic", "MIDI LEARN", midi[0]} & extra


def test_dexed_gained_a_parameter_that_belongs_to_no_preset():
    listed = json.loads(
        shared("synths/plugin_parameter_names.json").read_text()
    )
    names = listed["Dexed 1.0.1"]
    extra = bind(spaces.get("dexed"), names).extra
    assert [names[place] for place in extra] == ["MonoMode"]


def test_modules_tell_equal_names_apart():
    """As Diva shows them: with the module, or each name once per module."""
    space = sp.space(
        "s",
        [
            sp.numerical("main:output", 0.0),
            sp.numerical("env1:attack", 0.0),
            sp.numerical("env2:attack", 0.0),
            sp.numerical("env1:decay", 0.0),
            sp.numerical("env2:decay", 0.0),
        ],
    )
    qualified = ["Output", "ENV1: Attack", "ENV1: Decay", "ENV2: Attack"]
    qualified.append("ENV2: Decay")
    assert by_name(space, qualified)["env2:attack"] == "ENV2: Attack"
    bare = ["Attack", "Output", "Decay", "Attack", "Decay"]
    assert bind(space, bare).positions == {0: 1, 1: 0, 2: 3, 3: 2, 4: 4}
    # Three of one name for two of ours: which ones is not known.
    binding = bind(space, [*bare, "Attack"])
    assert set(binding.missing) == {"env1:attack", "env2:attack"}
    with pytest.raises(vst3_binding.BindingError, match=r"env1:attack \(near"):
        binding.check(space, "Diva")


@pytest.mark.parametrize("reverse", [False, True])
def test_names_are_compared_without_separators(reverse):
    """As the source of the open-source TAL-NoiseMaker names them."""
    space = spaces.get("talnm")
    wanted = {
        p.name: OLD_TALNM.get(p.name, p.name.replace("_", ""))
        for p in space.parameters
    }
    names = ["unused", "", *wanted.values(), "unused"]
    binding = bind(space, names[::-1] if reverse else names)
    assert binding.missing == ("envelope_reset",) and not binding.extra
    binding.check(space, "TAL-NoiseMaker")
    found = by_name(space, names[::-1] if reverse else names)
    del wanted["envelope_reset"]
    assert found == wanted


def test_what_fits_twice_is_not_matched():
    space = sp.space(
        "s", [sp.numerical("osc_1_1", 0.0), sp.numerical("osc_11", 0.0)]
    )
    # Which one of ours, and which one of the plug-in's.
    assert set(bind(space, ["osc11"]).missing) == {"osc_1_1", "osc_11"}
    one = sp.space("s", [sp.numerical("osc_1_1", 0.0)])
    binding = bind(one, ["Osc 11", "OSC11"])
    assert binding.missing == ("osc_1_1",)
    with pytest.raises(vst3_binding.BindingError, match=r"near: .*osc11|OSC11"):
        binding.check(one, "P")
    # What is the same with its separators comes first.
    assert by_name(space, ["osc 11", "osc 1 1"]) == {
        "osc_11": "osc 11",
        "osc_1_1": "osc 1 1",
    }
    assert by_name(space, ["osc 11", "osc11"])["osc_11"] == "osc 11"
    # A parameter's own name, though another was once its own.
    talnm = spaces.get("talnm")
    names = [p.name for p in talnm.parameters]
    assert (
        by_name(talnm, ["Cutoff", *names])["filter_cutoff"] == "filter_cutoff"
    )
    both = [n for n in names if n != "filter_cutoff"]
    missing = bind(talnm, [*both, "filtercutoff", "cutoff"]).missing
    assert missing == ("filter_cutoff",)


def test_equal_names_are_numbered():
    assert vst3_binding.qualified(["Level", "Pan", "LEVEL."]) == [
        "level#1",
        "pan",
        "level#2",
    ]
    space = sp.space(
        "s", [sp.numerical("level#1", 0.0), sp.numerical("level#2", 0.0)]
    )
    assert bind(space, ["Pan", "Level", "LEVEL."]).positions == {0: 1, 1: 2}


def test_two_parameters_never_share_one():
    space = sp.space("s", [sp.numerical("a b", 0.0), sp.numerical("a_b", 0.0)])
    binding = bind(space, ["A-B"])
    assert binding.missing == ("a_b",)


def test_what_is_missing_is_listed_with_near_names():
    space = spaces.get("talnm")
    names = [p.name for p in space.parameters if p.name != "filter_cutoff"]
    names += ["Filter Cut-Off 1", "Something Else"]
    binding = bind(space, names)
    assert binding.missing == ("filter_cutoff",)
    with pytest.raises(vst3_binding.BindingError) as error:
        binding.check(space, "TAL")
    message = str(error.value)
    assert "TAL lacks 1 of the 59" in message
    assert "filter_cutoff (near: Filter Cut-Off 1" in message
    # One that presets do not vary may be absent.
    unused = [p.name for p in space.parameters if p.name != "voices"]
    bind(space, unused).check(space, "TAL")


# Scaffolding -----------------------------------------------------------------


def texts(function, points=1001):
    return [function(i / (points - 1)) for i in range(points)]


@pytest.mark.parametrize(
    ("function", "kind", "count"),
    [
        (lambda x: f"{x:.2f}", "numerical", None),
        (lambda x: f"{20 * 1000**x:.0f} Hz", "numerical", None),
        (lambda x: "On" if x >= 0.5 else "Off", "binary", 2),
        (lambda x: "1" if x > 0.5 else "0", "binary", 2),
        (lambda x: "Up" if x >= 0.5 else "Down", "categorical", 2),
        (lambda x: "ABCDE"[min(int(5 * x), 4)], "categorical", 5),
        (lambda x: f"Algorithm {round(31 * x) + 1}", "categorical", 32),
        (lambda x: f"{round(24 * x) - 12} st", "numerical", 25),
    ],
)
def test_kinds_are_read_from_value_texts(function, kind, count):
    found = vst3_scaffold.guess("x", 0.25, texts(function))
    assert (found.kind, found.default, found.used) == (kind, 0.25, True)
    assert count == (None if found.values is None else len(found.values))
    if found.values is not None:
        assert found.regular
        shown = [texts(function)[round(1000 * v)] for v in found.values]
        assert shown == list(found.texts)


def test_uneven_choices_keep_their_own_values():
    def function(x):
        return "Off" if x < 0.1 else "Slow" if x < 0.3 else "Fast"

    found = vst3_scaffold.guess("x", 0.0, texts(function))
    assert not found.regular
    values = found.values or ()
    assert [function(v) for v in values] == ["Off", "Slow", "Fast"]


def test_what_never_changes_is_held():
    found = vst3_scaffold.guess("x", 0.0, ["-"] * 1001)
    assert (found.kind, found.used) == ("numerical", False)


def plugin_of(space):
    """What `vst3.examine` would say of a plug-in with a space's parameters."""
    parameters = []
    for p in space.parameters:
        count = len(p.values or ()) + len(p.excluded_category_indices)

        def function(x, p=p, count=count):
            if p.values is None:
                return f"{x:.3f}"
            i = round(x * (count - 1))
            if p.kind == "binary":
                return ("Off", "On")[i]
            return str(i) if p.kind == "numerical" else f"Type {'AB'[i % 2]}{i}"

        parameters.append(
            {"name": p.name, "value": p.default, "texts": texts(function)}
        )
    return {"name": "P", "version": "1", "parameters": parameters}


@pytest.mark.parametrize("synth", ["dexed", "diva", "talnm"])
def test_scaffolds_of_known_synthesizers_are_those(synth):
    """The written module, run: kinds, cardinalities and defaults agree."""
    known = spaces.get(synth)
    held = [p.name for p in known.parameters if not p.used]
    scope = {}
    exec(vst3_scaffold.source("new", plugin_of(known), held), scope)
    space = scope["SPACE"]
    assert space.name == "new" and space.num_parameters == known.num_parameters
    for ours, theirs in zip(space.parameters, known.parameters, strict=True):
        assert vst3_binding.plain(ours.name) == vst3_binding.plain(theirs.name)
        assert ours.default == pytest.approx(theirs.default, abs=1e-6)
        if theirs.name == "transpose":  # four of five values, chosen by hand
            continue
        assert ours.kind == theirs.kind
        excluded = len(theirs.excluded_category_indices)
        wanted = theirs.values and len(theirs.values) + excluded
        assert (ours.values and len(ours.values)) == wanted
        if not theirs.used:
            assert not ours.used
    space.from_uniform(np.zeros((1, space.num_used), np.float32))


def test_scaffold_says_what_it_cannot_do():
    info = plugin_of(spaces.get("talnm"))
    with pytest.raises(ValueError, match="--name=A b"):
        vst3_scaffold.source("A b", info)
    with pytest.raises(ValueError, match="has no parameter nonsense"):
        vst3_scaffold.source("a", info, ["Nonsense"])
    with pytest.raises(ValueError, match="no parameters to vary"):
        vst3_scaffold.source("a", {**info, "parameters": []})
