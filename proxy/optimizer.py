"""AdamW as PyTorch runs it, and the paper's learning-rate schedule."""

import optax
from jaxtyping import Array, Float


def warmup_cosine_restart(
    base: float | Float[Array, ""],
    minimum: float,
    *,
    warmup_steps: int,
    warmup_factor: float,
    cosine_steps: int,
    restart_steps: int = 0,
    restart_factor: float = 1.0,
) -> optax.Schedule:
    """Linear warm-up, half a cosine, a restarted half cosine, constant.

    Step i < warmup_steps: base * (factor + (1 - factor) * i / warmup_steps).
    Then a half cosine from base to minimum in cosine_steps; then another
    from base * restart_factor to minimum in restart_steps; then minimum.
    (Combes et al. 2025, section 3.4; there the warm-up factor is 1, that is,
    a constant rate.)

    Args:
      base: highest learning rate; may be traced.
      minimum: lowest learning rate.
      warmup_steps: length of the warm-up, may be 0.
      warmup_factor: share of `base` at step 0.
      cosine_steps: length of the first half cosine.
      restart_steps: length of the second one, 0 for none.
      restart_factor: share of `base` that the second one starts from.

    Returns:
      A function from the step to the learning rate.
    """

    def half_cosine(top, steps):
        fall = optax.cosine_decay_schedule(1.0, max(steps, 1))
        return lambda step: minimum + (top - minimum) * fall(step)

    warmup = optax.linear_schedule(
        base * warmup_factor, base, max(warmup_steps, 1)
    )
    pieces, ends = [warmup, half_cosine(base, cosine_steps)], [warmup_steps]
    if restart_steps:
        pieces.append(half_cosine(base * restart_factor, restart_steps))
        ends.append(warmup_steps + cosine_steps)
    return optax.join_schedules(pieces, ends)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """AdamW with every constant given, as PyTorch defines it.

    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR
    2019. optax's own defaults differ from PyTorch's (decay 1e-4), hence the
    explicit ones here.

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled decay, multiplied by the learning rate.
      clip_norm: largest global gradient norm, None for no clipping.

    Returns:
      The gradient transformation.
    """
    update = optax.adamw(
        learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay
    )
    if clip_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(clip_norm), update)
