"""Builds the test instrument, once for each of its sources and tables."""

import fcntl
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import pytest

from tests.shared import shared

FOLDER = pathlib.Path(__file__).parent / "vst3_fixture"


def _plain(name):
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _entry(name, fact):
    """One row of a parameter table in C++; see table.h."""
    quoted = json.dumps(name)
    if fact is None:
        return f"    {{{quoted}, kContinuous, 0, 0}},"
    values = fact.get("values")
    kind, count = "kContinuous", 0
    if fact["kind"] == "binary":
        kind, count = "kSwitch", 2
    elif values:
        count = len(values) + len(fact.get("excluded_category_indices", ()))
        kind = "kChoice" if fact["kind"] == "categorical" else "kStepped"
        if kind == "kStepped" and values[1] != round(1 / (count - 1), 3):
            kind, count = "kContinuous", 0
    return f"    {{{quoted}, {kind}, {count}, {fact['default']}}},"


# How the source of the open-source TAL-NoiseMaker calls parameters, where that
# is not our name without separators.
OLD_TALNM = {
    "master_volume": "volume",
    "filter_cutoff": "cutoff",
    "filter_resonance": "resonance",
    "filter_keyfollow": "keyfollow",
    "portamento_amount": "portamento",
    "velocity_filter": "velocitycutoff",
    "master_high_pass": "highpass",
    "master_detune": "detune",
    "delay_x2_l": "delayfactorl",
    "delay_x2_r": "delayfactorr",
    "envelope_destination": "envelopeeditordest1",
    "envelope_speed": "envelopeeditorspeed",
    "envelope_amount": "envelopeeditoramount",
    "envelope_one_shot_mode": "envelopeoneshot",
    "envelope_reset": "",  # it has no name there
}


def _table(synth, old_names=False):
    """The parameters of a real synthesizer, under its plug-in's names."""
    facts = json.loads(shared(f"synths/{synth}.json").read_text())["parameters"]
    if synth == "talnm":
        listed = json.loads(
            shared("synths/plugin_parameter_names.json").read_text()
        )
        names = listed["TAL-NoiseMaker (open-source port)"]
    else:
        names = [fact["name"] for fact in facts]
    by_name = {_plain(fact["name"]): fact for fact in facts}
    rows = [
        _entry(
            OLD_TALNM.get(_plain(name), _plain(name).replace("_", ""))
            if old_names
            else name,
            by_name.get(_plain(name)),
        )
        for name in names
    ]
    # The framework takes its first parameter for a MIDI controller.
    bypass = '    {"Bypass", kBypass, 2, 0},'
    rows = [bypass, *rows]
    return "\n".join(["static const Entry PARAMETERS[] = {", *rows, "};", ""])


# Name of the plug-in, its identity, and what else it is built with.
VARIANTS = {
    "fixture": ("Proxy Fixture", "'P','x','F','1'", []),
    "diva": ("Diva", "'P','x','F','2'", ["-DGLOBAL_STATE"]),
    "talnm": ("TAL-NoiseMaker", "'P','x','F','3'", []),
    "old_talnm": ("TAL-NoiseMaker", "'P','x','F','4'", []),
    "worn": (
        "Proxy Fixture",
        "'P','x','F','5'",
        ["-DCURRENT_TEXTS", "-DDEAD_FROM=14", "-DEVENT_GRID=64"],
    ),
    "steady": (
        "Proxy Fixture",
        "'P','x','F','6'",
        ["-DSTEADY", "-DSETUP_MS=100"],
    ),
}


def plugin(variant="fixture"):
    """Path of the test instrument, built when it is not there yet.

    Args:
      variant: "fixture"; "diva", "talnm" or "old_talnm" for an instrument with
        exactly the parameters of that plug-in; "worn" for one that shows only
        its current value's text, ignores its last parameters, and lets
        events fall on multiples of 64 samples; "steady" for one that takes
        long to make and forgets what it played once that has died away.

    Returns:
      The .vst3 folder. Where it cannot be built the test is skipped, or,
      under continuous integration (the variable CI is set), fails.
    """
    if sys.platform != "linux":
        pytest.skip("the test plug-in is built for Linux only")
    name, identity, more = VARIANTS[variant]
    options = [f'-DFIXTURE_NAME="{name}"', f"-DFIXTURE_ID={identity}", *more]
    table = None
    if variant not in ("fixture", "worn", "steady"):
        table = _table(variant.removeprefix("old_"), variant == "old_talnm")
    digest = hashlib.sha256("\0".join([*options, table or ""]).encode())
    for file in sorted(FOLDER.iterdir()):
        digest.update(file.read_bytes())
    cache = pathlib.Path(tempfile.gettempdir()) / f"vst3-fixture-{os.getuid()}"
    target = cache / digest.hexdigest()[:16]
    target.mkdir(parents=True, exist_ok=True)
    bundle = target / f"{variant}.vst3"
    with open(target / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if bundle.exists():
            return bundle
        if table is not None:
            header = target / "parameters.h"
            header.write_text(table)
            options.append(f'-DPARAMETER_TABLE="{header}"')
        built = subprocess.run(
            [FOLDER / "build.sh", target, variant, *options],
            capture_output=True,
            text=True,
        )
    if built.returncode == 3:
        if os.environ.get("CI"):
            pytest.fail(built.stderr)
        pytest.skip(built.stderr.strip())
    assert built.returncode == 0, built.stderr
    return bundle
