"""Gaussian noise that is the same on every machine and in the C++ runtime, bit for bit, as a function of the seed.

`TorchNoise` repeats the stream of PyTorch's CPU generator, so a seed gives the sound of the official code.
`PhiloxNoise` is counter-based: any draw of any item by itself, in any language. A sampler asks either for
`draw(step, shape)`: step 0 is the start noise, step i + 1 the noise of solver row i.
"""

from __future__ import annotations

from math import prod
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ezaudio.runtime import exact_math
from ezaudio.runtime.errors import InputError

Float32: TypeAlias = NDArray[np.float32]
UInt32: TypeAlias = NDArray[np.uint32]

BLOCK = 4096  # values whose intermediate results stay in the second-level cache: half the time


class NoiseSource(Protocol):
    """Where a sampler gets its noise."""

    def draw(self, step: int, shape: tuple[int, ...]) -> Float32:
        """Standard normals: the start noise for step 0, then the noise of each solver row at its number from 1."""
        ...


def _seed64(seed: int) -> int:
    """A seed as PyTorch reads it: −2⁶³ to 2⁶⁴ − 1, negative ones modulo 2⁶⁴. Raises InputError outside."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise InputError(f"seed must be a whole number, got {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed must be −2⁶³ to 2⁶⁴ − 1, got {seed}")
    return int(seed) % 2**64


def _box_muller(radii: NDArray[np.unsignedinteger], angles: NDArray[np.unsignedinteger], bits: int) -> Float32:
    """√(−2·ln u)·cos 2πv and √(−2·ln u)·sin 2πv with u = radii/2ᵇⁱᵗˢ in (0, 1] and v = angles/2ᵇⁱᵗˢ in [0, 1).

    radii, angles: integers of one shape (N,). Returns: (2, N), computed in float64.
    """
    normals = np.empty((2, radii.size), np.float32)
    unit = 2.0**-bits
    for start in range(0, radii.size, BLOCK):
        block = slice(start, start + BLOCK)
        radius = np.sqrt(-2.0 * exact_math.log(radii[block].astype(np.float64) * unit))
        cosine, sine = exact_math.cos_sin_turns(angles[block].astype(np.float64) * unit)
        normals[0, block], normals[1, block] = radius * cosine, radius * sine
    return normals


class TorchNoise:
    """float32 normals of `torch.Generator("cpu").manual_seed(seed)`, to 2e-6: a stream, each draw continues the last.

    The words are MT19937's, seeded with the low 32 bits. PyTorch turns them into normals in two ways:

    - 16 values or more: one word a value, its low 24 bits over 2²⁴. In every 16, the first eight (as 1 − u) are the
      radii and the last eight the angles of Box–Muller. When the count is no multiple of 16, the last 16 values are
      drawn anew.
    - fewer: Box–Muller on pairs of 53-bit uniforms, one value at a time. The sine half waits for the next
      such value, across calls, whatever is drawn in between.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.RandomState(_seed64(seed) % 2**32)
        self._waiting: float | None = None
        self._next_step = 0

    def draw(self, step: int, shape: tuple[int, ...]) -> Float32:
        """The next draw of the stream. Steps must come in order from 0: a stream cannot skip."""
        assert step == self._next_step, f"draw {step} asked for, {self._next_step} is next"
        self._next_step += 1
        return self.normal(shape)

    def normal(self, shape: tuple[int, ...]) -> Float32:
        """What `torch.randn(shape, generator=generator)` gives next. shape: any, () and empty included."""
        size = prod(shape)
        values = self._many(size) if size >= 16 else np.array([self._one() for _ in range(size)], dtype=np.float32)
        return values.reshape(shape)

    def _uint32(self, count: int) -> UInt32:
        return self._words.randint(0, 2**32, count, dtype=np.uint32)

    def _many(self, size: int) -> Float32:
        words = self._uint32(size)
        normals = np.empty(size, dtype=np.float32)
        whole = size - size % 16
        normals[:whole] = _chunks_of_16(words[:whole])
        if size % 16:
            normals[-16:] = _chunks_of_16(self._uint32(16))
        return normals

    def _one(self) -> float:
        if self._waiting is not None:
            value, self._waiting = self._waiting, None
            return value
        high_u, low_u, high_v, low_v = (int(word) for word in self._uint32(4))
        u, v = (high_u << 32 | low_u) % 2**53, (high_v << 32 | low_v) % 2**53
        (value,), (self._waiting,) = _box_muller(
            np.array([2**53 - v], np.uint64), np.array([u], np.uint64), 53
        ).tolist()
        return float(value)


