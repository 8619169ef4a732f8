"""Every test sees four devices, so that mapped code is really mapped."""

import os
import tempfile

import jax

jax.config.update("jax_num_cpu_devices", 4)

# What one test has compiled serves the others, in other processes too: the
# workers and the commands that tests start inherit the variables.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", _programs.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
