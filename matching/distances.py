"""Distances between a prediction and a target: of audio, and of presets.

An audio distance compares features, so each is a pair of functions: features
of a batch of clips, and a comparison of two such, row by row. Compute the
target's features once and compare many predictions with them.

`stft`, `mstft`, `mel` and `mfcc` are the paper's; `a_mean` is their mean, with
a quarter of `mfcc` (Combes et al. 2025, section 4.3). None is symmetric. All
are finite, with finite gradients, on silence and on equal clips.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from proxy import unknown
from proxy.audio import spectral
from proxy.space import ParameterSpace

_FLOOR = 1e-8
Features = Any


# What features are made of ---------------------------------------------------


def _safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square root whose gradient at 0 is 0 rather than infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _magnitude(audio, fft_size, hop, window, every=1):
    """√max(re² + im², 1e-8), `[batch, frames, bins]`, each n-th frame."""
    spectrum = spectral.stft(
        audio, spectral.hann(window), fft_size=fft_size, hop=hop * every
    )
    return jnp.sqrt(jnp.maximum(spectral.power(spectrum), _FLOOR))


def _magnitude_distance(
    prediction: Float[Array, "batch frames bins"],
    target: Float[Array, "batch frames bins"],
) -> Float[Array, " batch"]:
    """Spectral convergence plus mean absolute log difference.

    ‖B - A‖_F / ‖B‖_F + mean|ln A - ln B| (Arik et al.,
    https://arxiv.org/abs/1808.06719, eqs. 2 and 3).
    """
    axes = (-2, -1)
    difference = jnp.square(target - prediction).sum(axes)
    # Magnitudes have a floor: the denominator is never zero.
    convergence = _safe_sqrt(difference / jnp.square(target).sum(axes))
    logs = jnp.abs(jnp.log(prediction) - jnp.log(target)).mean(axes)
    return convergence + logs


def kaldi_decibels(
    audio: Float[Array, "batch samples"], sample_rate: int, every: int = 1
) -> Float[Array, "batch frames mels"]:
    """128 Kaldi mel bands in dB, of pre-emphasised audio.

    y[n] = x[n] - 0.97 x[n - 1], valid part; symmetric Hann window of 1,024
    samples, hop 512, centred; power; bands from 0 Hz to half the rate; 10
    log10(max(., 1e-8)).

    Args:
      audio: clips in [-1, 1], more than 513 samples.
      sample_rate: sample rate, in Hz.
      every: computes each n-th frame only; 1 for all frames.

    Returns:
      dB, `1 + (samples - 1) // 512` frames if all are.

    Raises:
      ValueError: when the clips are too short.
    """
    spectrum = spectral.stft(
        spectral.pre_emphasis(audio),
        spectral.hann(1024, periodic=False),
        fft_size=1024,
        hop=512 * every,
    )
    bank = spectral.mel_bank(
        128,
        sample_rate=sample_rate,
        fft_size=1024,
        low=0.0,
        high=sample_rate / 2,
        scale="kaldi",
    )
    return spectral.decibels(spectral.power(spectrum) @ bank, _FLOOR)


# The distances ---------------------------------------------------------------


def _stft_features(audio, sample_rate, every=1):
    del sample_rate
    return _magnitude(audio, 1024, 256, 1024, every)


_RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))


def _mstft_features(audio, sample_rate, every=1):
    del sample_rate
    return tuple(_magnitude(audio, *sizes, every) for sizes in _RESOLUTIONS)


def _mel_features(audio, sample_rate, every=1):
    bank = spectral.mel_bank(
        128,
        sample_rate=sample_rate,
        fft_size=1024,
        low=0.0,
        high=sample_rate / 2,
        scale="slaney",
        area_norm=True,
    )
    # At high rates the lowest bands fall between two bins and are empty.
    magnitude = _magnitude(audio, 1024, 256, 1024, every)
    return jnp.maximum(magnitude @ bank, 1e-12)


def _mfcc_features(audio, sample_rate, every=1):
    # Coefficient 0 is the level.
    decibels = kaldi_decibels(audio, sample_rate, every)
    return decibels @ spectral.dct(128, 40)[:, 1:]


def _mean_difference(prediction, target):
    return jnp.abs(prediction - target).mean((-2, -1))


# (bands, window); the hop is a quarter of the window.
_SCALES = (
    (5, 32),
    (10, 64),
    (20, 128),
    (40, 256),
    (80, 512),
    (160, 1024),
    (320, 2048),
)


def _multi_mel_features(audio, sample_rate):
    def scale(mels, window):
        spectrum = spectral.stft(
            audio, spectral.hann(window), fft_size=window, hop=window // 4
        )
        bank = spectral.mel_bank(
            mels,
            sample_rate=sample_rate,
            fft_size=window,
            low=0.0,
            high=sample_rate / 2,
            scale="slaney",
            area_norm=True,
        )
        magnitude = _safe_sqrt(spectral.power(spectrum))
        return jnp.log10(jnp.maximum(magnitude @ bank, 1e-5))

    return tuple(scale(*sizes) for sizes in _SCALES)


def _over_scales(compare):
    """The mean of a comparison over tuples of features."""
    return lambda prediction, target: jnp.stack(
        [compare(p, t) for p, t in zip(prediction, target, strict=True)]
    ).mean(0)


def _decibel_features(audio, sample_rate):
    del sample_rate
    spectrum = spectral.stft(audio, spectral.hann(2048), fft_size=2048, hop=512)
    return spectral.decibels(spectral.power(spectrum), _FLOOR)


def _log_spectral_distance(prediction, target):
    per_frame = jnp.square(prediction - target).mean(-1)
    return _safe_sqrt(per_frame).mean(-1)


def _sequence_features(audio, sample_rate):
    mels = kaldi_decibels(audio, sample_rate)
    return mels[..., ::2, :] @ spectral.dct(128, 21)[:, 1:]


def dynamic_time_warping(
    cost: Float[Array, "batch rows columns"],
) -> Float[Array, " batch"]:
    """Least mean cost of aligning two sequences.

    Steps go one row down, one column on, or both; the sum of costs on the
    cheapest path from corner to corner is divided by rows + columns (Sakoe
    and Chiba 1978, with weights 1). Gradients are those of the path.

    Args:
      cost: cost of each pair of elements, not negative.

    Returns:
      The normalised cost.
    """
    batch, rows, columns = cost.shape
    far = jnp.full((batch, rows), np.float32(1e30), cost.dtype)

    # Anti-diagonals depend on the two before them only, so each is one vector
    # operation: element i of diagonal d is (row i, column d - i).
    padded = jnp.pad(
        cost, ((0, 0), (0, 0), (0, rows)), constant_values=1e30
    ).reshape(batch, -1)
    skewed = padded[:, : rows * (columns + rows - 1)]
    skewed = skewed.reshape(batch, rows, columns + rows - 1)
    diagonals = jnp.moveaxis(skewed, -1, 0)

    def down(diagonal):
        return jnp.concatenate([far[:, :1], diagonal[:, :-1]], axis=1)

    def advance(carry, costs):
        before, last = carry
        best = jnp.minimum(jnp.minimum(last, down(last)), down(before))
        return (last, jnp.minimum(best + costs, 1e30)), None

    # Diagonal 0 has one element, which nothing precedes.
    first = far.at[:, 0].set(cost[:, 0, 0])
    (_, last), _ = jax.lax.scan(advance, (far, first), diagonals[1:])
    return last[:, -1] / (rows + columns)


def _dtw_distance(prediction, target):
    # Not by way of a product, which would leave equal frames apart.
    difference = prediction[:, :, None, :] - target[:, None, :, :]
    return dynamic_time_warping(_safe_sqrt(jnp.square(difference).sum(-1)))


def _distribution_features(audio, sample_rate):
    """Cumulative distribution of every frame's magnitude over frequency."""
    del sample_rate
    magnitude = _magnitude(audio, 2048, 512, 2048)
    mass = magnitude / magnitude.sum(-1, keepdims=True)
    return jnp.cumsum(mass, axis=-1)


def _envelope_features(audio, sample_rate):
    del sample_rate
    half = 1024
    padded = jnp.pad(audio, ((0, 0), (half, half)))
    windows = spectral.frames(padded, 2 * half, 512)
    return _safe_sqrt(jnp.square(windows).mean(-1))


def _envelope_distance(prediction, target):
    product = (prediction * target).sum(-1)
    norms = [_safe_sqrt(jnp.square(e).sum(-1)) for e in (prediction, target)]
    # A pair of silences has the same envelope, silence and a sound do not.
    silent = jnp.maximum(*norms) < 1e-6
    norm = jnp.maximum(norms[0] * norms[1], 1e-12)
    return jnp.where(silent, 0, 1 - product / norm)


class Distance(NamedTuple):
    """An audio distance.

    Attributes:
      features: `([batch, samples], sample_rate)` to arrays or tuples of them;
        those of `a_mean` take `every` as well, see the function `features`.
      compare: features of predictions and targets to `[batch]`.
    """

    features: Callable[..., Features]
    compare: Callable[[Features, Features], Float[Array, " batch"]]


_DISTANCES = {
    "stft": Distance(_stft_features, _magnitude_distance),
    "mstft": Distance(_mstft_features, _over_scales(_magnitude_distance)),
    "mel": Distance(_mel_features, _magnitude_distance),
    "mfcc": Distance(_mfcc_features, _mean_difference),
    "multi_mel": Distance(_multi_mel_features, _over_scales(_mean_difference)),
    "lsd": Distance(_decibel_features, _log_spectral_distance),
    "dtw_mfcc": Distance(_sequence_features, _dtw_distance),
    "sot": Distance(_distribution_features, _mean_difference),
    "envelope": Distance(_envelope_features, _envelope_distance),
}
A_MEAN_WEIGHTS = {"stft": 0.25, "mstft": 0.25, "mel": 0.25, "mfcc": 0.0625}
_DEFAULT = (*_DISTANCES, "a_mean")


def names() -> tuple[str, ...]:
    """Names of all audio distances.

    * `stft`: `_magnitude_distance` of the STFT, 1,024 / 256 / 1,024 (FFT,
      hop, window);
    * `mstft`: its mean over 1,024 / 120 / 600, 2,048 / 240 / 1,200 and 512 /
      50 / 240 (Yamamoto et al., https://arxiv.org/abs/1910.11480);
    * `mel`: the same on 128 Slaney bands of the magnitudes of `stft`;
    * `mfcc`: mean absolute difference of the coefficients 1 to 39 of
      `kaldi_decibels`;
    * `multi_mel`: mean absolute log10 difference of Slaney bands, mean over
      windows of 32 to 2,048 samples with 5 to 320 bands (Kumar et al.,
      https://arxiv.org/abs/2306.06546, section 3.4);
    * `lsd`: log-spectral distance in dB, 2,048 / 512: root mean square over
      bins, mean over frames (Gray and Markel 1976);
    * `dtw_mfcc`: `dynamic_time_warping` of the coefficients 1 to 20 of
      `kaldi_decibels`, every 1,024 samples, by their Euclidean distance;
    * `sot`: 1-Wasserstein distance between the magnitude spectra as
      distributions over frequency, in units of half the sample rate, mean
      over frames (after Torres et al., https://arxiv.org/abs/2312.14507);
    * `envelope`: one minus the cosine of the RMS envelopes, windows of 2,048
      samples, hop 512;
    * `a_mean`: the mean of `stft`, `mstft`, `mel` and a quarter of `mfcc`.
    """
    return _DEFAULT


def get(name: str) -> Distance:
    """The features and the comparison of a distance other than `a_mean`.

    Raises:
      ValueError: for an unknown name; lists near and known ones.
    """
    if name not in _DISTANCES:
        raise ValueError(unknown("distance", name, _DISTANCES))
    return _DISTANCES[name]


def _parts(chosen: Iterable[str]) -> tuple[str, ...]:
    parts: list[str] = []
    for name in chosen:
        parts.extend(A_MEAN_WEIGHTS if name == "a_mean" else (name,))
    return tuple(dict.fromkeys(parts))


def features(
    audio: Float[Array, "batch samples"],
    sample_rate: int,
    chosen: Iterable[str] = _DEFAULT,
    *,
    every: int = 1,
) -> dict[str, Features]:
    """What the chosen distances compare.

    Args:
      audio: clips in [-1, 1], more than 1,024 samples.
      sample_rate: sample rate, in Hz.
      chosen: names of distances, from `names()`.
      every: 1 for the distances as they are. Searches may compare each n-th
        frame only: the distance is then an average over fewer frames, at
        nearly 1/n of the time, and orders clips nearly alike. For `a_mean`
        and its parts.

    Returns:
      Features by name of the distance.

    Raises:
      ValueError: for an unknown name, or clips that are too short, or a
        distance that needs every frame.
    """
    parts = _parts(chosen)
    whole = [name for name in parts if name not in A_MEAN_WEIGHTS]
    if every < 1 or (every > 1 and whole):
        raise ValueError(
            f"every={every}: each n-th frame, from 1 on, can be asked for of "
            f"{', '.join(A_MEAN_WEIGHTS)} and a_mean"
            + (f", not of {', '.join(whole)}" if whole else "")
        )
    thinned = {"every": every} if every > 1 else {}
    return {
        name: get(name).features(audio, sample_rate, **thinned)
        for name in parts
    }


def compare(
    prediction: dict[str, Features],
    target: dict[str, Features],
    chosen: Iterable[str] = _DEFAULT,
) -> dict[str, Float[Array, " batch"]]:
    """Distances between features, row by row.

    Args:
      prediction: features from `features`.
      target: features from `features`, of as many clips, or of one that every
        prediction is compared with.
      chosen: names of distances, from `names()`.

    Returns:
      `[batch]` by name, in the order chosen.
    """
    chosen = tuple(chosen)
    parts = {
        name: get(name).compare(prediction[name], target[name])
        for name in _parts(chosen)
    }
    if "a_mean" in chosen:
        weighted = (w * parts[name] for name, w in A_MEAN_WEIGHTS.items())
        parts["a_mean"] = sum(weighted, jnp.zeros(()))
    return {name: parts[name] for name in chosen}


def quick_a_mean(
    prediction: Float[Array, "batch samples"],
    goal: dict[str, Features],
    *,
    sample_rate: int,
    every: int,
) -> Float[Array, " batch"]:
    """`a_mean` of each n-th frame, for a search to ask thousands of times.

    Args:
      prediction: clips in [-1, 1], more than 1,024 samples.
      goal: `features` of one target of the same length, chosen `a_mean`,
        with the same `every`.
      sample_rate: sample rate, in Hz.
      every: which frames are compared, see `features`.

    Returns:
      The distances; worked out one clip after the other, which is quickest
      on a CPU.
    """

    def one(clip):
        ours = features(clip[None], sample_rate, ("a_mean",), every=every)
        return compare(ours, goal, ("a_mean",))["a_mean"][0]

    at_once = None if jax.default_backend() == "cpu" else 16
    return jax.lax.map(one, prediction, batch_size=at_once)


def gain(
    prediction: Float[Array, " samples"],
    goal: Float[Array, "1 frames bins"],
    decibels: Float[np.ndarray, " gains"],
    *,
    every: int,
    most: Float[Array, ""] | float = np.inf,
) -> Float[Array, ""]:
    """The gain with which a clip comes nearest to a target.

    By `stft` of every other one of the frames that are compared, the floor of
    its magnitudes left out of the spectral convergence.

    Args:
      prediction: a clip in [-1, 1].
      goal: the feature `stft` of the target, with the same `every`.
      decibels: the gains to choose among.
      every: which frames are compared, see `features`.
      most: the largest gain allowed, in decibels.

    Returns:
      The best of the gains; the least one when none is allowed.
    """
    ours = _stft_features(prediction[None], 0, 2 * every)[0]
    theirs = goal[0, ::2]
    log_ours, log_theirs = jnp.log(ours), jnp.log(theirs)
    own, both, other = (
        (a * b).sum()
        for a, b in ((ours, ours), (ours, theirs), (theirs, theirs))
    )

    def apart(gain: Array) -> Array:
        factor = 10 ** (gain / 20)
        left = other - 2 * factor * both + factor**2 * own
        moved = log_ours + jnp.log(factor)
        logs = jnp.maximum(moved, 0.5 * np.log(_FLOOR)) - log_theirs
        return _safe_sqrt(left / other) + jnp.abs(logs).mean()

    found = jax.lax.map(apart, jnp.asarray(decibels))
    return jnp.asarray(decibels)[
        jnp.where(decibels <= most, found, jnp.inf).argmin()
    ]


def measure(
    prediction: Float[Array, "batch samples"],
    target: Float[Array, "targets length"],
    *,
    sample_rate: int,
    chosen: tuple[str, ...] = _DEFAULT,
    at_once: int | None = None,
) -> dict[str, Float[Array, " batch"]]:
    """Distances of predictions from targets, a few clips at a time.

    Args:
      prediction: clips in [-1, 1], more than 1,024 samples.
      target: as many clips of the same length, or one that every prediction
        is compared with.
      sample_rate: sample rate, in Hz.
      chosen: names of distances, from `names()`.
      at_once: clips worked on together, so that spectra fit into memory;
        None for 1 on a CPU and 16 elsewhere.

    Returns:
      `[batch]` by name, in the order chosen.

    Raises:
      ValueError: when the clips differ in length or number, or are too short;
        or for an unknown name.
    """
    if prediction.shape[1] != target.shape[1]:
        raise ValueError(
            f"predictions have {prediction.shape[1]} samples and targets "
            f"{target.shape[1]}: cut or pad them to one length first"
        )
    if target.shape[0] not in (1, prediction.shape[0]):
        raise ValueError(
            f"{prediction.shape[0]} predictions and {target.shape[0]} targets: "
            "give as many targets, or a single one"
        )
    if at_once is None:
        at_once = 1 if jax.default_backend() == "cpu" else 16
    measured = _measure(prediction, target, sample_rate, chosen, at_once)
    return {name: measured[name] for name in chosen}


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _measure(prediction, target, sample_rate, chosen, at_once):
    heard = functools.partial(features, sample_rate=sample_rate, chosen=chosen)

    def one(clip, goal):
        ours = heard(clip[None])
        return {k: v[0] for k, v in compare(ours, goal, chosen).items()}

    if target.shape[0] == 1:
        goal = heard(target)
        return jax.lax.map(
            lambda clip: one(clip, goal), prediction, batch_size=at_once
        )
    return jax.lax.map(
        lambda pair: one(pair[0], heard(pair[1][None])),
        (prediction, target),
        batch_size=at_once,
    )


# Presets ---------------------------------------------------------------------


def parameter_metrics(
    prediction: Float[Array, "batch _"],
    target: Float[Array, "batch _"],
    space: ParameterSpace,
) -> dict[str, Float[Array, " batch"]]:
    """How far predicted hard presets are from their targets.

    Returns:
      For each row, over the kinds the space has: `numerical_mae`, mean
      absolute difference of values in [0, 1]; `binary_accuracy` and
      `categorical_accuracy`, shares of parameters that agree.

    Raises:
      ValueError: when presets do not fit the space.
    """
    for preset in (prediction, target):
        if preset.shape[-1] != space.num_used:
            raise ValueError(
                f"a preset of {space.name} has {space.num_used} values, got "
                f"an array of shape {tuple(preset.shape)}"
            )
    difference = jnp.abs(prediction - target)
    metrics = {}
    if len(space.numerical):
        metrics["numerical_mae"] = difference[:, space.numerical].mean(-1)
    for kind, columns in (
        ("binary", space.binary),
        ("categorical", space.categorical),
    ):
        if len(columns):
            agree = difference[:, columns] < 0.5
            metrics[f"{kind}_accuracy"] = agree.astype(float).mean(-1)
    return metrics
