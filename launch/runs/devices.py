"""The devices of this process, and how work is laid out on them."""

import glob
import importlib.util
import math
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def describe() -> str:
    """One line on the devices found, and a warning when some go unused."""
    devices = jax.devices()
    kinds = sorted({d.device_kind for d in devices})
    line = f"devices: {len(devices)} x {', '.join(kinds)}"
    if jax.process_count() > 1:
        line += f", process {jax.process_index()} of {jax.process_count()}"
    if jax.default_backend() == "cpu" and (found := _accelerator()):
        line += (
            f"\nwarning: this machine has {found}, but jax is the CPU build; "
            "install the matching extra (see README, Install)"
        )
    return line


def _accelerator() -> str | None:
    """Signs of an accelerator that do not need its libraries."""
    if shutil.which("nvidia-smi") and glob.glob("/dev/nvidia[0-9]*"):
        return "an NVIDIA GPU"
    if glob.glob("/dev/accel*") or (
        glob.glob("/dev/vfio/[0-9]*") and importlib.util.find_spec("libtpu")
    ):
        return "a TPU"
    return None


def mesh(devices: int | None = None) -> Mesh:
    """One `data` axis over all devices, or over the first few.

    Raises:
      ValueError: when there are fewer devices.
    """
    found = jax.devices()
    if devices is not None and devices > len(found):
        raise ValueError(
            f"{devices} devices asked for, {len(found)} found "
            f"({found[0].platform})"
        )
    return jax.make_mesh(
        (devices or len(found),),
        (AXIS,),
        axis_types=(AxisType.Auto,),
        devices=found[:devices],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Sharding of what is divided among devices by its first axis."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts host arrays that every process holds whole onto the devices."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(
            np.shape(x), sharding, np.asarray(x).__getitem__
        ),
        tree,
    )


def check_batch(batch: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Checks that a batch divides evenly.

    Raises:
      ValueError: naming the numbers, when it does not.
    """
    parts = mesh.size * accumulate
    if batch % parts:
        nearest = math.ceil(batch / parts) * parts
        raise ValueError(
            f"config.batch={batch} does not divide among {mesh.size} devices"
            + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
            + f"; {nearest} would"
        )


def map_step(
    step: Callable[..., Any], mesh: Mesh, *, constants: int = 0
) -> Any:
    """Maps a training step over the devices and compiles it.

    Every device sees its part of the batch and the whole state, and the step
    itself averages over the axis `AXIS`. (With `check_vma=True`, gradients
    of replicated parameters would arrive already summed.) The old state's
    memory is given to the new one.

    Args:
      step: built with `axis_name=AXIS`; takes the state and the batch.
      mesh: the devices.
      constants: how many more arguments it takes, whole on every device.

    Returns:
      A compiled function with the signature of `step`.
    """
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(
            PartitionSpec(),
            PartitionSpec(AXIS),
            *[PartitionSpec()] * constants,
        ),
        out_specs=(PartitionSpec(), PartitionSpec()),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)
