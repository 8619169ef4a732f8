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


def _table(synth):
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
    rows = [_entry(name, by_name.get(_plain(name))) for name in names]
    # The framework takes its first parameter for a MIDI controller.
    bypass = '    {"Bypass", kBypass, 2, 0},'
    rows = [bypass, *rows]
    return "\n".join(["static const Entry PARAMETERS[] = {", *rows, "};", ""])


# Name of the plug-in, its identity, and whether its state is the process's.
VARIANTS = {
    "fixture": ("Proxy Fixture", "'P','x','F','1'", False),
    "diva": ("Diva", "'P','x','F','2'", True),
    "talnm": ("TAL-NoiseMaker", "'P','x','F','3'", False),
}


def plugin(variant="fixture"):
    """Path of the test instrument, built when it is not there yet.

    Args:
      variant: "fixture", or "diva" or "talnm" for an instrument with exactly
        the parameters of that plug-in.

    Returns:
      The .vst3 folder. Where it cannot be built the test is skipped, or,
      under continuous integration (the variable CI is set), fails.
    """
    if sys.platform != "linux":
        pytest.skip("the test plug-in is built for Linux only")
    name, identity, shared_state = VARIANTS[variant]
    options = [f'-DFIXTURE_NAME="{name}"', f"-DFIXTURE_ID={identity}"]
    if shared_state:
        options.append("-DGLOBAL_STATE")
    table = None if variant == "fixture" else _table(variant)
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
