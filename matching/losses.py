"""Parameter and perceptual losses of an estimator, and a step on their sum."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from matching import decode
from matching.schedules import Schedule
from proxy import encoders
from proxy.objective import TrainState, embedding_loss
from proxy.space import ParameterSpace

CATEGORICAL_WEIGHT = 0.01

Proxy = Callable[[Float[Array, "batch width"]], Float[Array, "batch embedding"]]
Batch = dict[str, Any]
Metrics = dict[str, Float[Array, ""]]


class ParameterLoss(NamedTuple):
    """The terms of the parameter loss, 0 where a space lacks the kind.

    Attributes:
      numerical: mean absolute difference of values in [0, 1].
      binary: mean binary cross-entropy, in nats.
      categorical: sum over parameters of the mean cross-entropy, in nats.
    """

    numerical: Float[Array, ""]
    binary: Float[Array, ""]
    categorical: Float[Array, ""]

    def total(self) -> Float[Array, ""]:
        """The weighted sum: numerical + binary + 0.01 categorical."""
        weighted = CATEGORICAL_WEIGHT * self.categorical
        return self.numerical + self.binary + weighted


def parameter_loss(
    logits: Float[Array, "batch width"],
    preset: Float[Array, "batch parameters"],
    space: ParameterSpace,
    *,
    label_smoothing: float = 0.0,
) -> ParameterLoss:
    """How far logits are from a preset (Combes et al. 2025, section 4.2).

    Args:
      logits: logits in table order.
      preset: the targets.
      space: space of the presets.
      label_smoothing: share of a category's target that is spread evenly
        over all categories.

    Returns:
      The unweighted terms.

    Raises:
      ValueError: when logits or presets do not fit the space.
    """
    decode.check(logits, space)
    target = space.to_relaxed(preset)
    ordered = logits[..., space.relaxed_from_logit]
    numerical, binary = (
        np.flatnonzero(np.isin(space.noncategorical, kind))
        for kind in (space.numerical, space.binary)
    )
    zero = jnp.zeros((), logits.dtype)
    terms = [zero, zero, zero]
    if len(numerical):
        value = jax.nn.sigmoid(ordered[:, numerical])
        terms[0] = jnp.abs(value - target[:, numerical]).mean()
    if len(binary):
        terms[1] = optax.sigmoid_binary_cross_entropy(
            ordered[:, binary], target[:, binary]
        ).mean()
    if len(space.categorical):
        slots, real = space.category_blocks
        log = jax.nn.log_softmax(decode.block_logits(ordered, space))
        # Padding is minus infinity, and its gradient must not be NaN.
        log = jnp.where(real, log, 0)
        goal = jnp.where(real, target[:, slots], 0)
        even = real / real.sum(-1, keepdims=True)
        goal = (1 - label_smoothing) * goal + label_smoothing * even
        terms[2] = -(goal * log).sum((-2, -1)).mean()
    return ParameterLoss(*terms)


def perceptual_loss(
    logits: Float[Array, "batch width"],
    embedding: Float[Array, "batch embedding"],
    proxy: Proxy,
    space: ParameterSpace,
    mode: str = "relaxed",
    *,
    at_once: int = 0,
    **options: Any,
) -> Float[Array, ""]:
    """L1 between the proxy's view of the decoded logits and the target's.

    Args:
      logits: logits in table order.
      embedding: embeddings of the target audio.
      proxy: a frozen preset encoder, see `frozen`.
      space: the parameter space.
      mode: how logits are decoded; "hard" is the paper's, whose gradients
        reach numerical parameters only.
      at_once: number of presets that go through the proxy together, forward
        and back, before the next ones (fewer where they do not divide the
        batch); 0 for the whole batch. The result is the same, see
        `encoders.presets_at_once`.
      **options: options of `decode.for_proxy`.

    Returns:
      The mean over batch and embedding.

    Raises:
      ValueError: for logits that do not fit, or an unknown mode.
    """
    relaxed = decode.for_proxy(logits, space, mode, **options)
    if at_once == 0:
        return embedding_loss(proxy(relaxed), embedding)

    def part(pair):
        presets, goals = pair
        return jax.value_and_grad(lambda x: embedding_loss(proxy(x), goals))(
            presets
        )

    # The gradient of a part is computed right after its value, while all that
    # it needs is at hand.
    size = math.gcd(len(relaxed), at_once)
    parts = [
        x.reshape(-1, size, x.shape[-1])
        for x in (jax.lax.stop_gradient(relaxed), embedding)
    ]
    values, slopes = jax.lax.map(part, parts)
    slopes = slopes.reshape(relaxed.shape) / len(values)
    return _with_gradient(values.mean(), relaxed, slopes)


@jax.custom_vjp
def _with_gradient(value, x, slope):
    """A value that was computed along with its gradient by `x`."""
    del x, slope
    return value


_with_gradient.defvjp(
    lambda value, x, slope: (value, slope),
    lambda slope, cotangent: (None, cotangent * slope, None),
)


def frozen(encoder: nn.Module, variables: Any) -> Proxy:
    """A preset encoder in evaluation mode that no gradient changes.

    Args:
      encoder: an encoder from `proxy.encoders`.
      variables: the encoder's `params` and, if it has them, `batch_stats`.

    Returns:
      A function from relaxed presets to embeddings.
    """
    variables = jax.lax.stop_gradient(variables)

    def proxy(relaxed):
        predicted: Any = encoder.apply(variables, relaxed, train=False)
        return predicted

    return proxy


def init_state(
    estimator: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    shape: tuple[int, ...] = (128, 313),
    average: bool = False,
) -> TrainState:
    """Fresh parameters and optimizer state of an estimator.

    Args:
      estimator: a network from spectrograms or embeddings to logits.
      optimizer: the gradient transformation.
      key: JAX random key.
      shape: of an input: mel bands and frames, or the size of an embedding.
      average: keep an exponential moving average of the parameters.

    Returns:
      The state at step 0.
    """
    # Compiled, since op by op it takes many times longer.
    variables = jax.jit(estimator.init)(key, jnp.zeros((2, *shape)))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params) if average else None,
    )


def train_step(
    estimator: nn.Module,
    space: ParameterSpace,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    proxy: nn.Module | None = None,
    *,
    mode: str = "relaxed",
    label_smoothing: float = 0.0,
    temperature: Callable[[Array], Any] = lambda step: 1.0,
    decay: float = 0.0,
    axis_name: str | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds one optimizer step on the weighted sum of both losses.

    Args:
      estimator: a network built with the same `axis_name`.
      space: the parameter space.
      optimizer: the gradient transformation; when its state takes a
        learning rate from outside, that is the caller's to set.
      schedule: step to (parameter weight, perceptual weight).
      proxy: a preset encoder, None for the parameter loss alone. Build a
        step without it for the time that the perceptual weight is 0: the
        proxy costs several times what the estimator does.
      mode: how the proxy's input is decoded, see `decode.for_proxy`.
      label_smoothing: share of a category's target that is spread evenly.
      temperature: temperature of the decoding, a function from the step.
      decay: decay of the moving average of the parameters, when the state
        has one.
      axis_name: mapped axis over which loss and gradients are averaged.

    Returns:
      `(state, batch, key, proxy_variables) -> (state, metrics)`. A batch
      holds `heard`, the estimator's input, `preset [batch, parameters]`
      and, with a proxy, `embedding [batch, embedding]`. The key
      is the run's: the step is folded in. The proxy's variables are left out
      without one. Metrics: loss, numerical, binary, categorical, perceptual
      (with a proxy), parameter_weight, perceptual_weight, grad_norm.
    """
    on_cpu = jax.default_backend() == "cpu"
    at_once = encoders.presets_at_once(proxy) if proxy and on_cpu else 0

    def loss_fn(params, batch_stats, batch, step, key, proxy_variables):
        dropout, noise = jax.random.split(jax.random.fold_in(key, step))
        logits, updated = estimator.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["heard"],
            train=True,
            rngs={"dropout": dropout},
            mutable=["batch_stats"],
        )
        terms = parameter_loss(
            logits, batch["preset"], space, label_smoothing=label_smoothing
        )
        weight, perceptual_weight = schedule(step)
        loss = weight * terms.total()
        metrics = {
            **terms._asdict(),
            "parameter_weight": jnp.asarray(weight),
            "perceptual_weight": jnp.asarray(perceptual_weight),
        }
        if proxy is not None:
            perceptual = perceptual_loss(
                logits,
                batch["embedding"],
                frozen(proxy, proxy_variables),
                space,
                mode,
                at_once=at_once,
                temperature=temperature(step),
                key=noise,
            )
            loss = loss + perceptual_weight * perceptual
            metrics["perceptual"] = perceptual
        metrics["loss"] = loss
        return loss, (updated.get("batch_stats", {}), metrics)

    def step(state, batch, key, proxy_variables=None):
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(
            state.params,
            state.batch_stats,
            batch,
            state.step,
            key,
            proxy_variables,
        )
        if axis_name is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        metrics["grad_norm"] = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(params, average, 1 - decay)
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            average=average,
        )
        return state, metrics

    return step
