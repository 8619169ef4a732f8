"""Gradients of Dexed's engine: its smooth twin's, and the pretrained proxy's.

Both are compared with what the engine does: a byte of a voice is moved up and
down, both are rendered and embedded, and the distances to a target are
subtracted. The cosine of two gradients is that of one group of parameters of
one voice.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from datasets.engines import RenderSettings, dexed
from datasets.presets import reading
from proxy import pretrained, spaces, splits
from proxy.audio import transport
from proxy.synths import dx7, dx7_smooth, dx7_tables, output

# Bytes of an operator, and how far they are moved; feedback belongs to all.
_GROUPS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "output levels": (("output_level",), 3),
    "envelope levels": (tuple(f"eg_level_{i}" for i in range(1, 5)), 4),
    "envelope rates": (tuple(f"eg_rate_{i}" for i in range(1, 5)), 4),
    "feedback": (("feedback",), 1),
    "coarse ratios": (("f_coarse",), 1),
    "fine ratios": (("f_fine",), 2),
    "detuning": (("osc_detune",), 1),
}
_SMOOTH = ("output levels", "envelope levels", "envelope rates", "feedback")
# Voices that are rendered at once, and whose gradients are computed at once.
_BATCH, _GRADIENTS = 256, 16


def _names(group: str) -> list[str]:
    suffixes, _ = _GROUPS[group]
    if group == "feedback":
        return list(suffixes)
    return [f"op{n}_{suffix}" for n in range(1, 7) for suffix in suffixes]


def _timing(settings: RenderSettings) -> dict[str, Any]:
    return {
        "note": settings.note,
        "velocity": settings.velocity,
        "hold": settings.hold,
        "duration": settings.duration - settings.note_on,
        "sample_rate": settings.sample_rate,
    }


def _finished(
    sound: Float[Array, "batch samples"], settings: RenderSettings
) -> Float[Array, "batch samples"]:
    """The engine's sound as a data set has it."""
    start = round(settings.note_on * settings.sample_rate)
    sound = jnp.pad(sound * dx7.GAIN, ((0, 0), (start, 0)))
    sound = output.dc_block(sound[:, : settings.samples], settings.sample_rate)
    fade = round(settings.fade_out * settings.sample_rate)
    return output.fade_out(sound, fade)


def _embed(
    voices: UInt8[np.ndarray, "voices bytes"], settings: RenderSettings
) -> Float[np.ndarray, "voices embedding"]:
    """What the engine's sounds are embedded as."""

    @jax.jit
    def embed(voices: Array) -> Array:
        sound = dx7.render(voices, **_timing(settings))
        return transport.transport640(_finished(sound, settings))

    size = min(_BATCH, len(voices))
    padded = np.pad(voices, ((0, -len(voices) % size), (0, 0)), "edge")
    parts = [embed(padded[i : i + size]) for i in range(0, len(padded), size)]
    return np.concatenate(parts)[: len(voices)]


def _distances(
    embedding: Array | np.ndarray, target: Array | np.ndarray
) -> Array:
    return jnp.abs(jnp.asarray(embedding) - target).mean(-1)


def _of_engine(
    voices: UInt8[np.ndarray, "voices bytes"],
    target: Float[np.ndarray, "voices embedding"],
    columns: np.ndarray,
    steps: np.ndarray,
    settings: RenderSettings,
) -> Float[np.ndarray, "voices columns"]:
    """Differences of distances, of a step of each byte."""
    ends = []
    for sign in (-1, 1):
        moved = np.repeat(voices[:, None], len(columns), 1).astype(int)
        places = np.arange(len(columns)), columns
        moved[:, *places] = np.clip(
            moved[:, *places] + sign * steps, 0, dx7_tables.LARGEST[columns]
        )
        flat = moved.reshape(-1, moved.shape[-1]).astype(np.uint8)
        embedding = _embed(flat, settings).reshape(*moved.shape[:2], -1)
        distances = _distances(embedding, target[:, None])
        ends.append((np.asarray(distances), moved[:, *places]))
    (low, first), (high, last) = ends
    return (high - low) / (last - first)


