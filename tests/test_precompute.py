"""Precompute: the same bytes, however the work was done or interrupted."""

import dataclasses
import gc
import inspect
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import weakref

import jax
import numpy as np
import pytest
from jax.core import Tracer

from datasets import drawing, engines, files, loader, precompute, shards
from datasets.engines import dexed_batch
from datasets.spec import DataSpec, presets_digest, space_digest
from launch import cli
from proxy import audio, priors, spaces

SPACE = spaces.get("dexed")
# Short clips, real engine: a render takes well under a millisecond.
SETTINGS = engines.RenderSettings(
    hold=0.2, duration=0.3, fade_out=0.05, min_rms=0.02
)


def make_spec(**fields):
    renderer = engines.get("dexed", SETTINGS)
    return DataSpec(
        **{
            "name": "tiny",
            "synth": "dexed",
            "synth_version": renderer.version,
            "space": space_digest(SPACE),
            "parameters": SPACE.num_used,
            "audio_model": "mel128",
            "audio_weights": "",
            "embedding": 128,
            "settings": SETTINGS,
            "seed": 3,
            "splits": (("train", 50), ("test", 9)),
            "shard_size": 20,
            "embed_batch": 8,
            **fields,
        }
    )


@pytest.fixture(scope="module")
def embed():
    model = audio.get("mel128")
    return jax.jit(lambda sounds: model.embed({}, sounds))


def build(spec, directory, embed, **options):
    return precompute.build(
        spec,
        directory,
        lambda: engines.get("dexed", spec.settings),
        lambda: embed,
        **{"progress": False, "workers": 1, **options},
    )


def contents(directory):
    """Bytes of everything a user sees in a data set."""
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.is_file()
    }


@pytest.fixture(scope="module")
def reference(embed, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    report = build(make_spec(), directory, embed)
    assert (report.built, report.present, report.missing) == (4, 0, 0)
    assert report.rows == 59
    return directory


def test_rows_are_what_they_should_be(reference, embed):
    """Each row: the first of its draws that is heard, and its embedding."""
    spec, renderer = make_spec(), engines.get("dexed", SETTINGS)
    columns = shards.read(reference, spec, "train", 1)
    redrawn = 0
    for i, row in enumerate(spec.shard_rows("train", 1)):
        for attempt in range(200):
            preset = drawing.draw(SPACE, 3, "train", [row], [attempt])[0, 0]
            sound = renderer.render(SPACE.to_plugin(preset))
            if engines.check_level(sound, SETTINGS) is None:
                break
            redrawn += 1
        np.testing.assert_array_equal(columns["preset"][i], preset)
        block = np.zeros((spec.embed_batch, spec.samples), np.float32)
        block[0] = sound
        wanted = np.asarray(embed(block))[0]
        np.testing.assert_allclose(columns["embedding"][i], wanted, atol=1e-5)
    # Most draws are silent: the gate was really at work.
    assert redrawn > 20
    check = shards.read_check(reference, spec, "train", 1)
    assert sum(check["redrawn"].values()) == redrawn


def test_draws_are_independent():
    draws = [
        drawing.draw(SPACE, seed, split, [row], [attempt])[0, 0]
        for seed in (0, 1)
        for split in ("train", "test")
        for row in (0, 1)
        for attempt in (0, 1)
    ]
    assert len({d.tobytes() for d in draws}) == len(draws)
    block = drawing.draw(SPACE, 0, "train", [5, 0, 1], [0, 1])
    assert block.shape == (3, 2, SPACE.num_used)
    np.testing.assert_array_equal(block[1:].reshape(4, -1), draws[:4])


def test_a_data_set_is_sampled_as_its_spec_says(embed, tmp_path):
    spec = dataclasses.replace(make_spec(), at_default=0.5, at_end=0.1)
    build(spec, tmp_path, embed)
    presets = shards.read(tmp_path, spec, "train", 1)["preset"]
    rows = list(spec.shard_rows("train", 1))
    prior = priors.Uniform(SPACE, at_default=0.5, at_end=0.1)
    drawn = drawing.draw(SPACE, 3, "train", rows, range(200), prior)
    for preset, attempts in zip(presets, drawn, strict=True):
        assert (attempts == preset).all(-1).any()
    # Others were made otherwise, and are not taken for these.
    with pytest.raises(files.ShardError, match=r"at_default: wanted nothing"):
        shards.open_directory(tmp_path, make_spec())


def test_a_data_set_is_drawn_from_its_prior(bank, embed, tmp_path):
    """Its bytes are those of threads and of processes; another is refused."""
    prior = priors.Mixture(
        (priors.Variations(SPACE, bank), priors.Uniform(SPACE)), (0.9, 0.1)
    )
    spec = make_spec(prior=priors.digest(prior), splits=(("train", 24),))
    build(spec, tmp_path / "a", embed, prior=prior)
    presets = shards.read(tmp_path / "a", spec, "train", 0)["preset"]
    attempts = drawing.draw(SPACE, 3, "train", range(20), range(200), prior)
    for preset, row in zip(presets, attempts, strict=True):
        assert (row == preset).all(-1).any()
        alone = drawing.draw(SPACE, 3, "train", [5], [2], prior)
    np.testing.assert_array_equal(alone[0, 0], attempts[5, 2])
    build(spec, tmp_path / "b", embed, prior=prior, processes=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(ValueError, match=r"prior: wanted \w{32}, found \)"):
        build(spec, tmp_path / "c", embed)
    assert "prior" not in make_spec().to_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 2},
        {"workers": 5, "processes": False},
        {"workers": 3},  # more than its threads can use: processes
        {"in_flight": 3},
        {"processes": True},
    ],
)
def test_workers_do_not_change_a_byte(reference, embed, tmp_path, options):
    build(make_spec(), tmp_path, embed, **options)
    assert contents(tmp_path) == contents(reference)


