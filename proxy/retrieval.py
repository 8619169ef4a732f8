"""How well a proxy was learned: retrieval metrics and the modality gap.

A good preset encoder puts a preset next to its own sound. So presets are
queried with sounds and sounds with presets, and the rank of the true partner
is scored. Distances between floats tie now and then, and constantly for a
collapsed encoder; tied candidates share their mean rank here, so that a
constant prediction scores as chance does.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from proxy import unknown

_CHUNK = 16


def _l1(
    a: Float[Array, "*#shape embedding"], b: Float[Array, "*#shape embedding"]
) -> Float[Array, "*shape"]:
    """Sum of absolute differences over the last axis, in a fixed order.

    Summing chunk by chunk keeps a tile of pairs in cache (several times
    faster on CPU than one big reduction), and makes the distance of a pair
    the same bits whether it is computed alone or in a tile.
    """
    pad = -a.shape[-1] % _CHUNK

    def split(x):
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)])
        x = x.reshape(*x.shape[:-1], -1, _CHUNK)
        return jnp.moveaxis(x, (-2, -1), (0, 1))

    def add(total, pair):
        left, right = pair
        part = sum(jnp.abs(left[i] - right[i]) for i in range(_CHUNK))
        return total + part, None

    shape = jnp.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    dtype = jnp.result_type(a, b)
    return jax.lax.scan(add, jnp.zeros(shape, dtype), (split(a), split(b)))[0]


def unit(
    x: Float[Array, "*batch embedding"],
) -> Float[Array, "*batch embedding"]:
    """Scales embeddings to unit Euclidean length; zero stays zero."""
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(length, jnp.finfo(x.dtype).tiny)


class Ranks(NamedTuple):
    """Ranks of the true partners, 1 the best, ties at their mean rank.

    Attributes:
      preset_to_audio: a predicted embedding looks for its sound.
      audio_to_preset: a sound looks for its predicted embedding.
    """

    preset_to_audio: Float[Array, " samples"]
    audio_to_preset: Float[Array, " samples"]


def one_vs_all(
    predicted: Float[Array, "samples embedding"],
    audio: Float[Array, "samples embedding"],
    metric: str = "l1",
    *,
    block: int = 512,
) -> Ranks:
    """Ranks every true pair among all pairs, both ways at once.

    Args:
      predicted: f(x) of every preset.
      audio: g(s(x)) of the same presets, in the same order.
      metric: "l1" (sum of absolute differences) or "cosine".
      block: distances exist in tiles of block x block only, so memory grows
        linearly with the number of samples.

    Returns:
      The ranks, in [1, samples].

    Raises:
      ValueError: when the metric is unknown.
    """
    if metric not in ("l1", "cosine"):
        raise ValueError(unknown("metric", metric, ("l1", "cosine")))
    count = predicted.shape[0]
    block = min(block, max(count, 1))
    if metric == "cosine":
        predicted, audio = unit(predicted), unit(audio)

    def tile(p, a):
        if metric == "l1":
            return _l1(p[:, None], a[None])
        return -jnp.matmul(p, a.T, precision="highest")

    blocks = -(-count // block)
    rows = jnp.arange(blocks * block).reshape(blocks, block)

    def pad(x):
        rest = [(0, 0)] * (x.ndim - 1)
        x = jnp.pad(x, [(0, blocks * block - count), *rest])
        return x.reshape(blocks, block, *x.shape[1:])

    p_blocks, a_blocks = pad(predicted), pad(audio)
    # From tiles, too: the same bits, so that ties are seen as ties.
    true = jax.lax.map(
        lambda pair: jnp.diagonal(tile(*pair)), (p_blocks, a_blocks)
    )

    def score(distance, threshold, valid):
        closer = jnp.where(valid, distance < threshold, False)
        tied = jnp.where(valid, distance == threshold, False)
        return closer + 0.5 * tied

    def query(columns, i):
        def candidate(row, j):
            distance = tile(p_blocks[i], a_blocks[j])
            valid = (
                (rows[i][:, None] != rows[j][None])
                & (rows[i] < count)[:, None]
                & (rows[j] < count)[None]
            )
            row = row + score(distance, true[i][:, None], valid).sum(1)
            return row, score(distance, true[j][None], valid).sum(0)

        row, column = jax.lax.scan(
            candidate, jnp.zeros(block), jnp.arange(blocks)
        )
        return columns + column, row

    columns, out = jax.lax.scan(
        query, jnp.zeros((blocks, block)), jnp.arange(blocks)
    )
    return Ranks(1 + out.reshape(-1)[:count], 1 + columns.reshape(-1)[:count])


def ranking(
    predicted: Float[Array, "rankings candidates embedding"],
    audio: Float[Array, "rankings embedding"],
) -> Float[Array, " rankings"]:
    """Rank of candidate 0 among a handful of candidates, by L1.

    The paper's validation: disjoint groups of presets, each ranked by
    distance to the sound of its first one.

    Args:
      predicted: f(x) of the candidates; candidate 0 is the right one.
      audio: g(s(x)) of candidate 0.

    Returns:
      The ranks, in [1, candidates].
    """
    distance = _l1(predicted, audio[:, None])
    others, true = distance[:, 1:], distance[:, :1]
    return 1 + (others < true).sum(1) + 0.5 * (others == true).sum(1)


def mean_reciprocal_rank(
    ranks: Float[Array, " samples"], top: int | None = None
) -> Float[Array, ""]:
    """Mean of 1 / rank; ranks beyond `top` count as zero."""
    reciprocal = 1 / ranks
    if top is not None:
        reciprocal = jnp.where(ranks <= top, reciprocal, 0)
    return reciprocal.mean()


def recall(ranks: Float[Array, " samples"], top: int) -> Float[Array, ""]:
    """Share of true partners among the `top` nearest, in [0, 1]."""
    return (ranks <= top).mean()


def ceiling(
    audio: Float[Array, "samples embedding"], most: float
) -> dict[str, Float[Array, ""]]:
    """What a perfect proxy finds where sounds cannot be told apart.

    Among n sounds that are alike, it can do no better than to guess: the
    right one is in each of n places equally often.

    Args:
      audio: embeddings of a gallery.
      most: mean absolute difference of sounds that are alike.

    Returns:
      "alike", the share of sounds that have another like them, and the
      greatest "recall@1" and "mrr" to expect, in [0, 1].
    """

    def count(sound):
        return (_l1(sound[None], audio) <= most * audio.shape[1]).sum()

    alike = jax.lax.map(count, audio, batch_size=64)
    # Mean of 1 / rank over ranks 1 to n, for every n that there may be.
    places = jnp.arange(1, len(audio) + 1)
    reciprocal = jnp.cumsum(1 / places) / places
    return {
        "alike": (alike > 1).mean(),
        "recall@1": (1 / alike).mean(),
        "mrr": reciprocal[alike - 1].mean(),
    }


def normalized(
    ranks: Float[Array, " samples"], candidates: int
) -> Float[Array, " samples"]:
    """Ranks as a share of the number of candidates, in (0, 1]."""
    return ranks / candidates


def centroid_distance(
    a: Float[Array, "samples embedding"], b: Float[Array, "others embedding"]
) -> Float[Array, ""]:
    """Modality gap: distance between the means of unit-length embeddings.

    Liang et al., "Mind the Gap", NeurIPS 2022, section 2. In [0, 2].
    """
    return jnp.linalg.norm(unit(a).mean(0) - unit(b).mean(0))


def separability(
    a: Float[Array, "samples embedding"],
    b: Float[Array, "others embedding"],
) -> Float[Array, ""]:
    """Modality gap: how well a linear classifier tells two kinds apart.

    A logistic regression on standardised features, 0.001 times the squared
    coefficients added to its loss, is fitted by 100 iterations of L-BFGS on
    every other row and scored on the rest, each kind counting one half.

    Args:
      a: embeddings of one kind, at least two.
      b: embeddings of the other kind, at least two.

    Returns:
      Balanced accuracy on the held-out rows: 0.5 when they cannot be told
      apart, 1 when they can.
    """
    train = jnp.concatenate([a[::2], b[::2]])
    mean, spread = train.mean(0), train.std(0) + 1e-6
    sides = [((x - mean) / spread) for x in (a[::2], b[::2])]

    def loss(theta: Any):
        weight, bias = theta
        terms = [
            jax.nn.softplus(sign * (x @ weight + bias)).mean()
            for sign, x in zip((1, -1), sides, strict=True)
        ]
        return (terms[0] + terms[1]) / 2 + 1e-3 * (weight**2).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        theta, state = carry
        value, grad = value_and_grad(theta, state=state)
        updates, state = solver.update(
            grad, state, theta, value=value, grad=grad, value_fn=loss
        )
        return (optax.apply_updates(theta, updates), state), None

    theta = (jnp.zeros(a.shape[1], a.dtype), jnp.zeros((), a.dtype))
    start: Any = (theta, solver.init(theta))
    final: Any = jax.lax.scan(step, start, None, length=100)[0]
    weight, bias = final[0]

    def is_b(x) -> Bool[Array, " rows"]:
        return ((x - mean) / spread) @ weight + bias > 0

    return ((~is_b(a[1::2])).mean() + is_b(b[1::2]).mean()) / 2
