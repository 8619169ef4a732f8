"""Rows of a data set: presets, drawn or given, and their sounds.

A synthetic preset comes from a counter-based stream: NumPy's Philox keyed by
(seed, split), its counter set to (row, attempt). A prior makes presets of its
numbers. A preset that fails the level gate is drawn again with the next
attempt.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from datasets import engines, files
from proxy.priors import Prior, Uniform
from proxy.space import ParameterSpace

MAX_ATTEMPTS = 1024
# Attempts at a row that are drawn at a time.
_ATTEMPTS = 16


@functools.cache
def _stream(split: str) -> int:
    digest = hashlib.sha256(split.encode()).digest()
    return int.from_bytes(digest[:8], "little")


def draw(
    space: ParameterSpace,
    seed: int,
    split: str,
    rows: Sequence[int],
    attempts: Sequence[int] = (0,),
    prior: Prior | None = None,
) -> Float[np.ndarray, "rows attempts parameters"]:
    """Draws synthetic presets, each a pure function of its coordinates.

    Args:
      space: of the presets.
      seed: seed of the data set.
      split: name of the split; splits are independent of each other.
      rows: numbers of the rows in the split.
      attempts: numbers of the draws at each row.
      prior: their distribution; None for the paper's, `Uniform(space)`.

    Returns:
      float32 presets.
    """
    prior = Uniform(space) if prior is None else prior
    uniform = np.empty((len(rows), len(attempts), prior.uniforms), np.float32)
    key = np.array([seed, _stream(split)], np.uint64)
    for i, row in enumerate(rows):
        for j, attempt in enumerate(attempts):
            # The lowest word counts the numbers drawn.
            counter = np.array([0, attempt, row, 0], np.uint64)
            bits = np.random.Philox(key=key, counter=counter)
            np.random.Generator(bits).random(
                dtype=np.float32, out=uniform[i, j]
            )
    return np.asarray(prior.from_uniform(uniform), np.float32)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Presets that are heard, and what it took to find them.

    Attributes:
      presets: hard presets.
      audio: sounds of the presets.
      redrawn: numbers of presets that were drawn again, by reason.
      aside: (row, attempt, reason) of presets that the engine failed to
        render.
    """

    presets: Float[np.ndarray, "rows parameters"]
    audio: Float[np.ndarray, "rows samples"]
    redrawn: dict[str, int]
    aside: list[tuple[int, int, str]]


def render_rows(
    renderer: engines.Renderer,
    seed: int,
    split: str,
    rows: Sequence[int],
    prior: Prior | None = None,
) -> Rows:
    """Draws, as `draw` does, and renders synthetic rows.

    Returns:
      The first draw of each row that passes the level gate.

    Raises:
      ShardError: when a row fails the gate `MAX_ATTEMPTS` times.
    """
    space = renderer.space
    presets = np.empty((len(rows), space.num_used), np.float32)
    audio = np.empty((len(rows), renderer.settings.samples), np.float32)
    redrawn = collections.Counter[str]()
    aside: list[tuple[int, int, str]] = []
    left, last = list(range(len(rows))), "silent"
    for first in range(0, MAX_ATTEMPTS, _ATTEMPTS):
        if not left:
            break
        # Several attempts at a time: most are known to be silent unheard.
        attempts = range(first, first + _ATTEMPTS)
        drawn = draw(
            space, seed, split, [rows[i] for i in left], attempts, prior
        )
        values = space.to_plugin(drawn.reshape(-1, space.num_used))
        silent = renderer.surely_silent(values).reshape(drawn.shape[:2])
        values = values.reshape(*drawn.shape[:2], -1)
        tried = dict.fromkeys(range(len(left)), -1)
        kept = []
        while tried:
            # The next attempt at each row that has to be rendered.
            for place, before in list(tried.items()):
                heard = np.flatnonzero(~silent[place, before + 1 :])
                skipped = int(heard[0]) if len(heard) else None
                redrawn["silent"] += len(silent[place, before + 1 :][:skipped])
                if skipped is None:
                    del tried[place]
                else:
                    tried[place] = before + 1 + skipped
            if not tried:
                break
            places, columns = list(tried), list(tried.values())
            sounds, faults = renderer.render_batch(values[places, columns])
            for place, attempt, sound, fault in zip(
                places, columns, sounds, faults, strict=True
            ):
                reason = fault or engines.check_level(sound, renderer.settings)
                if reason is None:
                    presets[left[place]] = drawn[place, attempt]
                    audio[left[place]] = sound
                    kept.append(place)
                    del tried[place]
                    continue
                redrawn[reason] += 1
                last = reason
                if fault:
                    aside.append((rows[left[place]], attempts[attempt], fault))
        left = [i for place, i in enumerate(left) if place not in kept]
    if left:
        raise files.ShardError(
            f"space {space.name!r}: row {rows[left[0]]} of split {split!r} was "
            f"drawn {MAX_ATTEMPTS} times and never passed the level gate "
            f"(last: {last}); check the space's sampling intervals, and the "
            "render settings min_rms and max_rms"
        )
    return Rows(presets, audio, dict(+redrawn), aside)


def render_given(
    renderer: engines.Renderer,
    presets: Float[np.ndarray, "rows parameters"],
    names: Sequence[str],
) -> Rows:
    """Renders given hard presets.

    Returns:
      The presets and their sounds.

    Raises:
      ShardError: when one of them fails the level gate; names it.
    """
    sounds, faults = renderer.render_batch(renderer.space.to_plugin(presets))
    for name, sound, fault in zip(names, sounds, faults, strict=True):
        reason = fault or engines.check_level(sound, renderer.settings)
        if reason is not None:
            raise files.ShardError(
                f"hand-crafted preset {name!r}: {reason}; filter the bank "
                "with the render settings of this data set first"
            )
    return Rows(np.asarray(presets, np.float32), sounds, {}, [])