def _chunks_of_16(words: UInt32) -> Float32:
    radii, angles = (words & np.uint32(2**24 - 1)).reshape(-1, 2, 8).transpose(1, 0, 2).reshape(2, -1)
    normals = _box_muller(np.uint32(2**24) - radii, angles, 24)
    return normals.reshape(2, -1, 8).transpose(1, 0, 2).reshape(-1)


def philox4x32(counter: tuple[UInt32, UInt32, UInt32, UInt32], key: int) -> tuple[UInt32, UInt32, UInt32, UInt32]:
    """Philox4x32-10 (Salmon et al. 2011, section 3.3).

    Args:
        counter: four words, arrays of one shape (or that broadcast to one).
        key: 64 bits; its low half is the first key word.

    Returns: four words of random bits per counter.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*(word.astype(np.uint64) for word in counter))
    low_word = np.uint64(0xFFFFFFFF)
    k0, k1 = key % 2**32, key >> 32
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & low_word,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & low_word,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0.astype(np.uint32), c1.astype(np.uint32), c2.astype(np.uint32), c3.astype(np.uint32)


class PhiloxNoise:
    """Counter-based normals: a draw depends on (seed, item, step) and the place in the latent, and on nothing else.

    Values 4i…4i+3 of a draw, in C order, come from the four words w of Philox4x32-10 with counter (i, step, item, 0)
    and the seed as key, low word first. With U(w) = (w >> 8)·2⁻²⁴ and R(w) = √(−2·ln(((w >> 8) + 1)·2⁻²⁴)) they are

        R(w0)·cos 2πU(w1),  R(w0)·sin 2πU(w1),  R(w2)·cos 2πU(w3),  R(w2)·sin 2πU(w3)

    in float64, rounded to float32. A draw whose size is no multiple of 4 drops the rest of its last group. Largest
    magnitude: √(48·ln 2) = 5.77.

    Args:
        seed: −2⁶³ to 2⁶⁴ − 1, modulo 2⁶⁴.
        item: which clip of a batch, 0 to 2³² − 1.

    Raises: InputError for a seed or item out of range.
    """

    def __init__(self, seed: int, item: int = 0) -> None:
        if not 0 <= item < 2**32:
            raise InputError(f"item must be 0 to 2³² − 1, got {item}")
        self._key = _seed64(seed)
        self._item = np.array([item], dtype=np.uint32)

    def draw(self, step: int, shape: tuple[int, ...]) -> Float32:
        """Standard normals of `step` (0 to 2³² − 1), in any order and as often as wanted."""
        size = prod(shape)
        index = np.arange((size + 3) // 4, dtype=np.uint32)
        counter = (index, np.array([step], dtype=np.uint32), self._item, np.zeros(1, dtype=np.uint32))
        w0, w1, w2, w3 = (word >> np.uint32(8) for word in philox4x32(counter, self._key))
        radii, angles = np.concatenate([w0, w2]) + np.uint32(1), np.concatenate([w1, w3])
        normals = _box_muller(radii, angles, 24).reshape(2, 2, -1)  # cosine or sine, first or second pair, group
        return normals.transpose(2, 1, 0).reshape(-1)[:size].reshape(shape)
