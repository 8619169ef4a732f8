"""Every test sees four devices, so that mapped code is really mapped."""

import jax

jax.config.update("jax_num_cpu_devices", 4)
