"""How a kernel is judged: its error against float64 beside PyTorch's own in the same dtype, outputs and gradients."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from ezaudio.config import DiTConfig
from ezaudio.dit import MaskDiT
from ezaudio.kernels import target

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_copy_engine = pytest.mark.skipif(
    DEVICE == "cuda" and not target.is_hopper(),
    reason="needs a GPU of compute capability 9, or none for the interpreter",
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KERNELS = Path(__file__).parents[1] / "kernels"
# Shapes of norms whose backward programs have several tiles each, with rows in pieces of 32 and 4, and of one piece.
MANY_PROGRAMS = {"many-programs": (2, 37, 35), "many-programs-whole": (2, 37, 20)}
BOTH = tuple(MANY_PROGRAMS)
PIECES, WHOLE = BOTH[:1], BOTH[1:]

Operator = Callable[..., Tensor | tuple[Tensor, ...]]


def dtype_name(value: object) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def mutation_name(value: str | tuple[str, ...]) -> str:
    """Of a term that a test changes, or of the shapes that it is noticed in."""
    return value.strip()[:28] if isinstance(value, str) else "+".join(value)


def random(*shape: int, seed: int, mean: float = 0.0) -> Tensor:
    return mean + torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖ / ‖expected‖."""
    got, expected = got.double().cpu(), expected.double().cpu()
    return ((got - expected).norm() / expected.norm()).item()


def small_model(config: DiTConfig) -> MaskDiT:
    """Values that hide nothing: the zeros of a fresh model would make its blocks identities."""
    torch.manual_seed(0)
    model = MaskDiT(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else nn.init.normal_(parameter, 1.0, 0.2)
    return model.to(DEVICE)


def results(
    operator: Operator, inputs: Mapping[str, Tensor], upstream: Sequence[Tensor], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """Outputs `out0`… and the gradient of every input, for random gradients `upstream` of the outputs."""
    given = {name: x.detach().clone().to(DEVICE, dtypes[name]).requires_grad_() for name, x in inputs.items()}
    outputs = operator(**given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, [g.to(out) for g, out in zip(upstream, outputs, strict=True)])
    found = {f"out{index}": out.detach() for index, out in enumerate(outputs)}
    for name, x in given.items():
        assert x.grad is not None, name
        assert x.grad.dtype == x.dtype
        found[name] = x.grad
    return {name: x.cpu() for name, x in found.items()}


def failures(
    fused: Operator,
    plain: Operator,
    inputs: Mapping[str, Tensor],
    upstream_shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    float32: Sequence[str] = (),
    cancels: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Outputs and gradients whose error is over 2 × PyTorch's in `dtype` + 2 ulp, both the largest against float64.

    Args:
        fused, plain: the operator and its reference, called with `inputs` by name.
        inputs: float32; every side gets the values that `dtype` can hold.
        upstream_shapes: of the outputs.
        float32: inputs that the operator takes in float32 whatever the dtype.
        cancels: gradient that is zero in exact arithmetic → the one whose size its rounding follows.
    """
    inputs = {name: x.to(dtype).float() for name, x in inputs.items()}
    upstream = [random(*shape, seed=90 + i).to(dtype).float() for i, shape in enumerate(upstream_shapes)]
    exact = results(plain, inputs, upstream, dict.fromkeys(inputs, torch.float64))
    usual = results(plain, inputs, upstream, dict.fromkeys(inputs, dtype))
    got = results(fused, inputs, upstream, {name: torch.float32 if name in float32 else dtype for name in inputs})
    assert got.keys() == exact.keys()
    failed = {}
    for name, reference in exact.items():
        assert got[name].shape == reference.shape, name
        size = exact[(cancels or {}).get(name, name)].abs().max().item()
        error, allowed = ((side[name].double() - reference).abs().max().item() for side in (got, usual))
        bound = 2 * allowed + 2 * torch.finfo(dtype).eps * size
        if not error <= bound:
            failed[name] = f"error {error:.2g}, PyTorch's {allowed:.2g}, bound {bound:.2g}, largest value {size:.2g}"
    return failed


_mutants = 0


def mutant(folder: Path, file: str, old: str, new: str) -> Callable[[str], ModuleType]:
    """A copy of the kernels in which `old`, which must occur once in `file`, is `new`: module name → module."""
    global _mutants
    _mutants += 1
    package = f"mutant{_mutants}"
    (folder / package).mkdir()
    for path in KERNELS.glob("*.py"):
        text = path.read_text()
        if path.name == file:
            assert text.count(old) == 1, (file, old, text.count(old))
            text = text.replace(old, new)
        text = text.replace("ezaudio.kernels", package).replace('"ezaudio::', f'"{package}::')
        (folder / package / path.name).write_text(text)
    assert not re.search(r"\bezaudio\.kernels", (folder / package / file).read_text())

    def load(name: str) -> ModuleType:
        sys.path.insert(0, str(folder))
        try:
            return importlib.import_module(f"{package}.{name}")
        finally:
            sys.path.remove(str(folder))

    return load
