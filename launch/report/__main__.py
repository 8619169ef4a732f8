"""Makes a page to read and listen to, from runs that were evaluated.

    python -m launch.report runs/* --out site/

The page is static and needs no network: open `site/index.html` from disk, or
put the folder on GitHub Pages. It shows what `launch.evaluate` and
`launch.rank` wrote into the runs below the folders given: sounds and
distances of the matching runs, retrieval of the proxies, rankings of audio
models. What is missing there is left out, and said.
"""

import pathlib

from absl import flags

from launch import cli
from launch.report import page

_OUT = flags.DEFINE_string("out", "site", "Folder of the page.")
_TITLE = flags.DEFINE_string(
    "title", "Neural synthesizer proxies", "Its title."
)


def main(words: list[str]) -> None:
    """Runs the command."""
    if not words:
        raise ValueError("name runs: python -m launch.report runs/* --out site")
    out = pathlib.Path(_OUT.value)
    written = page.build(page.find_runs(words), out, _TITLE.value)
    print(f"wrote {written}")


if __name__ == "__main__":
    cli.run(main, arguments=True)
