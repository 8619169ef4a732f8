"""The devices of this process, and how work is laid out on them."""

import ctypes
import glob
import hashlib
import importlib.util
import math
import os
import pathlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
# Numbers of settings in glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8


def keep_memory() -> bool:
    """Lets freed memory be used again instead of returning it to the system.

    glibc maps every large block anew and unmaps it when freed, so the
    temporaries of a training step on a CPU are paged in, zeroed, at every
    step; where faults are dear (virtual machines) that can take longer than
    the step. Neither setting holds for the heaps that threads other than the
    first one allocate from, JAX's among them, so all share one heap. The
    price: the process keeps its peak size. Same as `MALLOC_MMAP_MAX_=0
    MALLOC_TRIM_THRESHOLD_=-1 MALLOC_ARENA_MAX=1` in the environment. Call it
    before the first computation.

    Returns:
      Whether the C library understood; other than glibc does not.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())


def initialize_distributed() -> None:
    """Joins the other processes of a job of several hosts, if there are any.

    Slurm, Open MPI and TPU pods are recognised. Elsewhere, set
    JAX_COORDINATOR_ADDRESS (host:port of the first process),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.
    """
    env = os.environ
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in env and "JAX_NUM_PROCESSES" in env:
        jax.distributed.initialize(
            num_processes=int(env["JAX_NUM_PROCESSES"]),
            process_id=int(env["JAX_PROCESS_ID"]),
        )
    elif (
        int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize()


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
      constants: number of further arguments, whole on every device.

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


def processor() -> tuple[str, int]:
    """The processor's name and the bits of its widest vector registers.

    Returns:
      Its name, and 512 (AVX-512), 256 (AVX2), 128, or 0 where it is not told.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), 0
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    told = {key.strip(): value.strip() for key, value in told.items()}
    flags = set(told.get("flags", told.get("Features", "")).split())
    bits = 512 if "avx512f" in flags else 256 if "avx2" in flags else 128
    name = told.get("model name", platform.machine())
    vendor = ", ".join(told[k] for k in ("cpu family", "model") if k in told)
    return f"{name} ({vendor})" if vendor else name, bits


def keep_programs(folder: pathlib.Path) -> None:
    """Keeps compiled programs on disk, so that the next start is faster.

    Programs of one kind of processor do not run on each other one: each has a
    folder of its own. A folder that cannot be written to, or a damaged file in
    it, is a warning. JAX_COMPILATION_CACHE_DIR names another place.

    Args:
      folder: where they are kept.
    """
    config: Any = jax.config  # its type lists no fields
    if config.jax_compilation_cache_dir:
        return
    kind = hashlib.sha256(repr(processor()).encode()).hexdigest()[:8]
    folder = folder / f"{platform.machine()}-{kind}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(
            f"warning: compiled programs are not kept in {folder}: {error}",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
