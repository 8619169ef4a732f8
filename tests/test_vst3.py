"""The VST3 host on a real plug-in: repeatable, and safe from what it does."""

import concurrent.futures
import dataclasses
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from datasets import drawing, engines, precompute, shards
from datasets.engines.vst3 import engine as vst3
from datasets.engines.vst3 import process
from datasets.engines.vst3 import scaffold as vst3_scaffold
from datasets.engines.vst3 import state as vst3_state
from datasets.presets import bank as handcrafted
from datasets.presets import reading
from datasets.spec import DataSpec, space_digest
from launch.runs import noise
from proxy import space as sp
from proxy import spaces
from tests.plugins import plugin
from tests.shared import shared

RATE = 32_000
# Short clips: a render takes a few hundredths of a second.
SHORT = engines.RenderSettings(sample_rate=RATE, hold=0.3, duration=0.5)
QUICK = process.Contract(timeout=2.0)


@pytest.fixture(scope="module")
def path():
    return str(plugin())


@pytest.fixture(scope="module")
def space(path):
    """The fixture's space as scaffolding gives it, its hazards held."""
    scope = {}
    info = vst3.examine(path)
    exec(vst3_scaffold.source("fixture", info, ["Hazard", "Fault"]), scope)
    return scope["SPACE"]


def change(space, **fields):
    """A space with another default for some parameters."""
    return dataclasses.replace(
        space,
        parameters=tuple(
            dataclasses.replace(p, default=fields.get(p.name, p.default))
            for p in space.parameters
        ),
    )


@pytest.fixture(scope="module")
def renderer(path, space):
    renderer = vst3.PluginRenderer(path, space, SHORT, QUICK)
    yield renderer
    renderer.close()


def draw(space, count, seed=0):
    uniform = np.random.default_rng(seed).random((count, space.num_used))
    return space.to_plugin(space.from_uniform(uniform.astype(np.float32)))


def at(space, values, **fields):
    """Plug-in values, some of them changed."""
    values = np.array(values)
    for name, value in fields.items():
        names = [p.name for p in space.parameters]
        values[..., names.index(name)] = value
    return values


@pytest.fixture(scope="module")
def values(space):
    return draw(space, 6)


@pytest.fixture(scope="module")
def sounds(renderer, values):
    return [renderer.render(row) for row in values]


# What a plug-in says of itself ----------------------------------------------


def test_scaffold_of_the_plugin_is_its_table(space):
    kinds = {p.name: (p.kind, p.values and len(p.values)) for p in space.used}
    assert kinds["waveform"] == ("categorical", 4)
    assert kinds["octave"] == ("numerical", 4)
    assert kinds["ring_mod"] == ("binary", 2)
    assert kinds["filter_cutoff"] == ("numerical", None)
    assert {"level#1", "level#2"} <= kinds.keys()
    held = {p.name for p in space.parameters if not p.used}
    assert held == {"master_volume", "hazard", "fault"}
    defaults = {p.name: p.default for p in space.parameters}
    assert defaults["level#2"] == pytest.approx(0.3, abs=1e-6)
    assert "panic" not in defaults and "bypass" not in defaults


def test_version_is_recorded(renderer):
    assert renderer.name == "fixture"
    assert renderer.version == "Proxy Fixture 1.2.3 (VST3, reset)"
    assert isinstance(renderer, engines.Renderer)


def test_names_without_separators_are_bound():
    renderer = vst3.PluginRenderer(
        str(plugin("old_talnm")), spaces.get("talnm"), SHORT, QUICK
    )
    first, second = draw(renderer.space, 2)
    assert not np.array_equal(renderer.render(first), renderer.render(second))
    renderer.close()


def test_texts_of_current_values_make_the_same_table(space):
    """Of a plug-in that shows no others; what it ignores cannot be told."""
    scope = {}
    info = vst3.examine(str(plugin("worn")))
    exec(vst3_scaffold.source("fixture", info, ["Hazard", "Fault"]), scope)
    for ours, theirs in zip(
        scope["SPACE"].parameters, space.parameters, strict=True
    ):
        if ours.name in DEAD or not theirs.used:
            assert not ours.used
        else:
            assert dataclasses.replace(ours, index=theirs.index) == theirs


