"""Functions that must give the same bits everywhere: against extended precision, and against bits written down."""

from __future__ import annotations

import numpy as np

from ezaudio.config import DiffusionConfig
from ezaudio.runtime import exact_math
from ezaudio.runtime.noise import PhiloxNoise, TorchNoise
from ezaudio.runtime.solvers import solver_plan

TWO_PI = np.longdouble("6.28318530717958647692528676655900577")


def test_logarithm_and_exponential_are_accurate() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.random(200_000) + 1e-300, 10.0 ** rng.uniform(-300, 300, 200_000), 1 - rng.random(999) / 1e9]
    )
    expected = np.log(x.astype(np.longdouble))
    assert np.abs((exact_math.log(x) - expected) / expected).max() < 5e-16  # measured: 4.0e-16
    y = rng.uniform(-700, 700, 200_000)
    expected = np.exp(y.astype(np.longdouble))
    assert np.abs((exact_math.exp(y) - expected) / expected).max() < 5e-16  # measured: 1.7e-16
    assert exact_math.log(np.array([1.0]))[0] == 0
    assert exact_math.exp(np.array([0.0]))[0] == 1


def test_cosine_and_sine_are_accurate_over_every_24_bit_turn() -> None:
    turns = np.arange(0, 2**24 + 1, 37) / 2**24
    cosine, sine = exact_math.cos_sin_turns(turns)
    angles = turns.astype(np.longdouble) * TWO_PI
    assert np.abs(cosine - np.cos(angles)).max() < 3e-16  # measured: 2.0e-16
    assert np.abs(sine - np.sin(angles)).max() < 3e-16  # measured: 2.0e-16
    cosine, sine = exact_math.cos_sin_turns(np.array([0, 0.25, 0.5, 0.75, 1.0]))
    assert cosine.tolist() == [1, 0, -1, 0, 1]
    assert sine.tolist() == [0, 1, 0, -1, 0]


def test_powers() -> None:
    base = np.array([0.0, 1e-9, 0.3, 1.0])
    assert exact_math.power(base, 0.0).tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(exact_math.power(base, 1.7), base**1.7, rtol=1e-14)


def test_bits_are_those_written_down() -> None:
    """A processor or a NumPy that rounds differently shows here, before it shows as two sounds from one seed."""
    x = np.array([1e-7, 0.1, 0.7, 0.9999999])
    assert [v.hex() for v in exact_math.log(x).tolist()] == BITS["log"]
    assert [v.hex() for v in exact_math.exp(-x * 30).tolist()] == BITS["exp"]
    assert [v.hex() for part in exact_math.cos_sin_turns(x) for v in part.tolist()] == BITS["cos_sin"]
    assert TorchNoise(7).draw(0, (21,)).tobytes().hex()[-40:] == BITS["torch"]
    assert TorchNoise(7).draw(0, (3,)).tobytes().hex() == BITS["torch_few"]
    assert PhiloxNoise(7, 2).draw(3, (7,)).tobytes().hex() == BITS["philox"]
    assert solver_plan("dpmpp_2m_sde", 7, 0.3, DiffusionConfig()).rows[3].tobytes().hex() == BITS["rows"]


BITS = {
    "log": ["-0x1.01e3b843eaa73p+4", "-0x1.26bb1bbb55515p+1", "-0x1.6d3c324e13f4fp-2", "-0x1.ad7f2b1049ba0p-24"],
    "exp": ["0x1.ffff9b563c210p-1", "0x1.97db0ccceb0afp-5", "0x1.a0db0d0ddb3ecp-31", "0x1.a56e5f0612adcp-44"],
    "cos_sin": [
        "0x1.ffffffffff90ep-1",
        "0x1.9e3779b97f4a8p-1",
        "-0x1.3c6ef372fe954p-2",
        "0x1.ffffffffff90ep-1",
        "0x1.515370f99f544p-21",
        "0x1.2cf2304755a5ep-1",
        "-0x1.e6f0e134454ffp-1",
        "-0x1.515370f6a4be2p-21",
    ],
    "torch": "27e05dbfba6210bf159d03c053a4b6befa3b8c3f",
    "torch_few": "745116be8e40493fe762723f",
    "philox": "0f4b26400cfa633f78b801bf2622ce3f548a1a405c24593f32f2a2bf",
    "rows": "460e6a3fa288bfbee306f0bdeab8d63e28fdca3e61056bbf",
}
