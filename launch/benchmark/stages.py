"""Runs one stage of the benchmark and shows its table.

Apart from the command, as the processes that run the stages import it.
"""

import importlib
import resource
import sys
from collections.abc import Callable
from typing import Any

import jax
import tabulate
from absl import logging

from launch.runs import devices

STAGES = ("render", "audio", "loader", "train", "matching")
# Only when named: they take minutes.
ON_DEMAND = ("memory", "faults", "gradient")


def run_stage(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs a stage in this process; options are arguments of its `run`.

    Returns:
      "devices": the machine's devices; "rows": rows of the table; "peak
      memory (GB)": the most that this process has held; and "peak device
      memory (GB)" where the device tells.
    """
    devices.keep_memory()
    logging.set_verbosity(logging.ERROR)
    name, bits = devices.processor()
    module = importlib.import_module(f"launch.benchmark.{stage}")
    run: Callable[..., list[dict[str, Any]]] = module.run
    result: dict[str, Any] = {
        "devices": f"{devices.describe()}; {name}, {bits}-bit vectors",
        "jax": jax.__version__,
        "rows": run(**options),
    }
    # In kilobytes, on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    most = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result["peak memory (GB)"] = round(most / 1e9, 3)
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        most = statistics["peak_bytes_in_use"]
        result["peak device memory (GB)"] = round(most / 1e9, 3)
    return result


def show(stage: str, result: dict[str, Any]) -> str:
    """The table of a stage, see `run_stage`."""
    table = tabulate.tabulate(
        result["rows"],
        headers="keys",
        tablefmt="github",
        floatfmt=",.4g",
        intfmt=",",
    )
    memory = [f"{k}: {v:g}" for k, v in result.items() if k.startswith("peak")]
    if stage == "memory":  # its work is done in other processes
        memory = []
    return f"\n{stage}\n{table}\n{', '.join(memory)}"
