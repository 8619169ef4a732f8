"""Attempts to read damaged files, by kind: right, or one clear error.

A kind is a function: given an empty folder, it writes whole files there, reads
them, and returns the attempt, a function that damages one at random, reads it
and says which of the two it was. Anything else is raised.

An error is clear when it is of a type that commands tell in one line, names
the file and is not endless.
"""

import importlib.util
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from datasets import files, limits, nsynth, sounds
from datasets.presets import bank as handcrafted
from datasets.presets import reading
from datasets.weights import keras, pickles
from launch.benchmark import mutations, samples
from launch.runs import build, checkpoints, metrics
from proxy import spaces
from proxy.published import encoders as published

RIGHT, ERROR, ELSE = "right", "one clear error", "anything else"
Attempt = Callable[[random.Random], str]
SMALL = limits.Budget(bytes=2**20, voices=2_000, seconds=5.0)
_LONGEST = 4_000


class WrongError(Exception):
    """What was read is not what was written, or its error is not clear."""


def clear(error: Exception, *names: Any) -> str:
    """`ERROR`, if the error names one of these and is not too long."""
    text = str(error)
    if len(text) > _LONGEST or not any(str(name) in text for name in names):
        raise WrongError(f"unclear: {text[:300]}") from error
    return ERROR


def same(found: Any, wanted: Any) -> str:
    """`RIGHT`, if two trees of arrays are equal."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        raise WrongError("other things were read than written")
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    if not all(np.array_equal(*pair) for pair in pairs):
        raise WrongError("other numbers were read than written, silently")
    return RIGHT


def _bank(bank: handcrafted.Bank) -> str:
    """`RIGHT`: presets of the space, whatever the file was."""
    space = spaces.get("dexed")
    if not (
        np.array_equal(space.snap(bank.presets), bank.presets)
        and len(bank) == len(bank.names) == len(bank.sources) > 0
        and len(str(bank.report)) < 2 * _LONGEST
    ):
        raise WrongError("no presets of the space were read")
    return RIGHT


def banks(folder: pathlib.Path) -> Attempt:
    """Banks in every format, and folders with a damaged one."""
    space = spaces.get("dexed")
    whole = samples.banks()

    def read(path: pathlib.Path) -> str:
        return _bank(reading.load(path, space, budget=SMALL))

    for name, content in whole.items():
        (folder / "whole").mkdir(exist_ok=True)
        (folder / "whole" / name).write_bytes(content)
        read(folder / "whole" / name)

    def attempt(draw: random.Random) -> str:
        for file in folder.glob("*.*"):
            file.unlink()
        name = draw.choice(sorted(whole))
        path = folder / name
        path.write_bytes(mutations.damage(whole[name], draw))
        try:
            outcome = read(path)
        except ValueError as error:
            outcome = clear(error, path)
        # It does not keep the others of its folder from being read.
        (folder / "fine.syx").write_bytes(whole["voice.syx"])
        read(folder)
        return outcome

    return attempt


def audio(folder: pathlib.Path) -> Attempt:
    """Sounds to be matched, and notes of NSynth."""
    rate = samples.RATE
    for suffix in samples.SUFFIXES:
        path = folder / f"whole{suffix}"
        path.write_bytes(samples.sound(suffix))
        sounds.read(path, rate)

    def attempt(draw: random.Random) -> str:
        suffix = draw.choice(samples.SUFFIXES)
        path = folder / f"a{suffix}"
        path.write_bytes(mutations.damage(samples.sound(suffix), draw))
        outcome = RIGHT
        try:
            found = sounds.read(path, rate).audio
            if not (
                np.isfinite(found).all() and rate <= len(found) <= 5 * rate
            ):
                raise WrongError("no sound was read")
        except ValueError as error:
            outcome = clear(error, path)
        note = nsynth.Note("a", path, 60, 100, "bass", "acoustic")
        try:
            clips = nsynth.load([note], rate, rate)
            if not np.isfinite(clips).all() or clips.shape != (1, rate):
                raise WrongError("no clip was read")
        except ValueError as error:
            clear(error, path)
        return outcome

    return attempt


def _dataset(folder: pathlib.Path, decoded: bool) -> Attempt:
    wanted = samples.dataset(folder / "set")
    whole = mutations.Folder(folder / "set")

    def attempt(draw: random.Random) -> str:
        whole.spoil(draw, lambda file: (".cache" in file.parts) == decoded)
        try:
            found = samples.columns(whole.path)
        except files.ShardError as error:
            if decoded:  # what can be made anew is
                raise
            return clear(error, whole.path)
        return same({k: np.array(v) for k, v in found.items()}, wanted)

    return attempt


def shards(folder: pathlib.Path) -> Attempt:
    """Shards of a data set, and the files beside them."""
    return _dataset(folder, False)


def columns(folder: pathlib.Path) -> Attempt:
    """What was decoded from them; damage is mended without a word."""
    return _dataset(folder, True)


def restored(path: pathlib.Path, read_only: bool) -> tuple[int, str]:
    """The step that a run goes on from, and what is in its checkpoint."""
    with checkpoints.manager(path, read_only=read_only) as saved:
        step = saved.latest_step()
        if step is None:
            raise WrongError("no checkpoint was found")
        wanted = samples.state(step)
        same(checkpoints.restore(saved, wanted, step), wanted)
        return step, same(checkpoints.restore_raw(saved, step), wanted)


def saved(folder: pathlib.Path) -> Attempt:
    """Checkpoints: looked at, then gone on from."""
    samples.run(folder / "run")
    whole = mutations.Folder(folder / "run")
    inside = whole.path / "checkpoints"

    def attempt(draw: random.Random) -> str:
        spoiled = whole.spoil(draw, lambda file: inside in file.parents)
        damaged = inside / spoiled.relative_to(inside).parts[0]
        try:
            step, outcome = restored(whole.path, True)
        except ValueError as error:
            # If its digests are damaged, they accuse another file.
            outcome = clear(error, damaged)
            step, _ = restored(whole.path, False)
            if step != (8 if damaged.name == "12" else 12):
                raise WrongError(f"goes on from step {step}") from error
        else:
            if step != 12:
                raise WrongError(f"step {step} was read")
        return outcome

    return attempt


def weights(folder: pathlib.Path) -> Attempt:
    """Published weights in PyTorch's format."""
    path, space = folder / "x.ckpt", spaces.get(samples.SYNTH)
    wanted = samples.weights(path)
    content = path.read_bytes()
    same(pickles.read_lightning(path), wanted)
    published.from_published(samples.ENCODER, space, wanted)

    def attempt(draw: random.Random) -> str:
        path.write_bytes(mutations.damage(content, draw))
        try:
            found = pickles.read_lightning(path)
        except ValueError as error:
            return clear(error, path)
        # What no checksum covers, e.g. the names, is held against the encoder.
        try:
            published.from_published(samples.ENCODER, space, found)
        except ValueError as error:
            return clear(error, "")
        return same(found, wanted)

    return attempt


