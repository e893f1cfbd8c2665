"""One sampler step in float32: guidance, rescale, solver row, noise and the blend of an edit, in two launches.

    guided = u + w·(c − u)          v = guided·(1 + φ·(std(c)/std(guided) − 1))     (Lin et al. 2023, eq. 15–16)
    clean = c4·x + c5·v             next = c0·x + c1·v + c2·p + c3·z

The deviations are unbiased, over channels and frames of each clip. The first kernel leaves count, mean and sum of
squared deviations of c and guided for each chunk of a clip; the second combines them in a fixed order (Chan et al.
1979) and does the rest in one pass. What changes between requests (seed, item, guidance, rescale, the row) is read from
device memory, so that a CUDA graph serves every request.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ezaudio.kernels.operator import operator
from ezaudio.kernels.philox import normals

CHUNK = 4096  # values of a clip a program takes the moments of
GROUPS = 128  # groups of four values a program of the step writes


@triton.jit
def _moments_fwd_kernel(
    conditional_ptr: tl.pointer_type,  # (B, N) c
    negative_ptr: tl.pointer_type,  # (B, N) u
    scale_ptr: tl.pointer_type,  # (B,) w
    moments_ptr: tl.pointer_type,  # (B, P, 2, 2): mean and squared deviations of c, then of guided
    size: int,  # N
    CHUNK: tl.constexpr,
) -> None:
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * CHUNK
    index = first + tl.arange(0, CHUNK)
    mask = index < size
    count = tl.minimum(size - first, CHUNK).to(tl.float32)
    conditional = tl.load(conditional_ptr + batch * size + index, mask=mask, other=0.0)
    negative = tl.load(negative_ptr + batch * size + index, mask=mask, other=0.0)
    guided = negative + tl.load(scale_ptr + batch) * (conditional - negative)
    target = moments_ptr + (batch * tl.num_programs(0) + tl.program_id(0)) * 4
    mean = tl.sum(conditional, axis=0) / count
    centred = tl.where(mask, conditional - mean, 0.0)
    tl.store(target, mean)
    tl.store(target + 1, tl.sum(centred * centred, axis=0))
    mean = tl.sum(guided, axis=0) / count
    centred = tl.where(mask, guided - mean, 0.0)
    tl.store(target + 2, mean)
    tl.store(target + 3, tl.sum(centred * centred, axis=0))


@triton.jit
def _deviation(
    moments_ptr: tl.pointer_type,  # (P, 2, 2) of one clip, from its first mean on
    size: int,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,  # power of two, at least P
) -> tl.tensor:
    """√ of the unbiased variance, at least 1e-12."""
    chunk = tl.arange(0, CHUNKS)
    count = tl.maximum(tl.minimum(size - chunk * CHUNK, CHUNK), 0).to(tl.float32)
    mean = tl.load(moments_ptr + chunk * 4, mask=count > 0, other=0.0)
    squares = tl.load(moments_ptr + chunk * 4 + 1, mask=count > 0, other=0.0)
    centre = tl.sum(mean * count, axis=0) / size
    total = tl.sum(squares + count * (mean - centre) * (mean - centre), axis=0)
    return tl.sqrt(tl.maximum(total / (size - 1), 1e-24))


@triton.jit
def _sampler_step_fwd_kernel(
    latents_ptr: tl.pointer_type,  # (B, N) x
    conditional_ptr: tl.pointer_type,  # (B, N) c
    negative_ptr: tl.pointer_type,  # (B, N) u
    clean_ptr: tl.pointer_type,  # (B, N) p, the clean estimate of the step before
    noise_ptr: tl.pointer_type,  # (B, N) z
    given_ptr: tl.pointer_type,  # (B, N) latent to keep
    mask_ptr: tl.pointer_type,  # (B, L) bytes, 0 where a frame is kept
    moments_ptr: tl.pointer_type,  # (B, P, 2, 2)
    scale_ptr: tl.pointer_type,  # (B,) w
    rescale_ptr: tl.pointer_type,  # (B,) φ
    seeds_ptr: tl.pointer_type,  # (B,) int64
    items_ptr: tl.pointer_type,  # (B,) int64
    row_ptr: tl.pointer_type,  # (6,) c0…c5
    next_ptr: tl.pointer_type,  # (B, N)
    next_clean_ptr: tl.pointer_type,  # (B, N)
    size: int,  # N = C·L
    frames: int,  # L
    step: int,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    GUIDED: tl.constexpr,
    HAS_CLEAN: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    PHILOX: tl.constexpr,
    EDIT: tl.constexpr,
) -> None:
    batch = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * 4 * GROUPS + tl.arange(0, 4 * GROUPS)
    mask = index < size
    offset = batch * size + index
    latents = tl.load(latents_ptr + offset, mask=mask, other=0.0)
    velocity = tl.load(conditional_ptr + offset, mask=mask, other=0.0)
    if GUIDED:
        negative = tl.load(negative_ptr + offset, mask=mask, other=0.0)
        velocity = negative + tl.load(scale_ptr + batch) * (velocity - negative)
        moments = moments_ptr + batch * tl.cdiv(size, CHUNK) * 4
        ratio = _deviation(moments, size, CHUNK, CHUNKS) / _deviation(moments + 2, size, CHUNK, CHUNKS)
        velocity *= 1.0 + tl.load(rescale_ptr + batch) * (ratio - 1.0)
    following = tl.load(row_ptr) * latents + tl.load(row_ptr + 1) * velocity
    if HAS_CLEAN:
        following += tl.load(row_ptr + 2) * tl.load(clean_ptr + offset, mask=mask, other=0.0)
    if HAS_NOISE:
        following += tl.load(row_ptr + 3) * tl.load(noise_ptr + offset, mask=mask, other=0.0)
    if PHILOX:
        group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
        item = tl.load(items_ptr + batch).to(tl.int32)
        following += tl.load(row_ptr + 3) * normals(group, step, item, tl.load(seeds_ptr + batch), GROUPS)
    if EDIT:
        generated = tl.load(mask_ptr + batch * frames + index % frames, mask=mask, other=0) != 0
        following = tl.where(generated, following, tl.load(given_ptr + offset, mask=mask, other=0.0))
    tl.store(next_ptr + offset, following, mask=mask)
    clean = tl.load(row_ptr + 4) * latents + tl.load(row_ptr + 5) * velocity
    tl.store(next_clean_ptr + offset, clean, mask=mask)


@triton.jit
def _philox_normal_fwd_kernel(
    seeds_ptr: tl.pointer_type,  # (B,) int64
    items_ptr: tl.pointer_type,  # (B,) int64
    out_ptr: tl.pointer_type,  # (B, N) float32
    size: int,
    step: int,
    GROUPS: tl.constexpr,
) -> None:
    batch = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    index = tl.program_id(0) * 4 * GROUPS + tl.arange(0, 4 * GROUPS)
    item = tl.load(items_ptr + batch).to(tl.int32)
    values = normals(group, step, item, tl.load(seeds_ptr + batch), GROUPS)
    tl.store(out_ptr + batch * size + index, values, mask=index < size)


@operator(
    "sampler_step",
    "(Tensor latents, Tensor conditional, Tensor row, Tensor? negative, Tensor? previous_clean, Tensor? scale,"
    " Tensor? rescale, Tensor? noise, Tensor? seeds, Tensor? items, int step, Tensor? given, Tensor? mask)"
    " -> (Tensor, Tensor)",
)
def _sampler_step(
    latents: Tensor,
    conditional: Tensor,
    row: Tensor,
    negative: Tensor | None,
    previous_clean: Tensor | None,
    scale: Tensor | None,
    rescale: Tensor | None,
    noise: Tensor | None,
    seeds: Tensor | None,
    items: Tensor | None,
    step: int,
    given: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, channels, frames = latents.shape
    size = channels * frames
    chunks = triton.cdiv(size, CHUNK)
    moments = None
    if negative is not None:
        moments = latents.new_empty((batch, chunks, 2, 2))
        _moments_fwd_kernel[(chunks, batch)](conditional, negative, scale, moments, size, CHUNK=CHUNK, num_warps=8)
    following, clean = _sampler_step_fake(latents)
    _sampler_step_fwd_kernel[(triton.cdiv(size, 4 * GROUPS), batch)](
        latents, conditional, negative, previous_clean, noise, given, mask, moments, scale, rescale, seeds, items, row,
        following, clean, size, frames, step, GROUPS=GROUPS, CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks),
        GUIDED=negative is not None, HAS_CLEAN=previous_clean is not None, HAS_NOISE=noise is not None,
        PHILOX=seeds is not None, EDIT=given is not None, num_warps=4,
    )  # fmt: skip
    return following, clean


@_sampler_step.register_fake
def _sampler_step_fake(latents: Tensor, *_: Tensor | int | None) -> tuple[Tensor, Tensor]:
    return latents.new_empty(latents.shape), latents.new_empty(latents.shape)


def sampler_step(
    latents: Tensor,
    conditional: Tensor,
    row: Tensor,
    negative: Tensor | None = None,
    previous_clean: Tensor | None = None,
    scale: Tensor | None = None,
    rescale: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    items: Tensor | None = None,
    step: int = 0,
    given: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`guide` and `solver_step` of `ezaudio/sampling.py` in one: (next latents, clean estimate), (B, C, L) each.

    Args:
        latents, conditional: (B, C, L) float32.
        row: (6,) float32 coefficients of the step, on the device.
        negative: (B, C, L) velocity of the negative prompt, with `scale` and `rescale` (B,); None without guidance.
        previous_clean: (B, C, L) of the step before; None at the first, whose c2 is 0.
        noise: (B, C, L) noise of the step, or
        seeds, items, step: (B,) int64 each and the draw's number, for the noise of `PhiloxNoise`; none where c3 is 0.
        given, mask: (B, C, L) latent and (B, L), False where its frames are put back; for the last step of an edit.
    """
    tensors = (latents, conditional, negative, previous_clean, noise, given)
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors if t is not None)
    assert all(t.shape == latents.shape for t in tensors if t is not None)
    batch, _, frames = latents.shape
    assert all(t.shape == (batch,) for t in (scale, rescale, seeds, items) if t is not None)
    assert mask is None or mask.shape == (batch, frames)
    assert (negative is None) == (scale is None) == (rescale is None)
    assert (given is None) == (mask is None)
    assert (seeds is None) == (items is None)
    assert seeds is None or noise is None
    return _sampler_step(
        latents, conditional, row, negative, previous_clean, scale, rescale, noise, seeds, items, step, given, mask
    )


@operator("philox_normal", "(Tensor seeds, Tensor items, int step, SymInt[] shape) -> Tensor")
def _philox_normal(seeds: Tensor, items: Tensor, step: int, shape: list[int]) -> Tensor:
    out = _philox_normal_fake(seeds, items, step, shape)
    size = out[0].numel()
    _philox_normal_fwd_kernel[(triton.cdiv(size, 4 * GROUPS), shape[0])](
        seeds, items, out, size, step, GROUPS=GROUPS, num_warps=4
    )
    return out


@_philox_normal.register_fake
def _philox_normal_fake(seeds: Tensor, items: Tensor, step: int, shape: list[int]) -> Tensor:
    return seeds.new_empty(shape, dtype=torch.float32)


def philox_normal(seeds: Tensor, items: Tensor, step: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Standard normals of draw `step`, `PhiloxNoise(seed, item).draw(step, …)` for each of the batch.

    Args:
        seeds: (B,) int64, a seed of 2⁶³ or more as its negative equal modulo 2⁶⁴.
        items: (B,) int64, 0 to 2³² − 1.
        shape: (B, …).
    """
    return _philox_normal(seeds, items, step, list(shape))
