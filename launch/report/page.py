"""The page: finds runs, collects their sections, fills the template."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
import tqdm

from datasets import files
from launch.report import estimators, proxies
from launch.runs import checkpoints

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
# Marks a folder as a page, and lists the files that were written there.
_MARKER = ".report.json"
_CURVE = "Retrieval against the number of presets trained on"


def find_runs(places: Iterable[str]) -> list[pathlib.Path]:
    """Runs in or below folders, those themselves included.

    Returns:
      Folders with a config.json or a ranking.json, in order, none twice.

    Raises:
      FileNotFoundError: naming a place that holds none.
    """
    runs: dict[pathlib.Path, None] = {}
    for place in places:
        root = pathlib.Path(place)
        names = ("config.json", "ranking.json")
        below = sorted({p.parent for name in names for p in root.rglob(name)})
        if not below:
            raise FileNotFoundError(
                f"no run at {place}; train one with python -m launch.train, "
                "then evaluate it with python -m launch.evaluate"
            )
        runs.update(dict.fromkeys(below))
    return list(runs)


def build(
    runs: Iterable[pathlib.Path],
    out: pathlib.Path,
    title: str,
    curve: pathlib.Path | None = None,
) -> pathlib.Path:
    """Writes the page; replaces one that it wrote before, and nothing else.

    Args:
      runs: directories of runs.
      out: folder of the page.
      title: its title.
      curve: picture of proxies side by side, see `launch.evaluate.proxies`.

    Returns:
      The page.

    Raises:
      ValueError: when nothing in the runs was evaluated, a run names a file
        outside itself, or the folder holds something else.
    """
    with _replacing(out):
        return _build(list(runs), out, title, curve)


@contextlib.contextmanager
def _replacing(out: pathlib.Path) -> Iterator[None]:
    """Removes what was written before, and lists what is written inside."""
    marker = out / _MARKER
    if marker.is_file():
        for name in json.loads(marker.read_text()):
            file = files.inside(out, name)
            file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something else
                for folder in file.relative_to(out).parents[:-1]:
                    (out / folder).rmdir()
    elif out.exists() and any(out.iterdir()):
        raise ValueError(
            f"{out} holds something else than a page of this command's "
            f"({_MARKER} is missing); choose another --out, or delete it"
        )
    out.mkdir(parents=True, exist_ok=True)

    def there() -> set[str]:
        found = (path for path in out.rglob("*") if path.is_file())
        return {str(path.relative_to(out)) for path in found}

    marker.write_text("[]")
    others = there()
    try:
        yield
    finally:
        marker.write_text(json.dumps(sorted(there() - others)))


def _build(
    runs: list[pathlib.Path],
    out: pathlib.Path,
    title: str,
    curve: pathlib.Path | None,
) -> pathlib.Path:
    configs = {
        run: checkpoints.read_config(run)
        for run in runs
        if (run / "config.json").exists()
    }
    progress = tqdm.tqdm(desc="page", unit=" pictures")
    with progress:
        content: dict[str, Any] = {
            **estimators.sections(
                {r: c for r, c in configs.items() if c.kind == "estimator"},
                out,
                progress.update,
            ),
            "proxies": proxies.sections(
                {r: c for r, c in configs.items() if c.kind == "proxy"},
                out,
                progress.update,
            ),
            "curves": [
                proxies.copied(p.parent, p, out, "proxies", _CURVE)
                for p in (curve,)
                if p
            ],
            "rankings": proxies.rankings(
                [r for r in runs if (r / "ranking.json").exists()], out
            ),
        }
    if not any(content[k] for k in ("summaries", "proxies", "rankings")):
        raise ValueError(
            "none of the runs was evaluated; run python -m launch.evaluate "
            f"--run {runs[0]}"
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    names = [config["name"] for config in configs.values()]
    text = environment.get_template("report.html").render(
        title=title, runs=list(dict.fromkeys(names)), **content
    )
    for name in ("report.css", "report.js"):
        shutil.copyfile(_TEMPLATES / name, out / name)
    # GitHub Pages would drop files that its generator does not know.
    (out / ".nojekyll").touch()
    page = out / "index.html"
    page.write_text(text)
    return page
