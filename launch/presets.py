"""Hand-crafted presets: download a bank, look into one, write one.

    python -m launch.presets fetch [--source=dexed|learnfm]
    python -m launch.presets inspect PATH... [--gate] [--list=20]
    python -m launch.presets export PATH... --output=FILE.syx|FILE.json
        [--names=A,B] [--where=algorithm=0-15,20]
    python -m launch.presets fit PATH... --output=FILE.npz

A PATH is a file, a folder or a zip archive of DX7 voices, or JSON presets; with
--synth, of another synthesizer: JSON presets, or states of its plug-in.
Training and evaluation take the same paths as `--config.presets=PATH`.

`fit` learns a distribution from the training part of a bank (`proxy.priors`)
and says how well it tells held-out presets, beside parameters that are fitted
one by one. Training draws from it with `--config.fitted=FILE.npz`,
`--config.prior.fitted=1` and `--config.prior.uniform=0`.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Any

import numpy as np
import tabulate
from absl import flags

from datasets import download, engines, files
from datasets.presets import bank as handcrafted
from datasets.presets import reading, writing
from launch import cli
from proxy import priors, spaces, splits


@dataclasses.dataclass(frozen=True)
class Source:
    """A published bank.

    Its address names a commit. The digest of the first download is recorded
    and later ones are held to it; none is known beforehand.

    Attributes:
      urls: where it is published; the next is tried when a file is gone.
      file: name of the file in the cache.
      licence: what its publisher says about its use.
      note: what is in it.
    """

    urls: tuple[str, ...]
    file: str
    licence: str
    note: str


_GITHUB = "https://raw.githubusercontent.com"
SOURCES = {
    "dexed": Source(
        urls=(
            f"{_GITHUB}/asb2m10/dexed/"
            "72359a79208fba90a1617ac6fbe7b53cb7ec5969/assets/builtin_pgm.zip",
        ),
        file="builtin_pgm.zip",
        licence="GPL-3.0, as part of Dexed (asb2m10/dexed)",
        note="the cartridges that come with Dexed",
    ),
    "learnfm": Source(
        urls=(
            # The same author's later project, which carried it along: no
            # commit of learnfm itself is known to hold it.
            f"{_GITHUB}/shorepine/alles/"
            "4e889c866d3333584977e3727e8008660bb418e5/compact.bin",
        ),
        file="learnfm_compact.bin",
        licence="none stated (bwhitman/learnfm); voices by many authors, "
        "collected from public DX7 banks",
        note="31,380 different voices, 128 packed bytes each",
    ),
}

_SOURCE = flags.DEFINE_enum(
    "source", "dexed", list(SOURCES), "Which bank to fetch."
)
_CACHE = flags.DEFINE_string(
    "cache_dir", None, "Where banks are kept (default: the user's cache)."
)
_SYNTH = flags.DEFINE_enum(
    "synth", "dexed", spaces.names(), "Synthesizer of the presets."
)
_GATE = flags.DEFINE_bool(
    "gate", False, "Render the presets; drop silent and too loud ones."
)
_SAMPLE_RATE = flags.DEFINE_integer(
    "sample_rate", 44_100, "Sample rate to render at, in Hz."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Rendering threads, 0: one per core.", lower_bound=0
)
_LIST = flags.DEFINE_integer(
    "list", 0, "How many presets to list.", lower_bound=0
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File to write: .syx or .json, of a fitted prior .npz."
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the split, as config.data_seed.", lower_bound=0
)
_NAMES = flags.DEFINE_list(
    "names", None, "Presets to export, by name (default: all)."
)
_WHERE = flags.DEFINE_string(
    "where",
    "",
    "Presets to export, by the category of a parameter, counted from 0: "
    "algorithm=0-15,20.",
)


def _load(paths: list[str]) -> handcrafted.Bank:
    """The bank at the paths, gated when the flags ask for it."""
    if not paths:
        raise ValueError("give at least one file or folder of presets")
    synth = _SYNTH.value

    # Loaded only when there is a file that the plug-in has to read.
    plugin: Any = functools.cache(lambda: engines.get(synth))
    bank = reading.load(
        paths,
        spaces.get(synth),
        None
        if engines.embedded(synth)
        else lambda data, kind: plugin().read_state(data, kind),
    )
    if not _GATE.value:
        return bank
    settings = engines.RenderSettings(sample_rate=_SAMPLE_RATE.value)
    return handcrafted.gate(
        bank,
        engines.get(synth, settings),
        workers=_WORKERS.value or engines.usable_cores(),
        progress=sys.stderr.isatty(),
    )


def _fetch(paths: list[str]) -> None:
    """Downloads a published bank into the cache and checks its checksum."""
    if paths:
        raise ValueError(f"fetch takes no paths, got {paths[0]!r}")
    source = SOURCES[_SOURCE.value]
    folder = pathlib.Path(_CACHE.value or download.cache_folder() / "presets")
    path = folder / source.file
    record = download.record_of(path)
    known = record.is_file()
    print(f"{_SOURCE.value}: {source.note}")
    print(f"  from:    {' or '.join(source.urls)}")
    print(f"  licence: {source.licence}")
    digest = download.fetch(
        *source.urls, path=path, progress=sys.stderr.isatty()
    )
    if known:
        how = "as recorded at the first download"
    elif record.is_file():
        how = "recorded now: no published one is known to compare it with"
    else:
        how = f"not known before, and not recorded: {record} cannot be written"
    print(f"  sha256:  {digest} ({how})")
    print(f"  file:    {path}")
    bank = reading.load(path, spaces.get("dexed"))
    print(f"{bank.report}\n\nuse it with --config.presets={path}")


def _inspect(paths: list[str]) -> None:
    bank = _load(paths)
    print(bank.report)
    if not _GATE.value:
        print("(not rendered: --gate also drops silent and too loud ones)")
    rows = list(zip(bank.names, bank.sources, strict=True))[: _LIST.value]
    if rows:
        print("\n" + tabulate.tabulate(rows, ("name", "source")))


def _where(bank: handcrafted.Bank, text: str) -> np.ndarray:
    """Rows of the presets with some categories of a parameter."""
    name, _, categories = text.partition("=")
    column = bank.space.index(name)
    if column not in bank.space.categorical:
        raise ValueError(f"--where={text}: {name} has no categories")
    wanted = cli.ranges("where", categories)
    rows = np.flatnonzero(np.isin(bank.presets[:, column], wanted))
    if not len(rows):
        raise ValueError(f"--where={text}: there is no such preset")
    return rows


def _export(paths: list[str]) -> None:
    if not _OUTPUT.value:
        raise ValueError("export needs --output=FILE.syx or FILE.json")
    bank = _load(paths)
    if _NAMES.value:
        missing = sorted(set(_NAMES.value) - set(bank.names))
        if missing:
            raise ValueError(
                f"no preset named {missing[0]!r}; see launch.presets inspect "
                "--list=1000"
            )
        rows = [i for i, name in enumerate(bank.names) if name in _NAMES.value]
        bank = bank.take(rows)
    if _WHERE.value:
        bank = bank.take(_where(bank, _WHERE.value))
    written = writing.save(_OUTPUT.value, bank.presets, bank.names, bank.space)
    shown = str(written[0])
    if len(written) > 1:
        shown += f" ... {written[-1]}"
    print(f"{len(bank)} presets written to {shown}")


def _fit(paths: list[str]) -> None:
    if not _OUTPUT.value:
        raise ValueError("fit needs --output=FILE.npz")
    bank = _load(paths)
    presets, space = bank.presets, bank.space
    parts = splits.split(presets, _SEED.value)
    train, test = presets[parts["train"]], presets[parts["test"]]
    if not len(train) or not len(test):
        raise ValueError(f"{len(bank)} presets are too few to fit and to test")
    near = splits.near_copies(test, train)
    prior = priors.fit(train, space)
    # Backing off by far more presets than there are, nothing depends.
    alone = priors.fit(train, space, components=1, smoothing=1e12)
    rows = [
        (name, p.log_prob(test).mean(), p.log_prob(test[~near]).mean())
        for name, p in (("fitted", prior), ("independent", alone))
    ]
    print(
        f"{len(train):,} training presets, {len(test):,} held out, of which "
        f"{near.sum():,} near copies (two parameters differ at most)\n"
    )
    head = ("mean log-likelihood, nats", "held out", "without near copies")
    print(tabulate.tabulate(rows, head, floatfmt=".1f"))
    path = pathlib.Path(_OUTPUT.value)
    files.write_atomically(path, content := priors.to_bytes(prior))
    print(
        f"\nwrote {path}, {len(content) / 1000:.0f} kB, digest "
        f"{priors.digest(prior)}"
    )


_COMMANDS = {
    "fetch": _fetch,
    "inspect": _inspect,
    "export": _export,
    "fit": _fit,
}


def main(words: list[str]) -> None:
    """Runs the command."""
    if not words or words[0] not in _COMMANDS:
        given = repr(words[0]) if words else "nothing"
        raise ValueError(f"give {', '.join(_COMMANDS)}, not {given}")
    _COMMANDS[words[0]](words[1:])


if __name__ == "__main__":
    cli.run(main, arguments=True)
