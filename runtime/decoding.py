"""Latents → samples in chunks, so that sound starts before the clip is decoded, and in parts that bound its memory.

A sample depends on a few latent frames on either side. `latent_span` follows that dependence through the decoder layer
by layer, so that every chunk decodes just the frames it needs and equals the whole decode to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ezaudio.config import VAEConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]

FIRST_CHUNKS_A_SECOND = 4  # the first chunk is short, for a quick start; each later one is half as long again
LONGEST_CHUNK_S = 4
# A third of the memory of 10 s at once, in 9 % more time: frames at both ends of a part are decoded twice.
LONGEST_PART_S = 4

EDGE_REACH = 3  # of the convolutions with kernel 7 at both ends
RESIDUAL_REACH = 3 * (1 + 3 + 9)  # of the three residual units of a block: kernel 7, dilations 1, 3 and 9


def latent_span(begin: int, end: int, vae: VAEConfig) -> tuple[int, int]:
    """Frames that samples `begin` to `end` − 1 depend on: the first and one past the last, not cut to the clip."""
    first, last = begin - EDGE_REACH, end - 1 + EDGE_REACH
    for stride in vae.strides:  # the decoder walks them in reverse
        first, last = first - RESIDUAL_REACH, last + RESIDUAL_REACH
        # Transposed convolution, kernel 2s, padding s/2: sample n comes from frames m and m − 1, m = ⌊(n + s/2)/s⌋.
        first, last = (first + stride // 2) // stride - 1, (last + stride // 2) // stride
    return first - EDGE_REACH, last + EDGE_REACH + 1


def chunk_bounds(num_samples: int, sample_rate: int) -> Iterator[tuple[int, int]]:
    """First sample and one past the last of every chunk."""
    begin, size = 0, max(1, sample_rate // FIRST_CHUNKS_A_SECOND)
    while begin < num_samples:
        end = min(begin + size, num_samples)
        yield begin, end
        begin, size = end, min(size * 3 // 2, LONGEST_CHUNK_S * sample_rate)


def decode_chunks(
    decode: Callable[[Float32], Float32], latents: Float32, num_samples: int, vae: VAEConfig
) -> Iterator[Float32]:
    """Samples (T,) of latents (1, C, L), chunk by chunk, the first `num_samples` in all.

    Args:
        decode: the whole decoder, (1, C, L) → (1, L · hop).
    """
    for begin, end in chunk_bounds(num_samples, vae.sample_rate):
        yield _decode_span(decode, latents, begin, end, vae)


def decode_parts(decode: Callable[[Float32], Float32], latents: Float32, num_samples: int, vae: VAEConfig) -> Float32:
    """All samples (T,) at once: whole, or in as few equal parts as keep each to LONGEST_PART_S."""
    bounds = part_bounds(num_samples, vae.sample_rate)
    return np.concatenate([_decode_span(decode, latents, begin, end, vae) for begin, end in bounds])


def part_bounds(num_samples: int, sample_rate: int) -> Iterator[tuple[int, int]]:
    """First sample and one past the last of every part."""
    count = -(-num_samples // (LONGEST_PART_S * sample_rate))
    return pairwise(num_samples * part // count for part in range(count + 1))


def frame_bounds(begin: int, end: int, num_frames: int, vae: VAEConfig) -> tuple[int, int]:
    """First frame and one past the last that samples `begin` to `end` − 1 depend on, in a clip of `num_frames`."""
    first, last = latent_span(begin, end, vae)
    return max(first, 0), min(last, num_frames)


def _decode_span(
    decode: Callable[[Float32], Float32], latents: Float32, begin: int, end: int, vae: VAEConfig
) -> Float32:
    """Samples `begin` to `end` − 1, from the frames that they depend on."""
    first, last = frame_bounds(begin, end, latents.shape[2], vae)
    offset = first * vae.hop
    return decode(latents[:, :, first:last])[0, begin - offset : end - offset]
