"""Audio models at work: every core or device, always the same bits."""

import functools

import jax
import numpy as np
import pytest

from launch.runs import embedding
from proxy import audio


def sounds(count):
    rng = np.random.default_rng(0)
    return rng.uniform(-0.5, 0.5, (count, 9_600)).astype(np.float32)


@functools.cache
def embedder(threads):
    return embedding.embedder(audio.get("mel128"), {}, threads=threads)


def test_any_number_of_threads_gives_the_same_bits():
    clips = sounds(2 * embedding.PART + 3)
    one, three = embedder(1)(clips), embedder(3)(clips)
    np.testing.assert_array_equal(one, three)
    plain = jax.jit(audio.get("mel128").embed)({}, clips)
    np.testing.assert_allclose(one, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, embedding.PART, embedding.PART + 1])
def test_batches_of_any_size(count):
    clips = sounds(2 * embedding.PART)
    whole = embedder(2)(clips)
    found = embedder(2)(clips[:count])
    assert found.shape == (count, whole.shape[1])
    np.testing.assert_array_equal(found, whole[:count])


def test_one_compilation_for_all_threads_and_batches():
    traced = []

    def embed(variables, clips):
        traced.append(clips.shape)
        return clips[:, :2] * variables

    model = audio.AudioModel("tiny", 32_000, 2, embed)
    tiny = embedding.embedder(model, np.float32(2), threads=4)
    for count in (4 * embedding.PART, 3, 5 * embedding.PART + 1):
        np.testing.assert_array_equal(
            tiny(sounds(count)), 2 * sounds(count)[:, :2]
        )
    assert traced == [(embedding.PART, 9_600)]


def test_devices_take_turns_and_agree():
    model = audio.get("mel128")
    devices = jax.local_devices()
    assert len(devices) > 1
    embed = embedding._by_device(jax.jit(model.embed), {})
    clips = sounds(3)
    results = [embed(clips) for _ in range(len(devices) + 1)]
    used = [result.devices() for result in results]
    assert used == [{device} for device in [*devices, devices[0]]]
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_options_reach_the_model():
    def embed(variables, clips, *, power=1):
        return clips[:, :2] ** power

    model = audio.AudioModel("tiny", 32_000, 2, embed)
    squared = embedding.embedder(model, {}, power=2)(sounds(3))
    np.testing.assert_allclose(squared, sounds(3)[:, :2] ** 2, rtol=1e-6)
