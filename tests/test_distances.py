import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matching import distances
from proxy import spaces
from tests.shared import shared

RATE = 32_000
NOISE = jnp.asarray(
    0.1 * np.random.default_rng(0).normal(size=(3, 6_000)), jnp.float32
)


def tone(hertz, samples=16_000):
    phase = 2 * np.pi * hertz * np.arange(samples) / RATE
    return jnp.asarray(0.5 * np.sin(phase), jnp.float32)[None]


def distance(name, prediction, target):
    measured = distances.measure(
        prediction, target, sample_rate=RATE, chosen=(name,)
    )
    return np.asarray(measured[name])


def test_the_papers_distances_are_the_published_ones():
    golden = np.load(shared("golden/distances.npz"))
    prediction, target = (
        jnp.asarray(golden[f"{k}_int16"], jnp.float32) / 32_768
        for k in ("prediction", "target")
    )
    measured = distances.measure(
        prediction,
        target,
        sample_rate=int(golden["sample_rate"]),
        chosen=("a_mean", "stft", "mstft", "mel", "mfcc"),
    )
    for name in ("stft", "mstft", "mel", "a_mean"):
        np.testing.assert_allclose(measured[name], golden[name], rtol=1e-4)
    np.testing.assert_allclose(
        0.25 * measured["mfcc"], golden["mfccd_times_0.25"], rtol=1e-4
    )


def test_all_are_zero_on_equal_clips_and_positive_on_others():
    same = distances.measure(NOISE, NOISE, sample_rate=RATE)
    other = distances.measure(NOISE[1:], NOISE[:1], sample_rate=RATE)
    assert tuple(same) == distances.names()
    for name in distances.names():
        np.testing.assert_allclose(same[name], 0, atol=5e-6)
        assert (np.asarray(other[name]) > 2e-5).all(), name


@pytest.mark.parametrize("name", distances.names())
def test_values_and_gradients_are_finite_on_silence(name):
    silence, sound = jnp.zeros((1, 4_000)), jnp.asarray(NOISE[:1, :4_000])

    @jax.jit
    @jax.value_and_grad
    def total(prediction, target):
        return distances.compare(
            distances.features(prediction, RATE, (name,)),
            distances.features(target, RATE, (name,)),
            (name,),
        )[name].sum()

    for prediction in (silence, sound):
        for target in (silence, sound):
            value, gradient = total(prediction, target)
            assert np.isfinite(value) and np.isfinite(gradient).all()


def test_one_target_serves_all_predictions():
    one = distances.measure(NOISE, NOISE[:1], sample_rate=RATE, at_once=2)
    each = distances.measure(NOISE, NOISE[jnp.zeros(3, int)], sample_rate=RATE)
    for name in distances.names():
        np.testing.assert_allclose(one[name], each[name], rtol=1e-5, atol=1e-6)


def test_gain_in_decibels():
    # 6.02 dB in every bin, half of log10 4 in every band.
    loud = jnp.asarray(NOISE)
    np.testing.assert_allclose(
        distance("lsd", loud, 2 * loud), 20 * np.log10(2), rtol=1e-2
    )
    np.testing.assert_allclose(
        distance("multi_mel", loud, 2 * loud), np.log10(2), rtol=2e-2
    )
    # Neither timbre nor the shape of the envelope hears a gain.
    for name in ("sot", "envelope"):
        np.testing.assert_allclose(distance(name, loud, 2 * loud), 0, atol=1e-3)


def test_the_gain_that_brings_a_clip_to_a_target():
    decibels = np.arange(-24, 13, 1.5, dtype=np.float32)
    goal = distances.features(NOISE[:1], RATE, ("stft",), every=2)["stft"]
    for wanted in (-9.0, 0.0, 6.0):
        clip = NOISE[0] * 10 ** (-wanted / 20)
        found = distances.gain(clip, goal, decibels, every=2)
        assert found == wanted
        found = distances.gain(clip, goal, decibels, every=2, most=-4.0)
        assert found == min(wanted, -4.5)
    # Silence stays what it is.
    assert np.isfinite(distances.gain(0 * clip, goal, decibels, every=2))


def test_optimal_transport_is_the_way_to_go_in_frequency():
    near, far = tone(2_000), tone(6_000)
    measured = distance("sot", near, far)
    np.testing.assert_allclose(measured, 4_000 / 16_000, rtol=0.03)
    half = distance("sot", near, tone(4_000))
    np.testing.assert_allclose(half, measured / 2, rtol=0.03)


