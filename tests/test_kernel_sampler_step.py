"""The fused sampler step against `guide` and `solver_step`, and its noise against `PhiloxNoise`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import DEVICE, mutant, random
from torch import Tensor

from ezaudio.config import DiffusionConfig
from ezaudio.kernels import philox, sampler_step
from ezaudio.runtime.noise import PhiloxNoise, philox4x32
from ezaudio.runtime.solvers import solver_plan
from ezaudio.sampling import guide, solver_step

SHAPES = {"ragged": (2, 7, 301), "one-chunk": (3, 8, 64), "one-frame": (2, 5, 1), "many-chunks": (1, 16, 1100)}
SEEDS, ITEMS = (5, -3, 2**63 - 1), (0, 2**32 - 1, 7)
NORMAL_TOLERANCE = 1e-6  # float32 spacing at 5.77 is 4.8e-7; measured in the interpreter: 0


def tensors(names: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: random(*shape, seed=i + 1).to(DEVICE) for i, name in enumerate(names.split())}


def guidance(batch: int) -> dict[str, Tensor]:
    return {
        "scale": torch.tensor([5.0, 1.0, 3.5], device=DEVICE)[:batch],
        "rescale": torch.tensor([0.75, 0.0, 1.0], device=DEVICE)[:batch],
    }


def expected(row: Tensor, x: dict[str, Tensor], noise: Tensor | None = None, **given: Tensor) -> tuple[Tensor, Tensor]:
    """In float64."""
    x = {name: value.double() for name, value in x.items()}
    velocity = x["conditional"]
    if "scale" in given:
        ratio_free = {name: value.double() for name, value in given.items() if name in ("scale", "rescale")}
        velocity = guide(velocity, x["negative"], **ratio_free)
    zero = torch.zeros_like(velocity)
    following, clean = solver_step(
        row.double(), x["latents"], velocity, x.get("previous_clean", zero), zero if noise is None else noise.double()
    )
    if "mask" in given:
        following = torch.where(given["mask"][:, None], following, given["given"].double())
    return following, clean


def assert_close(got: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(got, exact, strict=True):
        assert ((a.double() - b).abs().max() / b.abs().max()).item() < 2e-6  # measured: 4e-7


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_whole_step_matches(shape: tuple[int, int, int]) -> None:
    batch = shape[0]
    x = tensors("latents conditional negative previous_clean", shape)
    row = random(6, seed=9).to(DEVICE)
    mask = (random(batch, shape[2], seed=10) > 0).to(DEVICE)
    edit = {"given": random(*shape, seed=11).to(DEVICE), "mask": mask}
    seeds, items = (torch.tensor(values[:batch], device=DEVICE) for values in (SEEDS, ITEMS))
    got = sampler_step.sampler_step(row=row, seeds=seeds, items=items, step=4, **x, **guidance(batch), **edit)
    noise = sampler_step.philox_normal(seeds, items, 4, shape)
    assert_close(got, expected(row, x, noise, **guidance(batch), **edit))


@pytest.mark.parametrize("form", ["bare", "clean", "noise", "guided"])
def test_forms_match(form: str) -> None:
    shape = (2, 7, 301)
    names = "latents conditional" + {"clean": " previous_clean", "guided": " negative"}.get(form, "")
    x, row = tensors(names, shape), random(6, seed=9).to(DEVICE)
    more = guidance(2) if form == "guided" else {}
    noise = random(*shape, seed=12).to(DEVICE) if form == "noise" else None
    got = sampler_step.sampler_step(row=row, noise=noise, **x, **more)
    assert_close(got, expected(row, x, noise, **more))


def test_a_mean_far_from_zero_does_not_spoil_the_deviation() -> None:
    x = {name: value + 30 for name, value in tensors("latents conditional negative", (2, 7, 301)).items()}
    row = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 1.0], device=DEVICE)
    assert_close(sampler_step.sampler_step(row=row, **x, **guidance(2)), expected(row, x, **guidance(2)))


def test_constant_velocities_stay_finite() -> None:
    x = {name: torch.ones(1, 4, 16, device=DEVICE) for name in ("latents", "conditional", "negative")}
    got = sampler_step.sampler_step(row=torch.ones(6, device=DEVICE), **x, **guidance(1))
    assert all(value.isfinite().all() for value in got)


def test_the_first_step_at_zero_terminal_snr() -> None:
    row = torch.tensor(solver_plan("ddim", 25, 1.0, DiffusionConfig()).rows[0], device=DEVICE)
    x = tensors("latents conditional negative", (2, 8, 64))
    noise = random(2, 8, 64, seed=12).to(DEVICE)
    got = sampler_step.sampler_step(row=row, noise=noise, **x, **guidance(2))
    assert_close(got, expected(row, x, noise, **guidance(2)))


@triton.jit
def _words_kernel(seed_ptr, item_ptr, out_ptr, step, N: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.arange(0, N)
    w0, w1, w2, w3 = philox.philox_words(group, step, tl.load(item_ptr).to(tl.int32), tl.load(seed_ptr))
    tl.store(out_ptr + group, w0.to(tl.int64))
    tl.store(out_ptr + N + group, w1.to(tl.int64))
    tl.store(out_ptr + 2 * N + group, w2.to(tl.int64))
    tl.store(out_ptr + 3 * N + group, w3.to(tl.int64))


@pytest.mark.parametrize(("seed", "item"), list(zip(SEEDS, ITEMS, strict=True)))
def test_words_equal_the_runtimes(seed: int, item: int) -> None:
    out = torch.empty(4, 64, dtype=torch.int64, device=DEVICE)
    _words_kernel[(1,)](torch.tensor([seed], device=DEVICE), torch.tensor([item], device=DEVICE), out, 11, N=64)
    counter = np.arange(64, dtype=np.uint32), *(np.array([word], np.uint32) for word in (11, item, 0))
    assert np.array_equal(out.cpu().numpy(), np.stack(philox4x32(counter, seed % 2**64)))


@pytest.mark.parametrize("shape", [(3, 7, 301), (3, 1, 1), (3, 5)], ids=str)
def test_normals_equal_the_runtimes(shape: tuple[int, ...]) -> None:
    seeds, items = torch.tensor(SEEDS, device=DEVICE), torch.tensor(ITEMS, device=DEVICE)
    got = sampler_step.philox_normal(seeds, items, 3, shape).cpu().numpy()
    runtime = [PhiloxNoise(seed, item).draw(3, shape[1:]) for seed, item in zip(SEEDS, ITEMS, strict=True)]
    assert np.abs(got - np.stack(runtime)).max() <= NORMAL_TOLERANCE


def test_an_item_does_not_depend_on_its_batch() -> None:
    x, row = tensors("latents conditional negative", (3, 7, 301)), random(6, seed=9).to(DEVICE)
    seeds, items = torch.tensor(SEEDS, device=DEVICE), torch.tensor(ITEMS, device=DEVICE)
    together = sampler_step.sampler_step(row=row, seeds=seeds, items=items, step=1, **x, **guidance(3))
    alone = sampler_step.sampler_step(
        row=row, seeds=seeds[1:2], items=items[1:2], step=1,
        **{name: value[1:2] for name, value in x.items()},
        **{name: value[1:2] for name, value in guidance(3).items()},
    )  # fmt: skip
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("squares + count * (mean - centre) * (mean - centre)", "squares"),
        ("velocity *= 1.0 + tl.load(rescale_ptr + batch) * (ratio - 1.0)", "pass"),
        ("following += tl.load(row_ptr + 2) *", "following += 0.0 *"),
        ("following = tl.where(generated, following,", "_ = tl.where(generated, following,"),
        ("following += tl.load(row_ptr + 3) * normals", "following += normals"),
    ],
    ids=lambda value: value[:30],
)
def test_a_dropped_term_is_caught(old: str, new: str, tmp_path: Path) -> None:
    module = mutant(tmp_path, "sampler_step.py", old, new)("sampler_step")
    shape = (1, 16, 300)
    x = tensors("latents conditional negative previous_clean", shape)
    x["conditional"] += torch.linspace(-3, 3, 16, device=DEVICE)[None, :, None]  # chunks of different means
    row, mask = random(6, seed=9).to(DEVICE), (random(1, 300, seed=10) > 0).to(DEVICE)
    more = guidance(1) | {"given": random(*shape, seed=11).to(DEVICE), "mask": mask}
    seeds, items = torch.tensor([5], device=DEVICE), torch.tensor([0], device=DEVICE)
    got = module.sampler_step(row=row, seeds=seeds, items=items, step=4, **x, **more)
    exact = expected(row, x, sampler_step.philox_normal(seeds, items, 4, shape), **more)
    with pytest.raises(AssertionError):
        assert_close(got, exact)