def hdf5(folder: pathlib.Path) -> Attempt:
    """Published weights in Keras's format; HDF5 has no checksums."""
    path = folder / "x.h5"
    wanted = samples.hdf5(path)
    content = path.read_bytes()
    same(keras.read(path), wanted)

    def attempt(draw: random.Random) -> str:
        path.write_bytes(mutations.damage(content, draw))
        try:
            keras.read(path)
        except ValueError as error:
            return clear(error, path)
        return RIGHT

    return attempt


def configs(folder: pathlib.Path) -> Attempt:
    """A run's config and metrics: other bytes, or other fields."""
    samples.run(folder / "run")
    whole = mutations.Folder(folder / "run")
    config = folder / "run" / "config.json"
    mine = {config, folder / "run" / metrics.FILE}

    def attempt(draw: random.Random) -> str:
        if draw.random() < 0.5:
            whole.spoil(draw, mine.__contains__)
        else:
            whole.restore()
            content = json.loads(whole.files[config])
            mutations.change(content, draw)
            config.write_text(json.dumps(content))
        try:
            read = checkpoints.read_config(whole.path)
            list(metrics.read(whole.path))
        except ValueError as error:
            return clear(error, whole.path)
        try:
            build.encoder(read)
        except ValueError as error:  # a name that is not known
            return clear(error, read.synth, read.encoder, "unknown")
        return RIGHT

    return attempt


KINDS = {
    "banks": banks,
    "sounds": audio,
    "shards": shards,
    "columns": columns,
    "checkpoints": saved,
    "weights": weights,
    "configs": configs,
}
if importlib.util.find_spec("h5py"):
    KINDS["HDF5"] = hdf5