# Used parameters of the fixture that "worn" ignores.
DEAD = ["lfo_rate", "lfo_depth", "noise", "echo"]


def test_parameters_that_change_nothing_are_found(space, renderer):
    assert renderer.dead() == []
    worn = vst3.PluginRenderer(str(plugin("worn")), space, SHORT, QUICK)
    assert worn.dead() == DEAD
    floor = noise.measure(worn, count=2)
    assert floor["dead"] == DEAD
    assert "Change nothing: lfo_rate, lfo_depth, noise" in noise.table(floor)
    with pytest.raises(ValueError, match=r"4 of the 17 .*lfo_rate.*host\.dead"):
        noise.check(floor, space.num_used, None)
    noise.check(floor, space.num_used, 0.24)
    worn.close()


def test_the_sound_tells_where_the_state_does_not(space, renderer, monkeypatch):
    """Of a plug-in whose state cannot be had, or changes by itself."""
    ask = process.Worker.ask

    def blind(self, method, *arguments, timeout):
        if method == "moved":
            raise engines.RenderError("no state")
        return ask(self, method, *arguments, timeout=timeout)

    monkeypatch.setattr(process.Worker, "ask", blind)
    assert renderer.dead() == []
    worn = vst3.PluginRenderer(str(plugin("worn")), space, SHORT, QUICK)
    assert worn.dead() == DEAD
    worn.close()


# Sound ----------------------------------------------------------------------


def pitch(audio):
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    return np.argmax(spectrum) * RATE / len(audio)


