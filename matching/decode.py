"""From an estimator's logits to presets: hard, relaxed or both at once.

A hard preset is what the synthesizer plays, and what the paper feeds its
proxy: rounding and argmax stop the gradient at every switch and category. A
relaxed preset is its probabilities, straight into the proxy's one-hot width,
and stops it nowhere. A straight-through preset is hard on the way forward and
relaxed on the way back.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from proxy import unknown
from proxy.space import ParameterSpace

MODES = ("hard", "relaxed", "straight_through", "gumbel")


def check(logits: Float[Array, "*batch width"], space: ParameterSpace) -> None:
    """Refuses an array that is not a batch of logits.

    Raises:
      ValueError: when the last axis is not the space's width.
    """
    if logits.ndim < 1 or logits.shape[-1] != space.width:
        raise ValueError(
            f"logits for {space.name} have {space.width} values on their last "
            f"axis, got an array of shape {tuple(logits.shape)}"
        )


def block_logits(
    ordered: Float[Array, "*batch width"], space: ParameterSpace
) -> Float[Array, "*batch categorical choices"]:
    """Category logits, one row a parameter, padded with minus infinity.

    The logits given are in the order of a relaxed preset.
    """
    slots, real = space.category_blocks
    return jnp.where(jnp.asarray(real), ordered[..., slots], -jnp.inf)


def _join(
    values: Float[Array, "*batch noncategorical"],
    blocks: Float[Array, "*batch categorical choices"],
    space: ParameterSpace,
) -> Float[Array, "*batch width"]:
    """Puts values and padded blocks into the order of a relaxed preset."""
    _, real = space.category_blocks
    flat = blocks.reshape(*blocks.shape[:-2], -1)
    return jnp.concatenate([values, flat[..., np.flatnonzero(real)]], axis=-1)


def _is_binary(space: ParameterSpace) -> np.ndarray:
    return np.isin(space.noncategorical, space.binary)


def _split(logits, space):
    """Logits of values, and padded category blocks, in relaxed order."""
    check(logits, space)
    ordered = logits[..., space.relaxed_from_logit]
    split = len(space.noncategorical)
    return ordered[..., :split], block_logits(ordered, space)


def relaxed(
    logits: Float[Array, "*batch width"],
    space: ParameterSpace,
    *,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch width"]:
    """Probabilities, as a relaxed preset.

    Args:
      logits: logits in table order.
      space: space of the logits.
      temperature: divides the logits of switches and categories.

    Returns:
      Sigmoids of numerical and binary parameters, softmaxes of categorical
      ones.

    Raises:
      ValueError: when the last axis is not `width`.
    """
    values, blocks = _split(logits, space)
    values = jnp.where(_is_binary(space), values / temperature, values)
    blocks = jax.nn.softmax(blocks / temperature, axis=-1)
    return _join(jax.nn.sigmoid(values), blocks, space)


def hard(
    logits: Float[Array, "*batch width"], space: ParameterSpace
) -> Float[Array, "*batch parameters"]:
    """The paper's decoding, of logits in table order to a preset.

    Gradients reach numerical parameters only.

    Returns:
      Sigmoids of numerical parameters, which `space.snap` puts on their
      grids; 0 or 1 for binary ones, a tie giving 0; the index of the largest
      logit, the first of equals, for categorical ones.

    Raises:
      ValueError: when the last axis is not `width`.
    """
    values, blocks = _split(logits, space)
    switches = (values > 0).astype(values.dtype)
    values = jnp.where(_is_binary(space), switches, jax.nn.sigmoid(values))
    preset = jnp.zeros((*logits.shape[:-1], space.num_used), logits.dtype)
    preset = preset.at[..., space.noncategorical].set(values)
    best = jnp.argmax(blocks, axis=-1).astype(logits.dtype)
    return preset.at[..., space.categorical].set(best)


def straight_through(
    logits: Float[Array, "*batch width"],
    space: ParameterSpace,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*batch width"]:
    """Hard forward, relaxed backward.

    Its value is exactly that of the hard preset, encoded; its gradient that
    of the relaxed one (Bengio et al., https://arxiv.org/abs/1308.3432). With
    a key, switches and categories are drawn from their probabilities by
    adding Gumbel noise (Jang et al., https://arxiv.org/abs/1611.01144).

    Args:
      logits: logits in table order.
      space: space of the logits.
      temperature: temperature of the relaxed preset that gives the gradient.
      key: JAX random key; without it the most probable choice is taken.

    Returns:
      A relaxed preset whose switches are 0 or 1 and blocks one-hot.

    Raises:
      ValueError: when the last axis is not `width`.
    """
    check(logits, space)
    if key is not None:
        logits = logits + _noise(key, logits, space)
    soft = relaxed(logits, space, temperature=temperature)
    firm = jax.lax.stop_gradient(space.to_relaxed(hard(logits, space)))
    # In this order, since soft - soft is exactly zero.
    return firm + (soft - jax.lax.stop_gradient(soft))


def _noise(key, logits, space):
    """Gumbel noise for categories, its logistic difference for switches."""
    one, other = jax.random.gumbel(key, (2, *logits.shape), logits.dtype)
    kinds = [p.kind for p in space.used for _ in _places(p)]
    binary = np.array([k == "binary" for k in kinds])
    categorical = np.array([k == "categorical" for k in kinds])
    return jnp.where(categorical, one, jnp.where(binary, one - other, 0))


def _places(parameter):
    return (parameter.values or ()) if parameter.kind == "categorical" else (0,)


def for_proxy(
    logits: Float[Array, "*batch width"],
    space: ParameterSpace,
    mode: str,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*batch width"]:
    """What a proxy is fed: logits decoded to a relaxed preset.

    Args:
      logits: logits in table order.
      space: space of the logits.
      mode: "hard" is the paper's, see `hard`; the others are `relaxed`,
        `straight_through` without and, as "gumbel", with noise.
      temperature: temperature of the relaxed modes.
      key: JAX random key, for "gumbel" only.

    Returns:
      Relaxed presets.

    Raises:
      ValueError: for an unknown mode, "gumbel" without a key, or a last axis
        that is not `width`.
    """
    if mode == "hard":
        return space.to_relaxed(hard(logits, space))
    if mode == "relaxed":
        return relaxed(logits, space, temperature=temperature)
    if mode == "straight_through":
        return straight_through(logits, space, temperature=temperature)
    if mode == "gumbel":
        if key is None:
            raise ValueError("decoding with Gumbel noise needs a random key")
        return straight_through(logits, space, temperature=temperature, key=key)
    raise ValueError(unknown("decoding", mode, MODES))