def test_tasks_share_the_shards(reference, embed, tmp_path):
    spec = make_spec()
    for task, (built, missing) in enumerate([(2, 2), (1, 1), (1, 0)]):
        only = precompute.share(spec, task=task, num_tasks=3)
        report = build(spec, tmp_path, embed, only=only)
        assert (report.built, report.missing) == (built, missing)
        # Unfinished, it is not yet a data set.
        assert (tmp_path / "dataset_info.json").exists() == (missing == 0)
    assert contents(tmp_path) == contents(reference)


def test_resume_builds_only_what_is_missing(reference, embed, tmp_path):
    spec = make_spec()
    build(spec, tmp_path, embed)
    gone = tmp_path / spec.filename("train", 1)
    gone.unlink()
    report = build(spec, tmp_path, embed)
    assert (report.built, report.present, report.rows) == (1, 3, 20)
    assert contents(tmp_path) == contents(reference)
    report = build(spec, tmp_path, embed)
    assert (report.built, report.present) == (0, 4)
    assert "4 already there" in str(report)


def _build_in_process(directory, barrier):
    import pathlib

    def embed(sounds):
        return np.abs(sounds[:, :128])

    barrier.wait(60)
    build(make_spec(shard_size=5), pathlib.Path(directory), embed)


def test_processes_at_once_share_one_folder(tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    children = [
        context.Process(target=_build_in_process, args=(together, barrier))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    build(make_spec(shard_size=5), alone, lambda s: np.abs(s[:, :128]))
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert contents(together) == contents(alone)
    assert not list(together.glob(".*.tmp-*"))


def test_kept_audio_is_the_sound(embed, tmp_path):
    spec = make_spec(splits=(("train", 5),), keep_audio=True)
    build(spec, tmp_path, embed)
    renderer = engines.get("dexed", SETTINGS)
    columns = shards.read(tmp_path, spec, "train", 0)
    sounds = shards.dequantise(columns["audio"], columns["audio_scale"])
    for preset, sound in zip(columns["preset"], sounds, strict=True):
        wanted = renderer.render(SPACE.to_plugin(preset))
        np.testing.assert_allclose(sound, wanted, atol=0.51 / 32767)


def batched(size, settings=SETTINGS):
    """The engine that renders batches."""
    engine = dexed_batch.BatchedDexed(settings)
    engine.batch = size
    return engine


def build_batched(engine, directory, embed, **options):
    version = engine.version
    return precompute.build(
        make_spec(
            synth_version=version,
            settings=engine.settings,
            **options.pop("fields", {}),
        ),
        directory,
        lambda: engine,
        lambda: embed,
        **{"progress": False, "workers": 2, **options},
    )


@pytest.fixture(params=["host", "device"])
def place(request, monkeypatch):
    """Where sounds go; as on an accelerator, with "device"."""
    told = request.param == "device"
    monkeypatch.setattr(precompute, "_on_device", lambda *_: told)
    return request.param


@pytest.fixture(scope="module")
def in_batches(embed, tmp_path_factory):
    directory = tmp_path_factory.mktemp("batches")
    report = build_batched(batched(16), directory, embed)
    assert (report.built, report.rows) == (4, 59)
    return directory


def test_engines_make_the_same_data(reference, in_batches):
    """The same presets, drawn as often; embeddings within 1e-4 of their size.

    In L1 within 1e-4 as they are.
    """
    for split, number in make_spec().shards:
        one = shards.read(reference, make_spec(), split, number)
        spec = make_spec(synth_version=dexed_batch.VERSION)
        other = shards.read(in_batches, spec, split, number)
        np.testing.assert_array_equal(other["preset"], one["preset"])
        np.testing.assert_allclose(
            other["embedding"], one["embedding"], rtol=1e-4
        )
        distance = np.abs(other["embedding"] - one["embedding"]).mean(1)
        assert distance.max() < 1e-4
        checks = [
            shards.read_check(directory, each, split, number)["redrawn"]
            for directory, each in (
                (reference, make_spec()),
                (in_batches, spec),
            )
        ]
        assert checks[0] == checks[1]


def test_engines_do_not_share_a_folder(reference, embed):
    with pytest.raises(files.ShardError, match=r"synth_version.*dx7-jax"):
        build_batched(batched(16), reference, embed)


class Failed:
    """What a call leaves that runs out of memory after it has returned."""

    def __array__(self, *_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory")


@pytest.mark.parametrize("at_once", [True, False])
def test_the_size_of_batches_does_not_change_a_byte(
    in_batches, embed, tmp_path, caplog, monkeypatch, place, at_once
):
    """Nor does memory that runs out, nor a build that is cut off."""
    engine = batched(16)
    render, made = engine._fill, []

    def short(voices, notes, size):
        made.append(len(voices))
        if size > 8 and at_once:
            np.asarray(Failed())
        if size > 8:
            return Failed(), Failed()
        if len(made) == 9:
            raise OSError("cut off")
        return render(voices, notes, size)

    monkeypatch.setattr(engine, "_fill", short)
    with pytest.raises(OSError, match="cut off"):
        build_batched(engine, tmp_path, embed, workers=1)
    assert contents(tmp_path) != contents(in_batches)
    build_batched(engine, tmp_path, embed, workers=3)
    assert contents(tmp_path) == contents(in_batches)
    assert max(made) > 8 and engine.batch == 8
    # Said once.
    assert caplog.text.count("8 presets are rendered at once") == 1


def test_sounds_that_stay_on_the_device_give_the_same_bytes(
    embed, tmp_path, monkeypatch
):
    """Blocks of 8, from batches of 6; one program puts them together."""
    traced, calls, told = [], [], set()
    add, gate = inspect.unwrap(precompute._add), engines.level_reason

    def count(*arrays):
        traced.append(arrays)
        return add(*arrays)

    compiled = jax.jit(count, donate_argnums=0)

    def spy(*arrays):
        calls.append(arrays[1])
        return compiled(*arrays)

    def tell(*level):
        told.add(gate(*level))
        return gate(*level)

    monkeypatch.setattr(precompute, "_add", spy)
    settings = dataclasses.replace(SETTINGS, max_rms=0.03)
    build_batched(batched(6, settings), tmp_path / "host", embed)
    assert not calls
    monkeypatch.setattr(precompute, "_on_device", lambda *_: True)
    monkeypatch.setattr(engines, "level_reason", tell)
    build_batched(batched(6, settings), tmp_path / "device", embed)
    assert contents(tmp_path / "host") == contents(tmp_path / "device")
    assert told == {None, "silent", "too loud"}
    # 59 rows in shards of 20 are 10 blocks.
    assert len(calls) > 20 and len(traced) == 1


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(eq=False)
class Away:
    """Sounds in the memory of a device: only its programs can read them."""

    sounds: jax.Array

    def __array__(self, *_, **__):
        raise AssertionError("sounds were copied to the host")

    def __getitem__(self, index):
        assert isinstance(self.sounds, Tracer)
        return self.sounds[index]

    def tree_flatten(self):
        return (self.sounds,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_no_sound_leaves_the_device(
    in_batches, embed, tmp_path, monkeypatch, place
):
    """Nor stays there longer than it is needed."""
    engine = batched(16)
    render, made = engine._fill, weakref.WeakSet()

    def fill(*args):
        sounds, levels = render(*args)
        away = Away(sounds)
        made.add(away)
        return away, levels

    def embed_on_device(block):
        assert isinstance(block, jax.Array)
        assert block.shape == (8, SETTINGS.samples)
        return embed(block)

    monkeypatch.setattr(engine, "_fill", fill)
    if place == "host":
        with pytest.raises(AssertionError, match="copied to the host"):
            build_batched(engine, tmp_path, embed)
        return
    # Memory of a device cannot wait for the garbage collector.
    gc.disable()
    try:
        build_batched(engine, tmp_path, embed_on_device, workers=1)
        assert not made
    finally:
        gc.enable()
    assert contents(tmp_path) == contents(in_batches)


def test_sounds_stay_on_accelerators_alone(monkeypatch):
    stays, engine, spec = precompute._on_device, batched(8), make_spec()
    assert not stays(spec, engine)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert stays(spec, engine)
    assert not stays(make_spec(keep_audio=True), engine)
    assert not stays(spec, engines.get("dexed", SETTINGS))


def test_memory_that_holds_no_preset_is_an_error(embed, tmp_path, place):
    engine = batched(2)

    def none(voices, notes, size):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory")

    engine._fill = none
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        build_batched(engine, tmp_path, embed)


def test_batches_of_given_presets(bank, embed, tmp_path, monkeypatch):
    names = [f"Preset {i}" for i in range(len(bank))]
    fields = {
        "source": "handcrafted",
        "splits": (("train", len(bank)),),
        "presets": presets_digest(bank, names),
    }
    given = {"presets": {"train": bank}, "names": {"train": names}}
    engine, folder = batched(6), tmp_path / "host"
    build_batched(engine, folder, embed, fields=fields, **given)
    spec = make_spec(synth_version=engine.version, **fields)
    columns = shards.read(folder, spec, "train", 0)
    np.testing.assert_array_equal(columns["preset"], bank)
    assert loader.open_names(folder, spec, "train") == names
    monkeypatch.setattr(precompute, "_on_device", lambda *_: True)
    build_batched(engine, tmp_path / "device", embed, fields=fields, **given)
    assert contents(tmp_path / "device") == contents(folder)


@pytest.fixture(scope="module")
def bank(reference):
    """Presets that are known to be heard."""
    return shards.read(reference, make_spec(), "train", 0)["preset"]


def handcrafted_spec(bank, names):
    return make_spec(
        source="handcrafted",
        splits=(("train", len(bank)),),
        presets=presets_digest(bank, names),
    )


def test_handcrafted_presets_keep_their_names(bank, embed, tmp_path):
    names = [f"Preset {i}" for i in range(len(bank))]
    spec = handcrafted_spec(bank, names)
    build(
        spec, tmp_path, embed, presets={"train": bank}, names={"train": names}
    )
    columns = shards.read(tmp_path, spec, "train", 0)
    np.testing.assert_array_equal(columns["preset"], bank)
    assert loader.open_names(tmp_path, spec, "train") == names


def test_silent_handcrafted_preset_is_named(bank, embed, tmp_path):
    silent = bank.copy()
    levels = [i for i, n in enumerate(SPACE.names) if "output_level" in n]
    silent[3, levels] = 0
    names = [f"Preset {i}" for i in range(len(bank))]
    with pytest.raises(files.ShardError, match="'Preset 3': silent"):
        build(
            handcrafted_spec(silent, names),
            tmp_path,
            embed,
            presets={"train": silent},
            names={"train": names},
        )
    assert not list(tmp_path.glob(".*.tmp-*"))


def test_hopeless_space_gives_up(embed, tmp_path):
    settings = dataclasses.replace(SETTINGS, min_rms=10.0, max_rms=11.0)
    with pytest.raises(files.ShardError) as error:
        build(make_spec(settings=settings), tmp_path, embed)
    message = str(error.value)
    assert "space 'dexed'" in message
    assert f"{drawing.MAX_ATTEMPTS} times" in message
    assert "min_rms" in message


def test_non_finite_embedding_is_an_error(tmp_path):
    def embed(sounds):
        return np.full((len(sounds), 128), np.nan, np.float32)

    with pytest.raises(files.ShardError, match="row 0 of split 'train'"):
        build(make_spec(), tmp_path, embed)
    assert shards.missing(tmp_path, make_spec())


def test_renderer_must_fit_the_spec(embed, tmp_path):
    spec = make_spec()
    settings = dataclasses.replace(SETTINGS, note=48)
    with pytest.raises(
        ValueError, match=r"settings\.note: wanted 60, found 48"
    ):
        precompute.build(
            spec,
            tmp_path / "note",
            lambda: engines.get("dexed", settings),
            lambda: embed,
        )
    with pytest.raises(ValueError, match="needs presets of shape"):
        build(make_spec(source="handcrafted"), tmp_path / "bank", embed)


def test_damaged_shard_stops_a_resume(embed, tmp_path):
    spec = make_spec()
    build(spec, tmp_path, embed)
    path = tmp_path / spec.filename("train", 0)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(files.ShardError, match="cut short") as error:
        build(spec, tmp_path, embed)
    assert str(path) in str(error.value)


def test_choosing_shards():
    spec = make_spec()
    assert cli.ranges("shards", "3, 0-1") == [3, 0, 1]
    assert precompute.share(spec, numbers=[3, 0, 3]) == [
        ("train", 0),
        ("test", 0),
    ]
    with pytest.raises(ValueError, match="no shard 4: tiny has 4"):
        precompute.share(spec, numbers=[4])
    with pytest.raises(ValueError, match="task is 2"):
        precompute.share(spec, task=2, num_tasks=2)
    for text in ("", "a", "1-", "-1", "1;2", "0-99999999999"):
        with pytest.raises(ValueError, match="--shards"):
            cli.ranges("shards", text)


CONFIG = """
from configs import common

def get_config():
    config = common.proxy_config("dexed", "hn_oh")
    config.audio_model = "mel128"
    config.data = {data!r}
    config.num_train, config.validation, config.num_test = 2_000, (4, 5), 30
    config.shard_size, config.embed_batch, config.workers = 40, 8, 2
    config.render = {{
        "hold": 0.2, "duration": 0.3, "fade_out": 0.05, "min_rms": 0.02
    }}
    return config
"""


def start(directory):
    config = directory.parent / f"{directory.name}.py"
    config.write_text(CONFIG.format(data=str(directory)))
    command = [sys.executable, "-m", "launch.precompute", "--config", config]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


_PARENT = """
import multiprocessing, time
from datasets import drawing, engines, precompute

if __name__ == "__main__":
    with precompute._pool(engines.get("dexed"), 2, True) as submit:
        tasks = [submit(drawing.render_rows, 0, "x", [i]) for i in range(9)]
        [task.result() for task in tasks]
        print(*(p.pid for p in multiprocessing.active_children()), flush=True)
        time.sleep(60)
"""


def test_no_worker_outlives_its_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    root = pathlib.Path(__file__).parents[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env=env
    ) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert workers
        parent.send_signal(signal.SIGKILL)
        try:
            # They share its output, which ends with the last of them.
            parent.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            pytest.fail("workers live on")


def finished(directory):
    return len(list(directory.glob("*.array_record-*.check.json")))


def test_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with start(whole) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    seed = random.randrange(10**6)
    print("moments drawn with seed", seed)
    moments = random.Random(seed)
    for _ in range(3):
        # At any moment while a shard or the next one is in the making: most
        # of a process's life goes into imports and compilation.
        # Batches finish several shards at a time.
        goal = finished(killed / "synthetic") + moments.randint(0, 1)
        with start(killed) as process:
            while process.poll() is None:
                if list((killed / "synthetic").glob(".*.tmp-*")) and (
                    finished(killed / "synthetic") >= goal
                ):
                    break
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        print(finished(killed / "synthetic"), "shards finished when killed")
    assert not (killed / "synthetic" / "dataset_info.json").exists()
    with start(killed) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    assert contents(killed / "synthetic") == contents(whole / "synthetic")
    spec = DataSpec.from_dict(shards.read_spec(killed / "synthetic"))
    for split, rows in spec.splits:
        shards.verify(killed / "synthetic", spec, split)
        index = [
            i
            for shard in range(spec.num_shards(split))
            for i in shards.read(killed / "synthetic", spec, split, shard)[
                "index"
            ]
        ]
        assert index == list(range(rows))
    hidden = {p.name for p in (killed / "synthetic").glob(".*")}
    assert hidden <= {".cache"}