def test_clips_have_length_pitch_and_fade(path, space):
    settings = engines.RenderSettings(sample_rate=RATE, hold=1.0, duration=1.0)
    renderer = vst3.PluginRenderer(path, space, settings)
    start = {p.name: p.default for p in space.parameters}
    values = np.array(list(start.values()))
    plain = at(space, values, waveform=0, lfo_depth=0, noise=0, echo=0)
    for note, wanted in ((None, 261.6), (69, 440.0)):
        audio = renderer.render(plain, note)
        assert audio.shape == (RATE,) and audio.dtype == np.float32
        assert pitch(audio[RATE // 4 :]) == pytest.approx(wanted, abs=2)
        assert not audio[: RATE // 100].any()
        fading = audio[-3200:]
        assert audio[-1] == 0
        before = np.sqrt(np.mean(audio[-6400:-3200] ** 2))
        assert np.sqrt(np.mean(fading**2)) == pytest.approx(
            before / 3**0.5, rel=0.05
        )
    renderer.close()


def test_settings_reach_the_plugin(path, space, values):
    def render(**fields):
        settings = dataclasses.replace(SHORT, **fields)
        renderer = vst3.PluginRenderer(path, space, settings)
        audio = renderer.render(at(space, values[1], noise=0, echo=0))
        renderer.close()
        return audio

    loud, soft = render(), render(velocity=50)
    np.testing.assert_allclose(soft, loud / 2, atol=1e-5)
    # Halfway through a held note, and after it was let go.
    late = slice(int(0.25 * RATE), int(0.3 * RATE))
    assert np.abs(render(hold=0.1)[late]).max() < np.abs(loud[late]).max()


def test_a_note_starts_where_it_should(space):
    """Of a plug-in that lets events fall on multiples of 64 samples."""
    settings = dataclasses.replace(SHORT, sample_rate=44_100)
    base = np.array([p.default for p in space.parameters])
    sharp = at(space, base, waveform=1, noise=0, **{"amp_attack": 0})

    def onset(grid):
        driven = dataclasses.replace(QUICK, grid=grid)
        renderer = vst3.PluginRenderer(
            str(plugin("worn")), space, settings, driven
        )
        audio = renderer.render(sharp)
        renderer.close()
        # Data that were made without are other data.
        assert ("aligned" in renderer.version) == (grid > 1)
        assert len(audio) == settings.samples
        return int(np.flatnonzero(audio)[0])

    assert 448 <= onset(1) < 451
    assert onset(64) == onset(1) - 7
    with pytest.raises(ValueError, match=r"host\.grid=0"):
        process.Contract(grid=0)


# Repeatability --------------------------------------------------------------


def test_order_and_worker_change_nothing(path, space, values, sounds):
    """To the bit, though the instrument remembers what it played."""
    assert all(np.abs(sound).max() > 1e-3 for sound in sounds)
    other = vst3.PluginRenderer(path, space, SHORT, QUICK)
    for row, sound in reversed(list(zip(values, sounds, strict=True))):
        np.testing.assert_array_equal(other.render(row), sound)
    other.close()
    again = list(engines.render_many(other, values[::-1], workers=3))
    for ours, sound in zip(again[::-1], sounds, strict=True):
        np.testing.assert_array_equal(ours, sound)
    assert other.pool.started >= 4
    other.close()


def test_the_plugin_does_leak(path, values, renderer):
    """Without the contract its renders depend on those before: the test
    above would be empty otherwise.
    """
    code = f"""
        import numpy as np, re, pedalboard
        from pedalboard import _pedalboard
        _pedalboard.PARAMETER_NAME_REGEXES_TO_IGNORE.add(re.compile(""))
        plugin = pedalboard.VST3Plugin({path!r}, initialization_timeout=0.1)
        notes = [(bytes([144, 60, 100]), 0.01), (bytes([128, 60, 0]), 0.3)]
        def render(reset):
            return plugin.process(notes, 0.5, {RATE}, 2, 8192, reset)
        a, b = render(False), render(False)
        print(np.abs(a - b).max())
        import ctypes
        ctypes.CDLL(None).srand(0); a = render(True)
        ctypes.CDLL(None).srand(2); b = render(True)
        print(np.abs(a - b).max())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    without_reset, without_seed = map(float, done.stdout.split())
    assert without_reset > 0.01 and without_seed > 0.001


def test_pickled_renderers_render_the_same(renderer, values, sounds):
    copy = pickle.loads(pickle.dumps(renderer))
    np.testing.assert_array_equal(copy.render(values[0]), sounds[0])
    copy.close()


def test_state_of_the_process_needs_fresh_processes():
    """As Diva: repeatable only in a fresh process."""
    path, space = str(plugin("diva")), spaces.get("diva")
    values = draw(space, 3)
    assert process.CONTRACTS["diva"].isolation == "process"
    fresh = process.Contract(isolation="process")
    diva = vst3.PluginRenderer(path, space, SHORT, fresh)
    first = [diva.render(row) for row in values]
    back = [diva.render(row) for row in values[::-1]][::-1]
    np.testing.assert_array_equal(first, back)
    # One to be looked into, one for each render; the first served both.
    assert diva.pool.started == 6
    leaking = vst3.PluginRenderer(path, space, SHORT, process.Contract())
    first = [leaking.render(row) for row in values]
    back = [leaking.render(row) for row in values[::-1]][::-1]
    assert np.abs(np.subtract(first, back)).max() > 0.01
    leaking.close()


def test_silence_in_place_of_a_new_instance(path, space):
    flush = process.Contract(isolation="flush")
    values = draw(space, 8)
    # Four end at once; the echo of the others is heard for long.
    values[::2] = at(space, values[::2], echo=0.0, amp_release=0.1)
    steady = vst3.PluginRenderer(str(plugin("steady")), space, SHORT, flush)
    first = [steady.render(row) for row in values]
    back = [steady.render(row) for row in values[::-1]][::-1]
    assert steady.pool.started == 1
    fresh = steady.at(SHORT)
    alone = []
    for row in values:
        fresh.close()
        alone.append(fresh.render(row))
    np.testing.assert_array_equal(first, back)
    np.testing.assert_array_equal(first, alone)
    steady.close()
    # An oscillator that runs freely is not made anew, and that is told.
    running = vst3.PluginRenderer(path, space, SHORT, flush)
    quiet = at(space, draw(space, 2), echo=0.0, amp_release=0.0, lfo_depth=1.0)
    first = [running.render(row) for row in quiet]
    back = [running.render(row) for row in quiet[::-1]][::-1]
    assert np.abs(np.subtract(first, back)).max() > 1e-3
    running.close()


def test_noise_floor_is_measured(path, space, renderer):
    found = noise.measure(renderer, count=2)
    assert found["presets"] == 2 and "fresh" not in found
    for name in ("order", "process"):
        assert found[name] == dict.fromkeys(
            ("max_difference", *noise.METRICS), 0.0
        )
    assert "depends on its preset alone" in noise.table(found)
    # An instrument that draws its phase anew each time.
    unsteady = vst3.PluginRenderer(path, change(space, fault=1.0), SHORT, QUICK)
    found = noise.measure(unsteady, count=2, embed=lambda x: x + 1)
    for name in noise.COMPARISONS:
        assert 0 < found[name]["embedding"] < found[name]["max_difference"]
        assert found[name]["max_difference"] > noise.QUIET
        assert found[name]["a_mean"] > 0
    assert "do not repeat" in noise.table(found)
    assert "a_mean" in noise.describe(found)
    unsteady.close()


# Faults ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hazard": 0.975}, "crash"),
        ({"hazard": 0.985}, "hang"),
        ({"hazard": 0.995}, "nan"),
        ({"fault": 1 / 3}, "silent"),
    ],
)
def test_a_fault_costs_one_preset(
    renderer, space, values, sounds, fields, reason
):
    before = renderer.pool.started
    with pytest.raises(engines.RenderError) as error:
        renderer.render(at(space, values[0], **fields))
    assert str(error.value) == reason
    # Tried again in a fresh process, which is not used any more either.
    assert renderer.pool.started >= before + 1
    np.testing.assert_array_equal(renderer.render(values[0]), sounds[0])


def test_a_worker_that_dies_is_replaced(renderer, values, sounds):
    """The preset is tried again, and nobody notices."""
    renderer.render(values[0])
    (worker,) = renderer.pool._idle
    os.kill(worker._process.pid, signal.SIGKILL)
    np.testing.assert_array_equal(renderer.render(values[0]), sounds[0])


def test_wrong_length_is_a_fault(path, space, values, monkeypatch):
    renderer = vst3.PluginRenderer(path, space, SHORT, QUICK)
    ask = process.Worker.ask

    def cut(self, method, *arguments, timeout):
        reply = ask(self, method, *arguments, timeout=timeout)
        return (reply[0] - 1, reply[1]) if method == "render" else reply

    monkeypatch.setattr(process.Worker, "ask", cut)
    with pytest.raises(engines.RenderError, match=r"^wrong length$"):
        renderer.render(values[0])
    renderer.close()


def test_too_many_faults_in_a_row_end_the_run(path, space, monkeypatch):
    monkeypatch.setattr(vst3, "_MAX_FAULTS", 3)
    broken = vst3.PluginRenderer(path, space, SHORT)
    values = at(space, draw(space, 3), hazard=1.0)
    for row in values[:2]:
        with pytest.raises(engines.RenderError, match=r"^nan$"):
            broken.render(row)
    with pytest.raises(process.PluginError, match=r"3 presets in a row .* nan"):
        broken.render(values[2])
    broken.close()


def test_a_sound_in_between_starts_the_count_anew(
    path, space, values, monkeypatch
):
    monkeypatch.setattr(vst3, "_MAX_FAULTS", 2)
    renderer = vst3.PluginRenderer(path, space, SHORT)
    for _ in range(3):
        with pytest.raises(engines.RenderError):
            renderer.render(at(space, values[0], hazard=1.0))
        renderer.render(values[0])
    renderer.close()


def test_growing_workers_are_recycled(path, space, values):
    """Each note leaks 16 MiB."""
    leaking = at(space, values, fault=2 / 3)
    patient = vst3.PluginRenderer(path, space, SHORT)
    wanted = [patient.render(row) for row in leaking]
    assert patient.pool.started == 1
    patient.close()
    strict = vst3.PluginRenderer(path, space, SHORT)
    strict.pool.max_growth = 24 * 2**20
    for row, sound in zip(leaking, wanted, strict=True):
        np.testing.assert_array_equal(strict.render(row), sound)
    assert strict.pool.started > 1
    strict.close()


def test_closing_ends_renders_under_way(path, space, values):
    renderer = vst3.PluginRenderer(path, space, SHORT)
    hanging = at(space, values[0], hazard=0.985)
    raised = []

    def render():
        try:
            renderer.render(hanging)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=render)
    thread.start()
    while not renderer.pool.busy:
        time.sleep(0.01)
    time.sleep(0.2)
    renderer.close()
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(raised[0], process.PluginError)
    assert "closed" in str(raised[0])
    # It can be used again.
    assert renderer.render(values[1]).any()
    renderer.close()


def test_workers_end_with_their_parent(path):
    """Killed at once, it can tidy up nothing."""
    code = f"""
        import os, signal
        from datasets.engines.vst3 import process as vst3
        worker = vst3.Worker({path!r}, vst3.Contract())
        print(worker._process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=pathlib.Path(__file__).parents[1],
    )
    child = int(done.stdout)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = pathlib.Path(f"/proc/{child}/stat").read_text()
        except FileNotFoundError:
            return
        if state.rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"worker {child} is still there")


def test_values_are_checked(renderer, space, values):
    for name, value in (("noise", np.nan), ("echo", 1.5)):
        with pytest.raises(engines.RenderError, match=f"'{name}' is"):
            renderer.render(at(space, values[0], **{name: value}))
    with pytest.raises(engines.RenderError, match="5 plug-in values"):
        renderer.render(np.zeros(5))
    with pytest.raises(engines.RenderError, match="note 128"):
        renderer.render(values[0], 128)


# Plug-ins that cannot be used ------------------------------------------------


def test_no_plugin_is_one_message(monkeypatch, tmp_path):
    monkeypatch.delenv("DIVA_VST3", raising=False)
    with pytest.raises(engines.MissingPluginError) as error:
        engines.get("diva")
    for way in ("DIVA_VST3", "--config.plugin", "--config.data=DIR"):
        assert way in str(error.value)
    gone = str(tmp_path / "Diva.vst3")
    with pytest.raises(engines.MissingPluginError, match=r"config\.plugin"):
        engines.get("diva", plugin=gone)
    monkeypatch.setenv("DIVA_VST3", gone)
    with pytest.raises(engines.MissingPluginError, match=r"\(DIVA_VST3\)"):
        engines.get("diva")


def test_environment_variable_names_the_plugin(monkeypatch):
    monkeypatch.setenv("TALNM_VST3", str(plugin("talnm")))
    renderer = engines.get("talnm", SHORT, host={"isolation": "process"})
    assert renderer.version == "TAL-NoiseMaker 1.2.3 (VST3, process)"
    assert renderer.name == "talnm"


def test_what_is_no_plugin_is_told(tmp_path, space):
    bad = tmp_path / "Bad.vst3"
    bad.write_bytes(b"nothing")
    with pytest.raises(
        process.PluginError, match=r"Bad\.vst3 cannot be loaded"
    ):
        vst3.PluginRenderer(str(bad), space)


def test_another_plugin_is_refused(path):
    with pytest.raises(ValueError, match=r"Proxy Fixture lacks .*near: "):
        vst3.PluginRenderer(path, spaces.get("talnm"))


def test_contract_fields_are_checked():
    with pytest.raises(ValueError, match="isolation='fork'"):
        process.contract("diva", isolation="fork")
    with pytest.raises(ValueError, match="timeout=0"):
        process.contract("diva", timeout=0.0)
    with pytest.raises(ValueError, match="unknown host setting 'isolated'"):
        process.contract("diva", isolated="")
    changed = process.contract("diva", isolation="", timeout=3.0)
    assert changed == process.Contract("process", warm_up=0.1, timeout=3.0)


# Data sets ------------------------------------------------------------------


@pytest.fixture(scope="module")
def hazardous(space):
    """Presets of which a tenth each crashes, hangs and gives NaN."""
    hazard = sp.numerical("hazard", 0.0, 0.9, 1.0)
    return dataclasses.replace(
        space,
        parameters=tuple(
            dataclasses.replace(hazard, index=p.index)
            if p.name == "hazard"
            else p
            for p in space.parameters
        ),
    )


def build(path, space, directory, settings=SHORT, *, splits, workers):
    contract = process.Contract(timeout=2.0 if settings == SHORT else 1.0)
    renderer = vst3.PluginRenderer(path, space, settings, contract)
    spec = DataSpec(
        name="hazard",
        synth=space.name,
        synth_version=renderer.version,
        space=space_digest(space),
        parameters=space.num_used,
        audio_model="mel128",
        audio_weights="",
        embedding=64,
        settings=settings,
        seed=1,
        splits=splits,
        shard_size=20 if settings == SHORT else 512,
        embed_batch=8,
    )
    report = precompute.build(
        spec,
        directory,
        lambda: renderer,
        lambda: lambda sounds: np.abs(sounds[:, 1000:1064]),
        workers=workers,
        progress=False,
    )
    files = {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}
    return spec, report, files


def test_faulty_presets_are_set_aside_and_nothing_else(
    path, hazardous, tmp_path
):
    splits = (("train", 24), ("test", 3))
    few = {"splits": splits, "workers": 2}
    spec, report, files = build(path, hazardous, tmp_path / "a", **few)
    listed = precompute.set_aside(tmp_path / "a", spec)
    column = hazardous.index("hazard")
    clean = vst3.PluginRenderer(path, hazardous, SHORT)
    wanted, rows = [], {}
    for split, count in spec.splits:
        for row in range(count):
            for attempt in range(99):
                preset = drawing.draw(hazardous, 1, split, [row], [attempt])[
                    0, 0
                ]
                hazard = preset[column]
                if hazard < 0.97:
                    sound = clean.render(hazardous.to_plugin(preset))
                    if engines.check_level(sound, SHORT) is None:
                        rows[split, row] = preset
                        break
                    continue
                reason = (
                    "nan"
                    if hazard >= 0.99
                    else "hang"
                    if hazard >= 0.98
                    else "crash"
                )
                shard = row // spec.shard_size
                wanted.append((split, shard, row, attempt, reason))
    clean.close()
    assert [tuple(entry.values()) for entry in listed] == wanted
    assert {reason for *_, reason in wanted} == {"crash", "hang", "nan"}
    assert sum(report.set_aside.values()) == len(wanted)
    assert "set_aside.json" in str(report) and "set_aside.json" in files
    for split, count in spec.splits:
        presets = np.concatenate(
            [
                shards.read(tmp_path / "a", spec, split, shard)["preset"]
                for shard in range(spec.num_shards(split))
            ]
        )
        mine = np.stack([rows[split, row] for row in range(count)])
        np.testing.assert_array_equal(presets, mine)

    few["workers"] = 3
    _, _, again = build(path, hazardous, tmp_path / "b", **few)
    assert again == files


def test_a_hundredth_of_2000_crashes_hangs_and_gives_nan(path, space, tmp_path):
    """Such a run ends without those, and a second one the same.

    Very short clips; most of the work is new processes for 60 faults.
    """
    hazard = sp.numerical("hazard", 0.0)
    index = next(
        i for i, p in enumerate(space.parameters) if p.name == "hazard"
    )
    parameters = list(space.parameters)
    parameters[index] = dataclasses.replace(
        hazard, index=parameters[index].index
    )
    risky = dataclasses.replace(space, parameters=tuple(parameters))
    # Every sound will do, so that a preset is drawn again for a fault alone.
    settings = engines.RenderSettings(
        sample_rate=RATE,
        hold=0.1,
        duration=0.15,
        fade_out=0.05,
        min_rms=0.0,
        max_rms=1e3,
    )
    wanted, attempts = [], np.zeros(2000, int)
    left = np.arange(2000)
    while len(left):
        drawn = np.stack(
            [
                drawing.draw(
                    risky, 1, "train", [int(row)], [int(attempts[row])]
                )[0, 0]
                for row in left
            ]
        )
        value = drawn[:, risky.index("hazard")]
        faulty = value >= 0.97
        for row, v in zip(left[faulty], value[faulty], strict=True):
            reason = "nan" if v >= 0.99 else "hang" if v >= 0.98 else "crash"
            wanted.append(
                ("train", int(row) // 512, int(row), int(attempts[row]), reason)
            )
        left = left[faulty]
        attempts[left] += 1
    assert len(wanted) > 45
    # Side by side, as most of the time one waits for what hangs.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(
                build,
                path,
                risky,
                tmp_path / name,
                settings,
                splits=(("train", 2000),),
                workers=workers,
            )
            for name, workers in (("a", 12), ("b", 8))
        ]
        (spec, report, files), (_, _, again) = [r.result() for r in runs]
    listed = precompute.set_aside(tmp_path / "a", spec)
    assert [tuple(entry.values()) for entry in listed] == sorted(wanted)
    assert sum(report.set_aside.values()) == len(wanted)
    assert again == files


def test_handcrafted_presets_that_fail_are_named(renderer, space, path):
    steady = handcrafted.Bank(
        change(space, hazard=0.0),
        space.from_plugin(draw(space, 2)).astype(np.float32),
        ("One", "Two"),
        ("a#1", "a#2"),
        handcrafted.Report(found=2, kept=2),
    )
    assert len(handcrafted.gate(steady, renderer)) == 2
    broken = vst3.PluginRenderer(path, change(space, hazard=1.0), SHORT)
    bank = dataclasses.replace(steady, space=broken.space)
    report = handcrafted.gate(bank, broken).report
    broken.close()
    assert report.dropped == {"nan": 2} and report.kept == 0
    assert "preset 'One' set aside: nan" in str(report)


# States ---------------------------------------------------------------------


def h2p(instrument="Diva", cutoff=120):
    return (
        "/*@Meta\r\nAuthor: 'somebody'\r\n*/\r\n"
        f"#AM={instrument}\r\n#Vers=10000\r\n#cm=main\r\nCcOp=100.00\r\n"
        f"#cm=VCF1\r\nFreq={cutoff}.00\r\n"
    ).encode()


def test_states_are_read_by_the_plugin(path, space, renderer, tmp_path):
    plugin_class, chunks = vst3_state.read(
        _initial_state(renderer, path, space)
    )
    text = chunks["Comp"].decode("latin-1")
    assert "\0p3\x000.8" in text  # the first level, in the framework's layout
    chunks["Comp"] = text.replace("\0p3\x000.8", "\0p3\x000.4").encode(
        "latin-1"
    )
    (tmp_path / "Quiet.vstpreset").write_bytes(
        vst3_state.write(plugin_class, chunks)
    )
    (tmp_path / "Bad.vstpreset").write_bytes(b"VST3 but nothing more")
    bank = reading.load(tmp_path, space, renderer.read_state)
    assert bank.names == ("Quiet",)
    assert "Bad.vstpreset: not a VST3 preset" in str(bank.report)
    preset = dict(zip(space.names, bank.presets[0], strict=True))
    assert preset["level#1"] == pytest.approx(0.4, abs=1e-6)
    assert preset["level#2"] == pytest.approx(0.3, abs=1e-6)
    file = tmp_path / "Quiet.vstpreset"
    with pytest.raises(ValueError, match=r"set --config\.plugin.*FIXTURE_VST3"):
        reading.load(file, space)
    with pytest.raises(ValueError, match=r"state is no \.h2p text"):
        renderer.read_state(h2p(), "h2p")


def _initial_state(renderer, path, space):
    """What the plug-in saves, by way of a reader of its own."""
    worker = process.Worker(path, process.Contract())
    try:
        return worker.ask("state", timeout=20.0)
    finally:
        worker.close()


def test_h2p_files_become_the_plugins_state():
    """In the layout of u-he's files; Diva itself cannot be had here."""
    initial = vst3_state.write(
        b"D" * 32,
        {
            "Comp": b"\x01\x02" + vst3_state.h2p_text(h2p(cutoff=30)) + b"\0\7",
            "Cont": b"control",
        },
    )
    plugin_class, chunks = vst3_state.read(
        vst3_state.with_h2p(initial, h2p(cutoff=77))
    )
    assert plugin_class == b"D" * 32 and chunks["Cont"] == b"control"
    comp = chunks["Comp"]
    assert comp.startswith(b"\x01\x02#AM=Diva\n") and comp.endswith(b"\0\7")
    assert b"Freq=77.00\n" in comp and b"Freq=30" not in comp
    assert b"Author" not in comp and b"\r" not in comp
    with pytest.raises(ValueError, match="a preset of Hive, the plug-in is"):
        vst3_state.with_h2p(initial, h2p("Hive"))
    with pytest.raises(ValueError, match=r"not an \.h2p file"):
        vst3_state.with_h2p(initial, b"#AM=Diva only")


def test_published_factory_presets_of_talnm_play():
    """By parameter index in a file, by name in the plug-in."""
    path = str(plugin("talnm"))
    renderer = vst3.PluginRenderer(path, spaces.get("talnm"), SHORT)
    bank = reading.load(
        shared("presets/talnm_factory.json"), spaces.get("talnm")
    )
    assert bank.report.found == 255
    few = bank.take(range(5))
    assert len(handcrafted.gate(few, renderer, workers=2)) == 5
    renderer.close()
