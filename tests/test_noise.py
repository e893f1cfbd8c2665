"""Noise: PyTorch's CPU stream, word for word, and the counter-based generator against published vectors."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ezaudio.runtime.errors import InputError
from ezaudio.runtime.noise import PhiloxNoise, TorchNoise, philox4x32

ATOL = 2e-6
SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 1, -1, -7, -(2**32), -(2**63)]


def torch_draws(seed, shapes):
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(shape, generator=generator).numpy() for shape in shapes]


def assert_same_stream(seed, shapes):
    noise = TorchNoise(seed)
    for shape, expected in zip(shapes, torch_draws(seed, shapes), strict=True):
        got = noise.normal(shape)
        assert got.dtype == np.float32
        assert got.shape == shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)


def test_torch_stream_matches_the_golden_draws():
    expected = golden.load("pipeline_tiny_io")
    noise = TorchNoise(7)
    for step, name in enumerate(["noise.seed7", "noise.seed7.second_draw_after_first"]):
        np.testing.assert_allclose(noise.draw(step, (1, 16, 40)), expected[name].numpy(), rtol=0, atol=ATOL)
    np.testing.assert_allclose(
        TorchNoise(7).normal((1, 3, 5)), expected["noise.seed7.small"].numpy(), rtol=0, atol=ATOL
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_torch_stream_for_seeds_as_torch_reads_them(seed):
    assert_same_stream(seed, [(1, 128, 500), (7,), (1, 8, 31), (3,)])


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 24, 31, 32, 33, 64_000, 64_001, 1_000_003])
def test_torch_stream_for_sizes(size):
    assert_same_stream(3, [(size,), (size,)])


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=8),
)
def test_torch_stream_for_interleaved_draws(seed, shapes):
    """Small draws leave a waiting value that large ones in between must not touch."""
    assert_same_stream(seed, shapes)


def test_torch_stream_is_drawn_in_order():
    noise = TorchNoise(0)
    noise.draw(0, (16,))
    with pytest.raises(AssertionError, match="draw 2 asked for, 1 is next"):
        noise.draw(2, (16,))


@pytest.mark.parametrize("source", [TorchNoise, PhiloxNoise])
@pytest.mark.parametrize(
    ("seed", "message"),
    [(2**64, "seed must be"), (-(2**63) - 1, "seed must be"), (1.0, "whole number"), (True, "whole number")],
)
def test_bad_seeds_are_named(source, seed, message):
    with pytest.raises(InputError, match=message):
        source(seed)


def test_torch_refuses_the_same_seeds():
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises((RuntimeError, ValueError)):
            torch.Generator("cpu").manual_seed(seed)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zero"),
        pytest.param((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD), id="all ones"),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="pi",
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """kat_vectors of Random123, the generator's own reference."""
    words = philox4x32(tuple(np.array([word], dtype=np.uint32) for word in counter), key)
    assert tuple(int(word[0]) for word in words) == expected


def test_philox_values_follow_the_docstring_one_at_a_time():
    seed, item, step, shape = -5, 3, 9, (2, 5, 3)
    got = PhiloxNoise(seed, item).draw(step, shape).reshape(-1)
    expected = []
    for i in range(8):
        counter = tuple(np.array([word], dtype=np.uint32) for word in (i, step, item, 0))
        w0, w1, w2, w3 = (int(word[0]) >> 8 for word in philox4x32(counter, seed % 2**64))
        for radius, angle in ((w0, w1), (w2, w3)):
            r, theta = np.sqrt(-2 * np.log((radius + 1) / 2**24)), 2 * np.pi * angle / 2**24
            expected += [r * np.cos(theta), r * np.sin(theta)]
    np.testing.assert_allclose(got, expected[: got.size], rtol=0, atol=ATOL)


def test_philox_draws_depend_on_seed_item_step_and_place_alone():
    noise = PhiloxNoise(11, item=2)
    long = noise.draw(5, (1, 8, 500))
    np.testing.assert_array_equal(noise.draw(5, (1, 8, 500)), long)
    np.testing.assert_array_equal(PhiloxNoise(11, item=2).draw(5, (37,)), long.reshape(-1)[:37])
    for other in (PhiloxNoise(12, item=2).draw(5, (4000,)), PhiloxNoise(11).draw(5, (4000,)), noise.draw(6, (4000,))):
        assert abs(np.corrcoef(other, long.reshape(-1))[0, 1]) < 0.06


def test_philox_item_is_bounded():
    with pytest.raises(InputError, match="item must be"):
        PhiloxNoise(0, item=2**32)


def test_philox_is_finite_where_the_words_are_extreme(monkeypatch):
    for word in (0, 2**32 - 1):
        words = (np.array([word], dtype=np.uint32),) * 4
        monkeypatch.setattr("ezaudio.runtime.noise.philox4x32", lambda counter, key, words=words: words)
        assert np.isfinite(PhiloxNoise(0).draw(0, (4,))).all()


def test_philox_is_normal():
    values = PhiloxNoise(2024).draw(0, (1_000_000,)).astype(np.float64)
    assert values.mean() == pytest.approx(0, abs=4e-3)
    assert values.std() == pytest.approx(1, abs=3e-3)
    assert stats.skew(values) == pytest.approx(0, abs=1e-2)
    assert stats.kurtosis(values) == pytest.approx(0, abs=2e-2)
    assert stats.kstest(values, "norm").pvalue > 0.01
    quads = values.reshape(-1, 4)
    assert np.abs(np.corrcoef(quads.T) - np.eye(4)).max() < 1e-2
    assert np.abs(np.corrcoef(quads.T**2) - np.eye(4)).max() < 1e-2
