"""How fast rows come from shards to the devices."""

import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from datasets import engines, loader, shards
from launch import devices

_ROWS = 65_536
_BATCH = 512


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Rows per second, over calls of `work` that return how many rows."""
    work()
    rows, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        rows += work()
    return rows / (time.perf_counter() - started)


def run(seconds: float = 3.0) -> list[dict[str, Any]]:
    """Measures rows per second, of presets and embeddings as Dexed has them.

    A row is a Dexed preset (100 numbers) and an mn04 embedding (192). The
    limit is the memory's: rows copied in order, which costs one read and one
    write of each byte, as gathering them does.

    Args:
      seconds: time for each of the measurements.

    Returns:
      One row a measurement: "what", "per second", "unit", "GB/s" read, and
      "of limit", the share of the limit in percent.
    """
    spec = shards.DataSpec(
        name="benchmark",
        synth="dexed",
        synth_version="",
        space="",
        parameters=100,
        audio_model="mn04",
        audio_weights="",
        embedding=192,
        settings=engines.RenderSettings(),
        seed=0,
        splits=(("train", _ROWS),),
        shard_size=_ROWS // 8,
        embed_batch=64,
    )
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        started = time.perf_counter()
        shards.open_directory(directory, spec)
        for split, shard in shards.missing(directory, spec):
            with shards.Writer(directory, spec, split, shard) as writer:
                for row in spec.shard_rows(split, shard):
                    preset = rng.random(spec.parameters, np.float32)
                    embedding = rng.random(spec.embedding, np.float32)
                    writer.write(
                        {
                            "index": row,
                            "preset": preset,
                            "embedding": embedding,
                        }
                    )
                writer.finish()
        rates = {"written to shards": _ROWS / (time.perf_counter() - started)}
        started = time.perf_counter()
        columns = loader.open_columns(directory, spec, "train")
        rates["decoded, once"] = _ROWS / (time.perf_counter() - started)

        host = loader.batches(columns, _BATCH, seed=0)

        def gather() -> int:
            next(host)
            return _BATCH

        rates["gathered"] = _rate(gather, seconds)
        # Copies of one batch of rows each, from all over the columns.
        order = iter(())

        def copy() -> int:
            nonlocal order
            start = next(order, None)
            if start is None:
                order = iter(range(0, _ROWS, _BATCH))
                start = next(order)
            for column in columns.values():
                np.array(column[start : start + _BATCH])
            return _BATCH

        limit = _rate(copy, seconds)
        mesh = devices.mesh()
        batch = -(-_BATCH // mesh.size) * mesh.size
        with loader.on_devices(
            loader.batches(columns, batch, seed=0), devices.split(mesh)
        ) as placed:

            def fetch() -> int:
                jax.block_until_ready(next(placed)[1])
                return batch

            rates[f"on {mesh.size} x {jax.default_backend()}"] = _rate(
                fetch, seconds
            )
        del columns, host
    rates["copied in order (limit)"] = limit
    width = 4 * (spec.parameters + spec.embedding)
    return [
        {
            "what": what,
            "per second": rate,
            "unit": "rows",
            "GB/s": rate * width / 1e9,
            "of limit": 100 * rate / limit,
        }
        for what, rate in rates.items()
    ]
