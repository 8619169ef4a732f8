"""The commands that documents and examples show are ones that exist."""

import pathlib
import re
import shlex

import pytest

from tests import commands as launched
from tests.test_configs import read

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ("proxy", "matching", "datasets", "launch", "configs")
PAGES = sorted(
    [ROOT / "README.md", *(p for r in ROOMS for p in (ROOT / r).rglob("*.md"))]
)
FILES = [*PAGES, *sorted((ROOT / "launch" / "clusters").glob("*.[sy]*"))]


def commands():
    for path in FILES:
        text = path.read_text()
        if path.suffix == ".yaml":  # a list of words
            text = re.sub(r"^\s*#.*$", "", text, flags=re.M)
            lists = re.findall(r"command:\n((?:\s+- .*\n)+)", text)
            found = [
                " ".join(w.split("- ", 1)[1] for w in block.splitlines())
                for block in lists
            ]
        else:
            text = text.replace("\\\n", " ")
            found = re.findall(r"python -m launch\.[^`\n]*", text)
            found += [
                c.replace("\n", " ")
                for c in re.findall(r"`(python -m launch\.[^`]*\n[^`]*)`", text)
            ]
        for line in found:
            yield pytest.param(line, id=f"{path.name}: {line[:40]}")


def test_there_are_some():
    assert len(list(commands())) >= 8
    assert {path.suffix for path in FILES} == {".md", ".sbatch", ".yaml"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_link_to_what_is_there(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    for link in (link for link in links if "://" not in link):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("line", list(commands()))
def test_a_shown_command_exists_and_takes_its_flags(line):
    words = shlex.split(re.split(" [|&]+ |; ", line)[0], comments=True)
    module = words[words.index("-m") + 1]
    known = launched.flag_names(module)
    config = None
    for word in shlex.split(line.replace("--config ", "--config=")):
        if word.startswith("--config=configs/"):
            path = ROOT / word.split("=")[1].split(":")[0]
            if "def get_config" in path.read_text():
                config = read(path)[1]
    for word in words:
        if not word.startswith("--"):
            continue
        name = word[2:].split("=")[0]
        if name.startswith("config."):
            field = config
            assert field is not None, line
            for part in name.split(".")[1:]:
                assert part in field, word
                field = field[part]
        else:
            # A switch is turned off with --noNAME.
            there = name in known or name.removeprefix("no") in known
            assert there, f"{module} has no --{name}"
