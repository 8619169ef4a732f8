"""Audio models at work: on every core or accelerator, with the same result.

How sounds are divided never depends on how many cores or devices there are,
so neither do the embeddings, to the last bit.
"""

import concurrent.futures
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from datasets import engines
from proxy import audio

# Clips that a core of a CPU embeds in one call: few enough for a small batch
# to keep several cores busy, enough to make calls cheap.
PART = 8

Embed = Callable[[np.ndarray | jax.Array], Any]


def embedder(
    model: audio.AudioModel,
    variables: Any,
    *,
    threads: int = 0,
    **options: Any,
) -> Embed:
    """Compiles an audio model for this machine.

    On a CPU, XLA divides single operations among cores, and most of those of
    an audio model are too small for that: here each core embeds clips of its
    own instead. Elsewhere a batch goes to one accelerator whole, the next
    batch to the next one.

    Args:
      model: the audio model.
      variables: weights of the model, `{}` for a model without.
      threads: cores to use of a CPU, 0 for all.
      **options: options of the model's `embed`.

    Returns:
      `[batch, samples]` sounds to `[batch, embedding]`. On a CPU it returns
      a NumPy array; elsewhere it does not wait for its result, so that a
      caller may hand over one batch for each device.
    """

    def embed(variables: Any, sounds: Any) -> Any:
        return model.embed(variables, sounds, **options)

    if jax.default_backend() != "cpu":
        return _by_device(jax.jit(embed), variables)
    alone = jax.jit(
        embed, compiler_options={"xla_cpu_multi_thread_eigen": False}
    )
    pool = concurrent.futures.ThreadPoolExecutor(
        engines.num_workers(threads), "embed"
    )
    return _by_core(alone, jax.device_put(variables), pool)


def _by_core(
    compiled: Callable[[Any, Any], Any],
    variables: Any,
    pool: concurrent.futures.Executor,
) -> Embed:
    def part(sounds: np.ndarray) -> np.ndarray:
        rows = len(sounds)
        if rows < PART:
            # Filled up, so that it need not be compiled again.
            sounds = np.pad(sounds, ((0, PART - rows), (0, 0)))
        return np.asarray(compiled(variables, sounds))[:rows]

    def embed(sounds: np.ndarray | jax.Array) -> np.ndarray:
        sounds = np.asarray(sounds)
        # An empty batch is one empty part, so that the result has its shape.
        starts = range(0, max(len(sounds), 1), PART)
        parts = [sounds[start : start + PART] for start in starts]
        return np.concatenate(list(pool.map(part, parts)))

    return embed


def _by_device(compiled: Callable[[Any, Any], Any], variables: Any) -> Embed:
    turns = itertools.cycle(
        [(d, jax.device_put(variables, d)) for d in jax.local_devices()]
    )

    def embed(sounds: np.ndarray | jax.Array) -> Any:
        device, placed = next(turns)
        return compiled(placed, jax.device_put(sounds, device))

    return embed


def in_flight() -> int:
    """Batches that an `embedder` works on at once."""
    return 1 if jax.default_backend() == "cpu" else jax.local_device_count()
