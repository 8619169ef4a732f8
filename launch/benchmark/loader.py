"""How fast rows come from shards to the devices."""

import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from datasets import engines, loader, shards
from datasets.spec import DataSpec
from launch.benchmark import measure
from launch.benchmark import train as training
from launch.runs import devices

_ROWS = 65_536
_BATCH = 512


def run(seconds: float = 3.0) -> list[dict[str, Any]]:
    """Measures rows per second, of presets and embeddings as Dexed has them.

    A row is a Dexed preset (100 numbers) and an mn04 embedding (192). The
    limit is the memory's: rows copied in order, which costs one read and one
    write of each byte, as gathering them does. The loader's customer is the
    training of `mlp_oh`, the quickest encoder: "mlp_oh fed by it" trains on
    the loader's batches, "mlp_oh on one batch" on the same batch again and
    again, which costs nothing to load.

    Args:
      seconds: time for each of the measurements.

    Returns:
      One row a measurement: "what", "per second", "unit", "GB/s" read, and
      "of limit", the share of the limit in percent; and "of mlp_oh", the
      rate in multiples of that of `mlp_oh` on one batch.
    """
    spec = DataSpec(
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

        def rate(work: Callable[[], Any], rows: int) -> float:
            work()
            return rows * measure.rate(lambda _: work(), seconds)[0]

        rates["gathered"] = rate(lambda: next(host), _BATCH)
        # Copies of one batch of rows each, from all over the columns.
        order = itertools.cycle(range(0, _ROWS, _BATCH))

        def copy() -> None:
            start = next(order)
            for column in columns.values():
                np.array(column[start : start + _BATCH])

        limit = rate(copy, _BATCH)
        mesh = devices.mesh()
        batch = -(-_BATCH // mesh.size) * mesh.size
        step, state, data = training.prepare("mlp_oh", batch)

        def train(given: Any) -> None:
            nonlocal state
            state, metrics = step(state, given)
            jax.block_until_ready(metrics)

        with loader.on_devices(
            loader.batches(columns, batch, seed=0), devices.split(mesh)
        ) as placed:
            rates[f"on {mesh.size} x {jax.default_backend()}"] = rate(
                lambda: jax.block_until_ready(next(placed)[1]), batch
            )
            rates["mlp_oh fed by it"] = rate(
                lambda: train(next(placed)[1]), batch
            )
        unfed = rate(lambda: train(data), batch)
        rates["mlp_oh on one batch"] = unfed
        del columns, host
    rates["copied in order (limit)"] = limit
    width = 4 * (spec.parameters + spec.embedding)
    return [
        {
            "what": what,
            "per second": rate,
            "unit": "rows",
            "GB/s": rate * width / 1e9,
            "of limit": 100 * (rate / limit),
            "of mlp_oh": rate / unfed,
        }
        for what, rate in rates.items()
    ]