def test_envelopes_apart_in_time_are_orthogonal():
    first = jnp.asarray(NOISE[:1]).at[:, 2_000:].set(0)
    last = jnp.asarray(NOISE[:1]).at[:, :5_000].set(0)
    assert distance("envelope", first, last)[0] == pytest.approx(1, abs=1e-6)
    assert distance("envelope", first, 0 * first)[0] == pytest.approx(1)


def brute_force(cost):
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for i in range(rows):
        for j in range(columns):
            total[i + 1, j + 1] = cost[i, j] + min(
                total[i, j], total[i, j + 1], total[i + 1, j]
            )
    return total[-1, -1] / (rows + columns)


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 5), (7, 4), (9, 12)])
def test_time_warping_finds_the_cheapest_path(rows, columns):
    cost = np.random.default_rng(0).uniform(size=(5, rows, columns))
    found = distances.dynamic_time_warping(jnp.asarray(cost, jnp.float32))
    np.testing.assert_allclose(found, [brute_force(c) for c in cost], rtol=1e-5)


def test_time_warping_forgives_a_delay():
    steps = jnp.concatenate([tone(f, 8_192) for f in (500, 1_500, 3_000)], 1)
    delayed = jnp.roll(steps, 3_072, axis=1).at[:, :3_072].set(steps[:, :3_072])
    # Plain difference of the same coefficients, frame by frame.
    own, other = (
        distances.get("dtw_mfcc").features(a, RATE) for a in (steps, delayed)
    )
    straight = float(jnp.linalg.norm(own - other, axis=-1).mean()) / 2
    assert distance("dtw_mfcc", steps, delayed)[0] < 0.5 * straight


def test_bad_clips_and_names_are_refused():
    with pytest.raises(ValueError, match="6000 samples and targets 5000"):
        distances.measure(NOISE, NOISE[:, :5_000], sample_rate=RATE)
    with pytest.raises(ValueError, match="3 predictions and 2 targets"):
        distances.measure(NOISE, NOISE[:2], sample_rate=RATE)
    with pytest.raises(ValueError, match="too short"):
        distances.measure(NOISE[:, :320], NOISE[:, :320], sample_rate=RATE)
    with pytest.raises(ValueError, match="'mstf', did you mean 'mstft'"):
        distances.get("mstf")


def test_parameter_metrics_count_each_kind():
    space = spaces.get("diva")
    target = space.sample(jax.random.key(0), (2,))
    prediction = np.array(target)
    prediction[0, space.numerical] += 0.25
    prediction[0, space.binary[0]] = 1 - prediction[0, space.binary[0]]
    prediction[1, space.categorical[:3]] += 1
    metrics = distances.parameter_metrics(
        jnp.asarray(prediction), target, space
    )
    np.testing.assert_allclose(metrics["numerical_mae"], [0.25, 0], atol=1e-6)
    np.testing.assert_allclose(metrics["binary_accuracy"], [21 / 22, 1])
    np.testing.assert_allclose(metrics["categorical_accuracy"], [1, 48 / 51])
    assert "binary_accuracy" not in distances.parameter_metrics(
        jnp.zeros((1, 100)), jnp.zeros((1, 100)), spaces.get("dexed")
    )
    with pytest.raises(ValueError, match="diva has 173 values"):
        distances.parameter_metrics(target[:, :9], target, space)


def test_a_mean_of_some_frames_is_near_that_of_all():
    rng = np.random.default_rng(0)
    time = np.arange(32_000) / RATE
    clips = jnp.stack(
        [
            np.exp(-rng.uniform(1, 8) * time)
            * np.sin(2 * np.pi * rng.uniform(100, 2_000) * time)
            for _ in range(8)
        ]
    ).astype(np.float32)
    exact, thin = (
        np.asarray(
            jax.jit(
                functools.partial(
                    distances.quick_a_mean, sample_rate=RATE, every=every
                )
            )(
                clips[1:],
                distances.features(clips[:1], RATE, ("a_mean",), every=every),
            )
        )
        for every in (1, 8)
    )
    measured = distances.measure(
        clips[1:], clips[:1], sample_rate=RATE, chosen=("a_mean",)
    )
    np.testing.assert_allclose(exact, measured["a_mean"], rtol=1e-5)
    np.testing.assert_allclose(thin, exact, rtol=0.15)
    assert np.corrcoef(thin, exact)[0, 1] > 0.97


@pytest.mark.parametrize(("name", "every"), [("sot", 2), ("stft", 0)])
def test_not_every_distance_has_fewer_frames(name, every):
    with pytest.raises(ValueError, match="each n-th frame"):
        distances.features(NOISE, RATE, (name,), every=every)
