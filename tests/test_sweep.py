"""Sweeps: exact numbers of trials, resumed trials, the best config."""

import collections
import multiprocessing
import pathlib
import time

import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from configs import common, quickstart
from launch.runs import making, metrics
from launch.sweep import study as sweep
from launch.sweep import trial
from launch.train import proxy
from tests import commands
from tests.test_population import config_for

SPACE = {
    "optimizer.learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "sizes.hidden": IntDistribution(4, 12, step=4),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    config = config_for(folder / "run", folder / "data")
    config.epochs = 2
    making.ensure(config)
    return config


def sweep_of(
    config, out, trials, *, seeds=(), pruner="none", storage=None, space=SPACE
):
    study = sweep.open_study(config, space, out, storage, pruner)
    return sweep.Sweep(study, config, space, out, trials, 2, seeds)


def search(*args, **options):
    found = sweep_of(*args, **options)
    return found.study, trial.run_trials(found)


def pretend(config, report):
    """Stands for a training, whose score is its learning rate."""
    rate = config.optimizer.learning_rate
    if rate > 1:
        raise FloatingPointError("loss inf at step 3")
    with metrics.Writer(pathlib.Path(config.run)) as writer:
        for epoch in (1, 2):
            time.sleep(0.02)
            found = {"mrr": rate * epoch}
            writer.write(epoch, epoch=epoch, **found)
            report(epoch, found)


@pytest.fixture
def quick(monkeypatch):
    """Trials that are over at once: what is tested is what is around them."""

    def train_at_once(config, report):
        pathlib.Path(config.run).mkdir(exist_ok=True)
        pretend(config, report)

    monkeypatch.setattr(proxy, "train", train_at_once)


def test_first_points_fill_the_space_and_do_not_depend_on_the_process():
    space = {
        "rate": FloatDistribution(1e-4, 1e-2, log=True),
        "decay": FloatDistribution(0.0, 1.0, step=0.25),
        "blocks": IntDistribution(1, 4),
        "pooling": CategoricalDistribution(["cls", "mean"]),
    }
    points = [sweep.sobol_point(space, i, 7) for i in range(64)]
    assert points[5] == sweep.sobol_point(space, 5, 7)
    assert points[5] != sweep.sobol_point(space, 5, 8)
    for name, wanted in (
        ("blocks", {1: 16, 2: 16, 3: 16, 4: 16}),
        ("pooling", {"cls": 32, "mean": 32}),
        ("decay", {0.0: 8, 0.25: 16, 0.5: 16, 0.75: 16, 1.0: 8}),
    ):
        counts = collections.Counter(p[name] for p in points)
        assert counts == pytest.approx(wanted, abs=1), name
    below = sum(p["rate"] < 1e-3 for p in points)
    assert below == 32  # half of them per decade
    for point in points:
        assert all(
            space[n]._contains(space[n].to_internal_repr(v))
            for n, v in point.items()
        )


def test_a_sweep_finds_the_best_and_writes_its_config(config, tmp_path, quick):
    study, numbers = search(config, tmp_path, 4)
    assert numbers == [0, 1, 2, 3]
    trials = study.get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 4
    for one in trials[:2]:
        assert one.params == pytest.approx(
            sweep.sobol_point(SPACE, one.number, config.seed)
        )
    assert len({str(t.params) for t in trials}) == 4
    for one in trials:
        found = trial.scores(tmp_path / f"trial-{one.number:05d}")
        assert one.intermediate_values == found and list(found) == [1, 2]
        assert one.value == max(found.values())
    done = sweep_of(config, tmp_path, 4)
    text = sweep.table(done)
    assert "4 complete" in text and f"| {study.best_value:.4f} |" in text
    path = sweep.write_best(done)
    space = {}
    exec(pathlib.Path(path).read_text(), space)
    best = space["get_config"]()
    params = study.best_params
    assert best.optimizer.learning_rate == params["optimizer.learning_rate"]
    assert best.sizes.hidden == params["sizes.hidden"]
    assert best.name == "quickstart_best" and best.data == config.data
    assert set(best) == set(config)
    assert best.validation == config.validation
    # Asked again, nothing is left to do; asked for one more, it is done.
    assert search(config, tmp_path, 4)[1] == []
    assert search(config, tmp_path, 5)[1] == [4]
    other = config.copy_and_resolve_references()
    other.batch = 64
    with pytest.raises(ValueError, match="batch: wanted 64, found 32"):
        search(other, tmp_path, 4)


def test_an_interrupted_trial_is_taken_up_again(config, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    whole = proxy.train

    def killed(config, report):
        def die(epoch, found):
            report(epoch, found)
            raise Killed

        whole(config, die)

    monkeypatch.setattr(proxy, "train", killed)
    with pytest.raises(Killed):
        search(config, tmp_path, 1)
    monkeypatch.setattr(proxy, "train", whole)
    study, numbers = search(config, tmp_path, 1)
    assert numbers == [0]
    assert study.get_trials()[0].state == TrialState.COMPLETE
    reference, _ = search(config, tmp_path / "whole", 1)
    assert study.get_trials()[0].value == reference.get_trials()[0].value
    assert study.get_trials()[0].params == reference.get_trials()[0].params


def test_a_trial_may_be_a_population(config, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study, _ = search(config, tmp_path, 1, seeds=[0, 1], storage=url)
    (done,) = study.get_trials()
    runs = sorted((tmp_path / "trial-00000").glob("seed*"))
    assert [r.name[:5] for r in runs] == ["seed0", "seed1"]
    assert done.value == max(done.intermediate_values.values())
    each = [trial.scores(run)[2] for run in runs]
    assert each[0] != each[1]
    assert done.intermediate_values[2] == pytest.approx(sum(each) / 2)


def test_trials_are_pruned_or_fail(config, tmp_path, quick):
    class AfterOne(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.last_step == 1

    pruned = sweep_of(config, tmp_path / "pruned", 1, pruner="median")
    assert isinstance(pruned.study.pruner, optuna.pruners.MedianPruner)
    pruned.study.pruner = AfterOne()
    trial.run_trials(pruned)
    (done,) = pruned.study.get_trials()
    assert done.state == TrialState.PRUNED
    assert list(done.intermediate_values) == [1]
    assert "1 pruned" in sweep.table(pruned)

    rates = {"optimizer.learning_rate": FloatDistribution(1e37, 1e38)}
    failed = sweep_of(
        config, tmp_path / "failed", 1, pruner="hyperband", space=rates
    )
    assert isinstance(failed.study.pruner, optuna.pruners.HyperbandPruner)
    trial.run_trials(failed)
    assert failed.study.get_trials()[0].state == TrialState.FAIL


def _work(config, out, barrier, results):
    proxy.train = pretend  # a process of its own
    barrier.wait(120)
    results.put(search(config, out, 12)[1])


def test_two_processes_run_exactly_the_trials_asked_for(config, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    children = [
        context.Process(target=_work, args=(config, tmp_path, barrier, results))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    shares = [results.get(timeout=120) for _ in children]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert all(shares)  # both took part
    assert sorted(shares[0] + shares[1]) == list(range(12))
    study = sweep.open_study(config, SPACE, tmp_path, None, "none")
    trials = [t for t in study.get_trials() if t.state.is_finished()]
    assert [t.number for t in trials] == list(range(12))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert len(list(tmp_path.glob("trial-*"))) == 12
    assert len({str(t.params) for t in trials}) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "defines no get_space"),
        ("root:x:0", "invalid syntax"),
        ("def get_space(): return {}", "is empty"),
        ("def get_space(): return {'no.such': 1}", "no field 'no.such'"),
        ("def get_space(): return {'batch': 1}", "batch is no Optuna"),
    ],
)
def test_mistakes_in_a_space_are_told(tmp_path, text, message):
    path = tmp_path / "space.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        sweep.read_space(str(path), quickstart.get_config())
    with pytest.raises(ValueError, match="no such Python file"):
        sweep.read_space(str(tmp_path / "none.py"), quickstart.get_config())


@pytest.mark.parametrize(("name", "encoder"), [("hn", "hn_oh"), ("tfm", "tfm")])
def test_the_spaces_name_fields_there_are(name, encoder):
    config = common.proxy_config("dexed", encoder)
    space = sweep.read_space(f"configs/sweeps/{name}.py", config)
    assert "optimizer.learning_rate" in space


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_command_tells_what_it_did(config, tmp_path, quick, capsys):
    space = tmp_path / "space.py"
    space.write_text(
        "from optuna.distributions import FloatDistribution as Float\n"
        "def get_space(): return {'optimizer.learning_rate': Float(0.1, 0.2)}"
    )
    out = tmp_path / "out"
    flags = ("--trials=2", f"--space={space}", f"--out={out}")
    commands.run("launch.sweep", "--config=configs/quickstart.py", *flags)
    said = capsys.readouterr().out
    assert "2 complete" in said
    assert f"next: python -m launch.train --config {out}/best.py" in said
    with pytest.raises(ValueError, match="--seeds=one: "):
        commands.run(
            "launch.sweep",
            "--config=configs/quickstart.py",
            *flags,
            "--seeds=one",
        )
