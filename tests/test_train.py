"""Training from a config: kills, resumes, guards; and its evaluation."""

import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import quickstart
from launch.evaluate import proxy as evaluate_proxy
from launch.runs import checkpoints, making, metrics
from tests import commands
from tests.shared import shared

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
    "--config=configs/quickstart.py",
    "--config.num_train=512",
    "--config.validation=(8,16)",
    "--config.num_test=192",
    "--config.shard_size=256",
    "--config.batch=32",
    "--config.epochs=6",
    "--config.log_every=5",
    "--config.optimizer.warmup_steps=8",
    "--config.optimizer.cosine_steps=88",
    "--config.sizes.hidden=64",
    "--config.sizes.blocks=3",
    "--config.evaluation.repeats=3",
    "--config.evaluation.subset=128",
)


def start(module, *flags, **variables):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.Popen(
        [sys.executable, "-m", f"launch.{module}", *flags],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def train(run, data, *flags, **variables):
    return start(
        "train",
        *SMALL,
        f"--config.run={run}",
        f"--config.data={data}",
        *flags,
        **variables,
    )


def parameters(run, best=False):
    """Every array of the last checkpoint, or of the best."""
    with checkpoints.manager(pathlib.Path(run)) as manager:
        step = manager.best_step() if best else manager.latest_step()
        state = manager.restore(step, args=ocp.args.StandardRestore())
    flat = {}

    def collect(path, tree):
        if isinstance(tree, dict):
            for name, child in tree.items():
                collect((*path, name), child)
        elif isinstance(tree, list | tuple):
            for i, child in enumerate(tree):
                collect((*path, i), child)
        elif tree is not None:
            flat[path] = np.asarray(tree)

    collect((), state)
    return step, flat


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run, and what it printed."""
    folder = tmp_path_factory.mktemp("train")
    output = finish(train(folder / "run", folder / "data"))
    return folder / "run", folder / "data", output


def test_a_run_tells_what_it_does(finished):
    run, data, output = finished
    assert "devices: 1 x" in output
    assert "building 4 of 4 shards" in output
    assert "hand-crafted: no bank (see launch.presets)" in output
    assert "epoch   6" in output and "96 steps done" in output
    records = list(metrics.read(run))
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < 0.9 * losses[0]
    assert [r["epoch"] for r in records if "mrr" in r] == [1, 2, 3, 4, 5, 6]
    steps = [r["step"] for r in records]
    assert steps == sorted(steps)
    for name in ("config.json", "environment.json", "training.png"):
        assert (run / name).stat().st_size > 0
    assert list((run / "tensorboard").glob("events*"))
    kept = [p for p in (run / "checkpoints").iterdir() if p.name.isdigit()]
    assert 1 <= len(kept) <= 2 and (data / "synthetic").is_dir()


def test_killed_runs_end_with_the_same_parameters(finished, tmp_path):
    run, data, _ = finished
    killed = tmp_path / "run"
    file = killed / metrics.FILE

    def interrupt(number, step):
        """Sends a signal once a new run has passed a step."""
        started = time.time()
        process = train(killed, data)
        # It writes the file anew when it begins.
        while process.poll() is None and not (
            file.exists()
            and file.stat().st_mtime > started
            and any(r["step"] >= step for r in metrics.read(killed))
        ):
            time.sleep(0.01)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    # A fast machine may be done before the signal arrives.
    step = random.Random(0).randint(5, 40)
    code, output = interrupt(signal.SIGKILL, step)
    assert code in (0, -signal.SIGKILL), output
    code, output = interrupt(signal.SIGTERM, 45)
    assert code in (0, 143, -signal.SIGTERM), output
    output = finish(train(killed, data))
    assert "going on at step" in output
    (step, ours), (other_step, theirs) = parameters(killed), parameters(run)
    assert step == other_step == 96
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=str(path))
    # Nothing is logged twice.
    epochs = [r["epoch"] for r in metrics.read(killed) if "epoch" in r]
    assert epochs == [1, 2, 3, 4, 5, 6]


def test_evaluation(finished):
    run, _, _ = finished
    output = finish(start("evaluate", f"--run={run}"))
    assert "hand-crafted: no bank (see launch.presets)" in output
    for name in ("mean embedding", "ridge regression", "hn_oh"):
        assert re.search(rf"\| synthetic, 128 +\| {name} +\|", output)
    found = json.loads((run / "evaluation.json").read_text())
    limit = found["ceiling"]["synthetic"]
    assert limit["gallery"] == 128 and 0.9 < limit["recall@1"] <= 1
    assert re.search(r"ceiling: synthetic: \S+% of 128 sounds have", output)
    models = found["results"]["synthetic"]
    assert models["hn_oh"]["repeats"] == 3
    assert models["hn_oh"]["metrics"]["mrr/preset_to_audio"]["std"] > 0
    l1 = {name: m["metrics"]["l1"]["mean"] for name, m in models.items()}
    assert 0 < l1["ridge regression"] < l1["mean embedding"] < 10
    for picture in ("ranks_synthetic.png", "embeddings_synthetic.png"):
        assert (run / picture).stat().st_size > 10_000


def test_fine_tuning_on_a_bank_and_its_evaluation(finished, tmp_path):
    before, data, _ = finished
    run, bank = tmp_path / "tuned", shared("presets/Dexed_01.syx")
    flags = (
        f"--config.init={before}",
        f"--config.presets={bank}",
        "--config.source=handcrafted",
        "--config.batch=8",
        "--config.epochs=2",
        # A rate of zero shows that it starts from the other run's weights.
        "--config.optimizer.learning_rate=0.0",
        "--config.optimizer.minimum=0.0",
    )
    output = finish(train(run, data, *flags))
    assert "silent" in output  # the report of what was dropped
    assert "epoch   2" in output
    _, tuned = parameters(run)
    _, original = parameters(before, best=True)
    weights = [path for path in tuned if path[0] == "params"]
    assert weights
    for path in weights:
        # The moving average is what was scored, and what is gone on from.
        averaged = original["average", *path[1:]]
        np.testing.assert_array_equal(tuned[path], averaged)
    output = finish(start("evaluate", f"--run={run}"))
    rows = [r for r in output.splitlines() if "| hand-crafted, " in r]
    assert len(rows) == 3 and "no bank" not in output
    held_out = int(rows[0].split("hand-crafted, ")[1].split()[0])
    assert 1 <= held_out < 16  # its test split alone
    trained_on = json.loads((run / "evaluation.json").read_text())["trained_on"]
    # Of another bank; what it learned from stays what it was.
    other = shared("presets/SynprezFM_01.syx")
    output = finish(start("evaluate", f"--run={run}", f"--presets={other}"))
    again = [r for r in output.splitlines() if "| hand-crafted, " in r]
    assert len(again) == 3 and again != rows
    ridge = [r for r in (*rows, *again) if "ridge" in r]
    assert ridge[0] != ridge[1]
    found = json.loads((run / "evaluation.json").read_text())
    assert found["bank"] == str(other) and found["trained_on"] == trained_on

    wrong = train(tmp_path / "x", data, *flags, "--config.sizes.hidden=32")
    output = finish(wrong, code=1)
    assert "is another model (sizes.hidden: " in output


def test_fine_tuning_alone_needs_no_synthetic_presets(tmp_path, monkeypatch):
    config = quickstart.get_config()
    config.data = str(tmp_path)
    config.presets = str(shared("presets/Dexed_01.syx"))
    config.source = "handcrafted"
    config.render.update({"duration": 1.0, "hold": 0.5})
    dataset = making.ensure(config)
    assert dataset.synthetic is None and dataset.handcrafted is not None
    assert not (tmp_path / "synthetic").exists()
    # It can be evaluated all the same.
    sets = evaluate_proxy.test_sets(config, dataset)
    assert "synthetic" not in sets
    # Near copies of what is trained on do not ask in another table.
    columns = dataset.handcrafted.columns("train")
    seen = []

    def first_is_near(held_out, train):
        seen.append(len(train))
        return np.arange(len(held_out)) == 0

    monkeypatch.setattr(
        evaluate_proxy.proxy_splits, "near_copies", first_is_near
    )
    sets = evaluate_proxy.test_sets(config, dataset)
    far = sets["queries: no near copies"]
    np.testing.assert_array_equal(far["preset"], sets["hand-crafted"]["preset"])
    assert not far["query"][0] and far["query"][1:].all()
    # Of another bank, those that are near copies of what was trained on.
    evaluate_proxy.test_sets(config, dataset, seen=dataset.handcrafted)
    assert seen == [len(columns["preset"])] * 2
    predict = evaluate_proxy.fit_baselines(config, dataset)["mean embedding"]
    np.testing.assert_allclose(
        predict(columns["preset"])[0], columns["embedding"].mean(0), atol=1e-5
    )


def test_queries_look_for_their_partners_among_all():
    audio = np.square(np.arange(6, dtype=np.float32))[:, None]
    # Presets 0 and 1 find each other's sounds; only the first does not ask.
    predicted = audio[[1, 0, 2, 3, 4, 5]]
    columns = {"preset": predicted, "embedding": audio}
    protocol = {"subset": 6, "repeats": 1, "seed": 0}
    whole = evaluate_proxy.score(np.asarray, columns, **protocol)
    columns["query"] = np.arange(6) > 0
    far = evaluate_proxy.score(np.asarray, columns, **protocol)
    for found, count in ((whole, 6), (far, 5)):
        assert found["subset"] == found["count"] == 6
        wrong = count - 4  # each at rank 2 of 6, at distance 1
        for name, value in (
            ("recall@1_l1/preset_to_audio", 4 / count),
            ("mrr/audio_to_preset", (4 + wrong / 2) / count),
            ("mean_normalized_rank/preset_to_audio", (1 + wrong / count) / 6),
            ("l1", wrong / count),
        ):
            assert found["metrics"][name]["mean"] == pytest.approx(value)


def test_fine_tuning_without_a_bank_says_so(finished, tmp_path):
    _, data, _ = finished
    process = train(tmp_path / "x", data, "--config.source=handcrafted")
    assert "there is no bank: set --config.presets" in finish(process, code=1)


def _free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_two_processes_train_one_model(finished, tmp_path):
    _, data, _ = finished
    port, epochs = _free_port(), "--config.epochs=2"
    processes = [
        train(
            tmp_path / "two",
            data,
            epochs,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    outputs = [finish(p) for p in processes]
    assert "devices: 2 x cpu, process 0 of 2" in outputs[0]
    assert "32 steps done" in outputs[0] and "epoch" not in outputs[1]
    finish(
        train(
            tmp_path / "one",
            data,
            epochs,
            XLA_FLAGS="--xla_force_host_platform_device_count=2",
        )
    )
    two, one = (
        [r["loss"] for r in metrics.read(tmp_path / name) if "loss" in r]
        for name in ("two", "one")
    )
    np.testing.assert_allclose(two, one, rtol=1e-3)
    assert len(two) > 3


def test_another_config_in_the_same_directory_is_refused(finished):
    run, data, _ = finished
    output = finish(train(run, data, "--config.batch=64"), code=1)
    assert "another config (batch: wanted 64, found 32)" in output
    assert "Traceback" not in output


def test_divergence_names_the_step(finished, tmp_path):
    _, data, _ = finished
    output = finish(
        train(
            tmp_path / "run",
            data,
            "--config.optimizer.learning_rate=1e38",
            "--config.optimizer.warmup_steps=0",
        ),
        code=1,
    )
    assert "at step " in output and "learning_rate" in output
    assert "Traceback" not in output


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_config_without_a_kind_is_refused(tmp_path):
    config = tmp_path / "old.py"
    config.write_text(
        "import ml_collections\n"
        "def get_config(): return ml_collections.ConfigDict({'batch': 1})"
    )
    with pytest.raises(ValueError, match="kind=None, choose proxy or estimat"):
        commands.run("launch.train", f"--config={config}")


def test_evaluating_nothing_says_so(tmp_path):
    output = finish(start("evaluate", f"--run={tmp_path}"), code=1)
    assert "no run at" in output and "launch.train" in output


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config=configs/none.py", "none.py"),
        ("--config.no_such_field=1", "no_such_field"),
        ("--config.batch=many", "many"),
        ("--no_such_flag", "no_such_flag"),
        ("--config=/etc/passwd", "passwd"),
        ("--config.epochs=-1", "config.epochs=-1, need whole [1, "),
    ],
)
def test_mistakes_in_flags_are_told_in_one_line(flag, message):
    output = finish(start("train", *SMALL[:1], flag), code=1)
    assert "error: " in output and message in output
    assert "Traceback" not in output
