"""The objective f(x) = g(s(x)) and one step towards it, as pure functions.

`train_step` maps a state and a batch to the next state and its metrics. It
knows nothing of devices but the name of the axis it may be mapped over.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from proxy import symmetries
from proxy.space import ParameterSpace


@struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
      step: steps taken so far, int32.
      params: trainable arrays, float32.
      batch_stats: running statistics of BatchNorm, empty without it.
      opt_state: the optimizer's moments.
      average: exponential moving average of `params`, or None.
    """

    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree


Batch = dict[str, Any]
Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def embedding_loss(
    predicted: Float[Array, "*batch embedding"],
    target: Float[Array, "*batch embedding"],
) -> Float[Array, ""]:
    """Mean absolute difference (Combes et al. 2025, section 2.2)."""
    return jnp.abs(predicted - target).mean()


def contrastive_loss(
    predicted: Float[Array, "batch embedding"],
    target: Float[Array, "batch embedding"],
    temperature: float,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of telling which sound of the batch is which preset's.

    InfoNCE (van den Oord et al. 2018, "Representation learning with
    contrastive predictive coding", equation 4) both ways, as in CLIP, of
    distances rather than products: the embedding loss, which stays the
    measure of a proxy, is a distance.

    Args:
      predicted: f(x).
      target: g(s(x)).
      temperature: root mean square differences per embedding are divided by
        it.
      axis_name: mapped axis whose devices share one batch.

    Returns:
      Mean over both ways, in nats: log(batch) for a constant prediction.
    """
    everything = (predicted, target)
    first = 0
    if axis_name is not None:
        everything = jax.lax.all_gather(everything, axis_name, tiled=True)
        first = jax.lax.axis_index(axis_name) * len(predicted)
    rows = jnp.arange(len(predicted))

    def one_way(asking, asked):
        squares = (
            jnp.square(asking).mean(1)[:, None]
            + jnp.square(asked).mean(1)
            - 2 * (asking @ asked.T) / asking.shape[1]
        )
        # A root has no gradient at 0.
        away = jnp.sqrt(jnp.maximum(squares, 1e-6))
        scores = jax.nn.log_softmax(-away / temperature)
        return -scores[rows, first + rows].mean()

    there = one_way(predicted, everything[1])
    back = one_way(target, everything[0])
    return (there + back) / 2


def init_state(
    encoder: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Array,
    width: int,
    *,
    average: bool = False,
    bias: Float[Array, " embedding"] | None = None,
) -> TrainState:
    """Fresh parameters and optimizer state.

    Args:
      encoder: a preset encoder.
      optimizer: the gradient transformation.
      key: JAX random key.
      width: size of a relaxed preset.
      average: keep an exponential moving average of the parameters.
      bias: where the output's bias starts, zero when None. The mean training
        embedding is a good place when it lies far from zero: AdamW moves a
        bias by the learning rate per step at most.

    Returns:
      The state at step 0.
    """
    # Compiled, since op by op it takes many times longer.
    variables: Any = jax.jit(encoder.init)(key, jnp.zeros((2, width)))
    params = dict(variables["params"])
    if bias is not None:
        params["head"] = {**params["head"], "bias": bias}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params) if average else None,
    )


def predict(
    encoder: nn.Module,
    state: TrainState,
    relaxed: Float[Array, "batch width"],
) -> Float[Array, "batch embedding"]:
    """f(x) in evaluation mode, with the averaged parameters if kept."""
    params = state.params if state.average is None else state.average
    variables = {"params": params, "batch_stats": state.batch_stats}
    predicted: Any = encoder.apply(variables, relaxed, train=False)
    return predicted


def train_step(
    encoder: nn.Module,
    space: ParameterSpace,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    accumulate: int = 1,
    decay: float = 0.0,
    contrastive: float = 0.0,
    temperature: float = 0.05,
    equivalent: bool = False,
) -> Step:
    """Builds one optimizer step on the embedding loss.

    Args:
      encoder: a preset encoder; built with the same `axis_name`.
      space: turns the batch's presets into relaxed ones.
      optimizer: the gradient transformation.
      axis_name: mapped axis over which loss and gradients are averaged.
      accumulate: micro-batches whose gradients make one step. BatchNorm
        sees them one after the other, as PyTorch's does.
      decay: decay of the moving average of the parameters, when the state
        has one.
      contrastive: weight of `contrastive_loss`, added to the embedding loss
        and not to the metric of that name. A micro-batch is a batch to it.
      temperature: see `contrastive_loss`.
      equivalent: train on other presets with the same sound, see
        `symmetries.equivalent`; which, depends on the step.

    Returns:
      `(state, {"preset", "embedding"}) -> (state, metrics)`, where a batch
      holds `[batch, parameters]` and `[batch, embedding]`, the batch a
      multiple of `accumulate`. Metrics: loss, and grad_norm, the global norm
      of the gradient. Both turn non-finite when the step did.
    """

    def loss_fn(params, batch_stats, batch):
        relaxed = space.to_relaxed(batch["preset"])
        variables = {"params": params, "batch_stats": batch_stats}
        predicted, updated = encoder.apply(
            variables, relaxed, train=True, mutable=["batch_stats"]
        )
        loss = embedding_loss(predicted, batch["embedding"])
        total = loss
        if contrastive:
            total += contrastive * contrastive_loss(
                predicted, batch["embedding"], temperature, axis_name
            )
        return total, (loss, updated.get("batch_stats", {}))

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def gradients(state, batch):
        if accumulate == 1:
            (_, (loss, stats)), grads = grad_fn(
                state.params, state.batch_stats, batch
            )
            return loss, stats, grads
        parts = jax.tree.map(
            lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch
        )

        def add(carry, part):
            total, stats, grads = carry
            (_, (loss, stats)), new = grad_fn(state.params, stats, part)
            return (
                total + loss,
                stats,
                jax.tree.map(jnp.add, grads, new),
            ), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        start = (jnp.zeros(()), state.batch_stats, zeros)
        (loss, stats, grads), _ = jax.lax.scan(add, start, parts)
        loss, grads = jax.tree.map(lambda x: x / accumulate, (loss, grads))
        return loss, stats, grads

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if equivalent:
            key = jax.random.fold_in(jax.random.key(0), state.step)
            if axis_name is not None:
                key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
            presets = symmetries.equivalent(key, batch["preset"], space)
            batch = {**batch, "preset": presets}
        loss, stats, grads = gradients(state, batch)
        if axis_name is not None:
            loss, stats, grads = jax.lax.pmean((loss, stats, grads), axis_name)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(params, average, 1 - decay)
        state = TrainState(state.step + 1, params, stats, opt_state, average)
        return state, {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return step