def _of_twin(
    voices: UInt8[np.ndarray, "voices bytes"],
    target: Float[np.ndarray, "voices embedding"],
    settings: RenderSettings,
) -> Float[np.ndarray, "voices bytes"]:
    @jax.jit
    @jax.grad
    def gradient(change: Array, voices: Array, target: Array) -> Array:
        sound = dx7_smooth.render(voices, change, **_timing(settings))
        embedding = transport.transport640(_finished(sound, settings))
        return _distances(embedding, target).sum()

    parts = []
    for start in range(0, len(voices), _GRADIENTS):
        part = voices[start : start + _GRADIENTS]
        still = jnp.zeros(part.shape)
        parts.append(gradient(still, part, target[start : start + _GRADIENTS]))
    return np.concatenate(parts)


def _of_proxy(
    presets: Float[np.ndarray, "voices parameters"],
    target: Float[np.ndarray, "voices embedding"],
) -> Float[np.ndarray, "voices width"]:
    encoder, variables = pretrained.load("dexed")

    @jax.jit
    @jax.grad
    def gradient(relaxed: Array) -> Array:
        embedding = encoder.apply(variables, relaxed)
        assert isinstance(embedding, jax.Array)
        return _distances(embedding, target).sum()

    relaxed = spaces.get("dexed").to_relaxed(presets.astype(np.float32))
    return np.asarray(gradient(jnp.asarray(relaxed)))


def cosines(
    a: Float[np.ndarray, "voices parameters"],
    b: Float[np.ndarray, "voices parameters"],
) -> Float[np.ndarray, " voices"]:
    """Cosines of two gradients; zero where either is."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.where(norms > 0, norms, 1)


def run(
    voices: str, seconds: float = 0.0, batch: int = 256
) -> list[dict[str, Any]]:
    """Compares gradients of the distance to another voice's embedding.

    Args:
      voices: a file of DX7 voices; of its test part some are drawn.
      seconds: not used: every voice is measured once.
      batch: number of voices.

    Returns:
      A row for each group of parameters: the number of voices whose distance
      it changes; mean, median and share above zero of the cosines with the
      engine's differences, of the twin's gradient, of the proxy's, and of the
      differences of another voice as what chance gives. None where there is
      none.

    Raises:
      ValueError: fewer than two voices of the file are held out.
    """
    space = spaces.get("dexed")
    about = pretrained.read("dexed")[1]
    settings = RenderSettings(
        **{"sample_rate": transport.SAMPLE_RATE, **json.loads(about["render"])}
    )
    bank = reading.load(voices, space).presets
    rows = splits.split(bank)["test"]
    rows = np.random.default_rng(0).permutation(rows)[:batch]
    presets = bank[rows]
    own = dexed.to_voices(space.to_plugin(presets.astype(np.float32)), space)
    if len(own) < 2:
        raise ValueError(f"{voices}: fewer than two voices are held out")
    target = np.roll(_embed(own, settings), 1, axis=0)
    twin, proxy = _of_twin(own, target, settings), _of_proxy(presets, target)
    relaxed = [space.names[i] for i in space.noncategorical]

    table = []
    for group, (_, step) in _GROUPS.items():
        names = _names(group)
        columns = np.array([dexed.PARAMETERS[name][0] for name in names])
        steps = np.full(len(columns), step)
        engine = _of_engine(own, target, columns, steps, settings)
        kept = np.linalg.norm(engine, axis=1) > 1e-6
        if group == "feedback":
            kept &= own[:, columns[0]] > 0
        places = [relaxed.index(name) for name in names]
        ways = {
            "twin": twin[:, columns],
            "proxy": proxy[:, places] / dx7_tables.LARGEST[columns],
            "chance": np.roll(engine, 1, axis=0),
        }
        row: dict[str, Any] = {"parameters": group, "voices": int(kept.sum())}
        for way, gradient in ways.items():
            told = kept.any() and (way != "twin" or group in _SMOOTH)
            found = cosines(gradient[kept], engine[kept])
            for name, figure in (
                ("mean", np.mean),
                ("median", np.median),
                ("above 0", lambda x: np.mean(x > 0)),
            ):
                row[f"{way}: {name}"] = float(figure(found)) if told else None
        table.append(row)
    return table
