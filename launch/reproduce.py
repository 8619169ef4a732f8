r"""Reproduces everything in one go: data, training, tables, a page to listen.

    python -m launch.reproduce --config configs/quickstart.py
    python -m launch.reproduce --config configs/paper.py:dexed \
        --presets=BANK --nsynth=FOLDER

Stages, each skipped when it is done and going on where it stopped: make the
data; train and evaluate every preset encoder; tune the proxy on hand-crafted
presets; train the estimators of the three schedules, with every seed;
evaluate them in-domain and out-of-domain; write the tables and the page, and
what several proxies came to, side by side: `proxies.csv` and, where they saw
different numbers of presets, `curve.png`. The same command resumes it, whatever
stopped it, and ends with the same tables.
Without `--presets` there is no bank of hand-crafted presets: held-out
synthetic ones stand in for them, and the tables say so.
"""

import copy
import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from datasets import files
from launch import Config, cli
from launch.evaluate import comparison
from launch.evaluate import estimator as evaluate_estimator
from launch.evaluate import proxies as evaluate_proxies
from launch.evaluate import proxy as evaluate_proxy
from launch.report import page as pages
from launch.runs import checkpoints, devices, making, noise
from launch.train import estimator as train_estimator
from launch.train import proxy as train_proxy

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "File with get_plan(), and after a colon the name of a plan.",
    required=True,
)
_PRESETS = flags.DEFINE_string("presets", "", "Bank of hand-crafted presets.")
_NSYNTH = flags.DEFINE_string("nsynth", "", "Folder in NSynth's format.")
_WEIGHTS = flags.DEFINE_string("weights", "", "Local file of the audio model.")
_FOLDER = flags.DEFINE_string("folder", ".", "Where data, runs and results go.")

