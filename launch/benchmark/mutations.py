"""Damage to files, drawn at random: what disks, networks and people do."""

import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any


def damage(content: bytes, draw: random.Random) -> bytes:
    """Flips bits, cuts, repeats, drops or overwrites, at a few places."""
    kind = draw.choice(("flip", "flip", "cut", "repeat", "drop", "write"))
    if kind == "cut":
        return content[: draw.choice((0, draw.randrange(len(content) + 1)))]
    spoiled = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at = draw.randrange(max(len(spoiled), 1))
        # Headers are where it matters.
        at %= draw.choice((len(spoiled) + 1, 256))
        length = draw.randint(1, 64)
        if kind == "flip" and at < len(spoiled):
            spoiled[at] ^= 1 << length % 8
        elif kind == "repeat":
            spoiled[at:at] = spoiled[at : at + length]
        elif kind == "drop":
            del spoiled[at : at + length]
        elif kind == "write":
            extreme = bytes([draw.choice((0, 127, 128, 255))]) * (length % 8)
            spoiled[at : at + 8] = draw.choice((draw.randbytes(8), extreme))
    return bytes(spoiled)


# In place of a field's value.
_OTHERS: tuple[Any, ...] = (
    *(None, True, -1, 0, 0.5, 2**70, float("nan"), float("inf"), "", "x"),
    *("../x", [], [1], [1, "x"], {}, {"a": 1}, "x" * 5000),
)


def change(content: dict[str, Any], draw: random.Random) -> None:
    """Drops a field at any depth, or gives it another value or name."""
    name = draw.choice(sorted(content))
    inner = content[name]
    if isinstance(inner, dict) and inner and draw.random() < 0.7:
        change(inner, draw)
    elif draw.random() < 0.4:
        del content[name]
    elif draw.random() < 0.1:
        content[name + "x"] = content.pop(name)
    else:
        content[name] = draw.choice(_OTHERS)


class Folder:
    """A folder of which one file at a time is damaged.

    Args:
      path: the folder, whole.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.files = {
            file: file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }

    def restore(self) -> None:
        """Makes it what it was."""
        shutil.rmtree(self.path)
        for file, content in self.files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def spoil(
        self,
        draw: random.Random,
        among: Callable[[pathlib.Path], bool] = lambda file: True,
    ) -> pathlib.Path:
        """Damages one of its files, all others being whole; returns which."""
        self.restore()
        file = draw.choice([file for file in self.files if among(file)])
        file.write_bytes(damage(self.files[file], draw))
        return file
