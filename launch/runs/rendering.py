"""Many presets to sounds, and many sounds to distances."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float

from datasets import engines, loader
from matching import distances

# Presets rendered in one call.
_BLOCK = 256


def render(
    renderer: engines.Renderer,
    presets: Float[np.ndarray, "batch parameters"],
    *,
    notes: Iterable[int] | None = None,
    workers: int = 0,
    label: str = "",
) -> tuple[Float[np.ndarray, "batch samples"], int]:
    """Renders presets with the real engine.

    Args:
      renderer: the engine.
      presets: hard presets, snapped to their grids.
      notes: MIDI note of each, that of the settings when left out.
      workers: rendering workers, 0 for one per core.
      label: label of a progress bar, none when empty.

    Returns:
      Clips, silent where the engine failed or gave no finite sound, and how
      many those are.
    """
    values = np.asarray(renderer.space.to_plugin(presets), np.float32)
    given = None if notes is None else list(notes)
    clips = np.zeros((len(presets), renderer.settings.samples), np.float32)
    failed = 0
    for start in tqdm.trange(
        0, len(presets), _BLOCK, desc=label, disable=not label, leave=False
    ):
        part = slice(start, start + _BLOCK)
        sounds, reasons = renderer.render_batch(
            values[part],
            given and given[part],
            workers=engines.num_workers(workers),
        )
        fine = np.array([r is None for r in reasons]) & np.isfinite(sounds).all(
            axis=1
        )
        clips[part][fine] = sounds[fine]
        failed += int((~fine).sum())
    return clips, failed


def measure(
    predictions: Float[np.ndarray, "batch samples"],
    targets: Float[np.ndarray, "batch samples"],
    sample_rate: int,
    chosen: tuple[str, ...] = ("a_mean",),
    *,
    at_once: int = 32,
    label: str = "",
) -> dict[str, Float[np.ndarray, " batch"]]:
    """Distances of sounds from their targets, a few at a time.

    Args:
      predictions: clips in [-1, 1].
      targets: as many clips of the same length.
      sample_rate: sample rate, in Hz.
      chosen: names from `distances.names()`.
      at_once: clips of a call, so that memory does not grow with their number.
      label: label of a progress bar, none when empty.

    Returns:
      `[batch]` by name.
    """

    def work(one, other):
        return distances.measure(
            jnp.asarray(one),
            jnp.asarray(other),
            sample_rate=sample_rate,
            chosen=chosen,
        )

    found = loader.map_blocks(
        work, predictions, targets, size=at_once, label=label
    )
    return {name: found[name] for name in chosen}