Plan = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A piece of work.

    Attributes:
      name: shown to the user, unique.
      needs: what it depends on; when that changes, it is done again.
      work: does it, or goes on with it.
    """

    name: str
    needs: Any
    work: Callable[[], Any]

    @property
    def digest(self) -> str:
        """Changes when what the stage depends on does."""
        text = json.dumps(self.needs, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_plan(path: str) -> Plan:
    """The plan of "FILE.py" or "FILE.py:NAME", see `configs.paper.get_plan`.

    Raises:
      ValueError: naming what is wrong.
    """
    file, _, name = path.partition(":")
    spec = importlib.util.spec_from_file_location("plan", file)
    if spec is None or spec.loader is None or not pathlib.Path(file).exists():
        raise ValueError(f"--config={path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_plan"):
        raise ValueError(
            f"--config={path}: defines no get_plan(); configs/quickstart.py "
            "and configs/paper.py do"
        )
    try:
        return module.get_plan(*[name] * bool(name))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--config={path}: {error}") from error


def settle(
    plan: Plan, folder: str, presets: str, weights: str
) -> tuple[list[Config], list[Config], list[Config]]:
    """Fills in what the command line says.

    Args:
      plan: plan from a config file, see `configs.paper.get_plan`.
      folder: where data and runs go.
      presets: bank of hand-crafted presets, "" for none.
      weights: local file of the audio model's weights, "" to download.

    Returns:
      Configs of proxies, of tuned proxies (none without a bank), and of
      estimators.
    """
    plan = copy.deepcopy(plan)
    untuned = {c.run: c.init for c in plan["tuned"]}
    proxies, tuned, matches = (
        plan[name] for name in ("proxies", "tuned", "matches")
    )
    if not presets:
        tuned = []
        for config in matches:
            config.proxy = untuned.get(config.proxy, config.proxy)
    for config in (*proxies, *tuned, *matches):
        config.presets = presets
        config.weights = weights or config.weights
        for field in ("run", "data", "init", "proxy"):
            if config.get(field):
                config[field] = str(pathlib.Path(folder, config[field]))
    return proxies, tuned, matches


def stages(
    plan: Plan, folder: str, presets: str, nsynth: str, weights: str
) -> list[Stage]:
    """Everything that is to be done, in order.

    Args:
      plan: plan from a config file, see `configs.paper.get_plan`.
      folder: where data, runs and results go.
      presets: bank of hand-crafted presets, "" for none.
      nsynth: folder of notes to match out of domain, "" for none.
      weights: local file of the audio model's weights, "" to download.
    """
    proxies, tuned, matches = settle(plan, folder, presets, weights)
    out = results_folder(plan, folder)
    todo: list[Stage] = []

    def add(name: str, work: Callable[[], Any], *configs: Config) -> None:
        needs = [json.loads(c.to_json()) for c in configs]
        todo.append(Stage(name, needs, work))

    bind = functools.partial
    made = set()
    for config in proxies:
        if (config.data, config.num_train) not in made:
            made.add((config.data, config.num_train))
            add(f"data {config.data}", bind(making.ensure, config), config)
    for config in (*proxies, *tuned):
        add(f"train {config.name}", bind(train_proxy.train, config), config)
        add(
            f"evaluate {config.name}",
            bind(evaluate_proxy.evaluate, config.run, "best", None),
            config,
        )
    for config in matches:
        add(f"match {config.name}", bind(train_estimator.train, config), config)
    if matches:
        options = evaluate_estimator.Options(nsynth=nsynth)
        runs = [config.run for config in matches]
        work = bind(_evaluate_matches, runs, options, out)
        add("evaluate matches", work, *matches)
        todo[-1].needs.append(nsynth)
    everything = [stage.needs for stage in todo]
    runs = [c.run for c in (*proxies, *tuned, *matches)]
    page = bind(_finish, plan["name"], runs, out)
    return [*todo, Stage("tables and page", everything, page)]


def results_folder(plan: Plan, folder: str) -> pathlib.Path:
    """Where tables, page and the record of what is done go."""
    return pathlib.Path(folder, "results", plan["name"])


def _evaluate_matches(
    runs: Sequence[str],
    options: evaluate_estimator.Options,
    out: pathlib.Path,
) -> None:
    results = evaluate_estimator.evaluate(runs, options)
    text = json.dumps(comparison.compare(results)) + "\n"
    files.write_atomically(out / "comparison.json", text)


def tables(runs: Sequence[str], out: pathlib.Path) -> str:
    """The tables of evaluated runs and, in `out`, of the compared estimators.

    They are Markdown that depends on results alone.
    """
    parts = []
    for run in map(pathlib.Path, runs):
        config = checkpoints.read_config(run)
        if config.kind == "estimator":
            file = run / "matching" / "evaluation.json"
            text = comparison.table(files.read_json(file))
        else:
            content = files.read_json(run / "evaluation.json")
            text = evaluate_proxy.table(content["results"], content["bank"])
        floor = noise.of_run(run, "\n\n")
        parts.append(f"## {config['name']}\n\n{text}{floor}")
    if (out / "comparison.json").exists():
        compared = files.read_json(out / "comparison.json")
        text = comparison.comparison_table(compared)
        parts.append(f"## Schedules compared\n\n{text}")
    return "\n\n".join(parts) + "\n"


def _finish(name: str, runs: Sequence[str], out: pathlib.Path) -> None:
    text = tables(runs, out)
    places = list(map(pathlib.Path, runs))
    found, curve = evaluate_proxies.rows(places), None
    if len({row["run"] for row in found}) > 1:
        curve = evaluate_proxies.write(found, out)
        together = evaluate_proxies.table(found)
        text = f"## Proxies side by side\n\n{together}\n\n{text}"
    files.write_atomically(out / "tables.md", text)
    title = f"Results: {name}"
    page = pages.build(places, out / "site", title, curve)
    print(f"\n{text}\nwrote {out / 'tables.md'} and {page}", flush=True)


def run(todo: Sequence[Stage], out: pathlib.Path, resume: str) -> None:
    """Runs the stages that are not done.

    Args:
      todo: stages in order.
      out: folder that remembers which stages are done.
      resume: the command to name when a stage fails.

    Raises:
      RuntimeError: naming the stage that failed, its error, and the command
        that goes on with it.
    """
    memory = out / "stages.json"
    done = files.read_json(memory) if memory.exists() else {}
    left = [s for s in todo if done.get(s.name) != s.digest]
    print(f"{len(todo) - len(left)} of {len(todo)} stages are done", flush=True)
    started = time.monotonic()
    for number, stage in enumerate(todo, 1):
        if stage not in left:
            continue
        minutes = (time.monotonic() - started) / 60
        title = f"[{number}/{len(todo)}] {stage.name}"
        print(f"\n{title}  ({minutes:.1f} min so far)", flush=True)
        try:
            stage.work()
        except (SystemExit, KeyboardInterrupt):
            print(f"{title}: stopped; to go on: {resume}", flush=True)
            raise
        except cli.EXPECTED as error:
            raise RuntimeError(
                f"{title}: {error}\nto go on from here: {resume}"
            ) from error
        done[stage.name] = stage.digest
        files.write_atomically(memory, json.dumps(done, indent=1) + "\n")
    print(f"all {len(todo)} stages are done: {out}", flush=True)


def main() -> None:
    """Runs the command."""
    plan = read_plan(_CONFIG.value)
    folder, given = _FOLDER.value, (_PRESETS, _NSYNTH, _WEIGHTS)
    todo = stages(plan, folder, *(flag.value for flag in given))
    print(devices.describe(), flush=True)
    resume = shlex.join(["python", "-m", "launch.reproduce", *sys.argv[1:]])
    run(todo, results_folder(plan, folder), resume)


if __name__ == "__main__":
    cli.run(main)
