"""Compiles for a GPU what the operators launch, without a GPU: `python tests/kernel_compile.py 90` prints JSON lines.

Launches are caught, not written down again: every operator runs forward and backward on CPU tensors of the real shapes
with `JITFunction.run` replaced by a recorder, and each recorded launch is compiled for the target. Needs a process
without TRITON_INTERPRET.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}
BATCH, FRAMES, TOKENS, HEADS = 2, 500, 77, 16
DIVISIBLE = [["tt.divisibility", 16]]

Launch = tuple[JITFunction, dict[str, str], dict[str, Any], dict[tuple[int, ...], Any], dict[str, int]]


class Recorder:
    """Stands in for `JITFunction.run` and keeps each different launch."""

    def __init__(self) -> None:
        self.launches: dict[str, Launch] = {}

    def record(self, kernel: JITFunction, values: tuple[Any, ...], settings: dict[str, Any]) -> None:
        options = {name: settings.pop(name) for name in ("num_warps", "num_stages") if name in settings}
        arguments = dict(zip(kernel.arg_names, values, strict=False)) | settings
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int, ...], Any] = {}
        for index, parameter in enumerate(kernel.params):
            value = arguments[parameter.name]
            special = not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (special and type(value) is int and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            if isinstance(value, TensorDescriptor):
                block = ",".join(map(str, value.block_shape))
                signature[parameter.name] = f"tensordesc<{TYPES[value.base.dtype][1:]}[{block}]>"
                continue
            if isinstance(value, Tensor):
                signature[parameter.name] = TYPES[value.dtype]
            else:
                assert type(value) is int, (parameter.name, value)
                signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if isinstance(value, Tensor) or (special and value % 16 == 0):
                attributes[(index,)] = DIVISIBLE
        launch = kernel, signature, constants, attributes, options
        self.launches[str((kernel.__name__, *launch[1:]))] = launch


def use_target(capability: int) -> None:
    """Let operators choose tiles as on such a GPU."""
    from ezaudio.kernels import target

    target.capability = lambda: capability // 10  # type: ignore[assignment]
    target.multiprocessors = lambda: 132  # type: ignore[assignment]


def caught_launches() -> Iterator[Launch]:
    recorder = Recorder()

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        recorder.record(self, args, kwargs)

    original = JITFunction.run
    JITFunction.run = run
    try:
        run_operators()
    finally:
        JITFunction.run = original
    return iter(recorder.launches.values())


def run_operators() -> None:
    """Forward and backward of all that a fused model calls: each kernel, each dtype, the widths of L and XL."""
    run_attention(1152, torch.bfloat16)
    run_attention(1152, torch.float16, batch=16)
    run_attention(1024, torch.float16)
    run_attention(1152, torch.float32)
    run_attention(1024, torch.float32)
    for head_width in (20, 36, 40, 96):  # of other models: tiles of other widths, rows that 16 bytes do not divide
        run_attention(HEADS * head_width, torch.bfloat16)
    run_attention(1152, torch.float16, 512, 64)
    for frames, tokens in ((1, 1), (FRAMES, 1), (1, TOKENS)):
        run_attention(1152, torch.bfloat16, frames, tokens)
    run_attention(1024, torch.bfloat16, 512, 64)
    run_norms(1152, torch.bfloat16)
    run_norms(1152, torch.float32, all_forms=False)
    run_norms(1024, torch.float32, all_forms=False)
    run_norms(1024, torch.bfloat16, all_forms=False)
    run_folded(1152, torch.bfloat16)
    run_folded(1024, torch.float16)
    run_folded_norms(256, torch.float16)  # of the packaged model
    run_rest()


def run_folded(width: int, dtype: torch.dtype) -> None:
    """What the backend `torch` launches in a step: a float32 stream, folded modulation, keys made once a clip."""
    run_folded_norms(width, dtype)
    run_folded_attention(width, dtype)


def run_folded_norms(width: int, dtype: torch.dtype) -> None:
    from ezaudio.kernels import folded

    stream, update = torch.empty(BATCH, FRAMES, width), torch.empty(BATCH, FRAMES, width, dtype=dtype)
    weight, bias, gate = torch.empty(6, width).unbind(0)[:3]
    folded.norm(stream, weight, bias, dtype)
    folded.norm(update, weight, bias, dtype)  # what leaves the projection of a skip
    folded.norm(stream, weight, bias, dtype, update, gate)
    folded.norm(update, weight, bias, dtype, update, gate)
    folded.norm(stream, weight, bias, dtype, update)
    folded.norm_alone(stream, weight, bias, dtype, update, gate)
    folded.norm(stream, weight, bias, dtype, update, gate, update)
    folded.norm(stream, weight, bias, dtype, update, gate, update[:1], update[0, :1])
    folded.norm(stream, weight, bias, torch.float32, update, gate)
    folded.skip_norm(stream, stream, torch.empty(2 * width), torch.empty(2 * width), dtype, update, gate)
    folded.skip_norm(stream, stream, torch.empty(2 * width), torch.empty(2 * width), dtype)


def run_folded_attention(width: int, dtype: torch.dtype) -> None:
    from ezaudio.kernels import folded
    from ezaudio.kernels import reference as ops

    e = width // HEADS
    affine = torch.empty(e), torch.empty(e)
    q, k, v = torch.empty(BATCH, FRAMES, 3, HEADS, e, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)
    rope = ops.rope_tables(FRAMES, e)
    folded.attend(q, folded.pack_keys(k, affine, rope), v, affine, rope)
    text = ops.split_heads(torch.empty(BATCH, TOKENS, width, dtype=dtype), HEADS)
    mask = torch.empty(BATCH, TOKENS, dtype=torch.bool)
    folded.attend(q, folded.pack_keys(text, affine), text, affine, key_mask=mask)


def run_attention(
    width: int, dtype: torch.dtype, frames: int = FRAMES, tokens: int = TOKENS, batch: int = BATCH
) -> None:
    from ezaudio.kernels import reference as ops
    from ezaudio.kernels.attention import qk_norm_attention

    def heads(length: int) -> Tensor:
        return ops.split_heads(torch.empty(batch, length, width, dtype=dtype, requires_grad=True), HEADS)

    e = width // HEADS
    norm = torch.empty(e, requires_grad=True), torch.empty(e, requires_grad=True)
    q, rope = heads(frames), ops.rope_tables(frames, e)
    mask = torch.empty(batch, tokens, dtype=torch.bool)
    for out in (
        qk_norm_attention(q, heads(frames), heads(frames), norm, norm, rope=rope),
        qk_norm_attention(q, heads(tokens), heads(tokens), norm, norm, key_mask=mask),
    ):
        out.backward(torch.empty_like(out))


def run_norms(width: int, dtype: torch.dtype, all_forms: bool = True) -> None:
    from ezaudio.kernels.adaln import residual_norm
    from ezaudio.kernels.skip_norm import skip_norm

    def tokens() -> Tensor:
        return torch.empty(BATCH, FRAMES, width, dtype=dtype, requires_grad=True)

    affine = torch.empty(width, requires_grad=True), torch.empty(width, requires_grad=True)
    double = torch.empty(2 * width, requires_grad=True), torch.empty(2 * width, requires_grad=True)
    shift, scale, gate = torch.empty(BATCH, 6, width, requires_grad=True).unbind(1)[:3]
    outputs = [
        residual_norm(tokens(), *affine, tokens(), gate, shift, scale)[1],
        skip_norm(tokens(), tokens(), *double, tokens(), gate),
    ]
    if all_forms:
        outputs += [
            residual_norm(tokens(), *affine)[1],
            residual_norm(tokens(), *affine, shift=shift, scale=scale)[1],
            residual_norm(tokens(), *affine, tokens(), gate)[1],
            residual_norm(tokens(), *affine, tokens(), None, shift, scale)[1],
            skip_norm(tokens(), tokens(), *double),
        ]
    for out in outputs:
        out.backward(torch.empty_like(out), retain_graph=True)


def run_rest() -> None:
    from ezaudio.kernels import target
    from ezaudio.kernels.geglu import geglu
    from ezaudio.kernels.geglu_product import geglu_product
    from ezaudio.kernels.sampler_step import philox_normal, sampler_step
    from ezaudio.kernels.snake import snake

    snake(torch.empty(BATCH, 128, 4800), torch.empty(128), torch.empty(128), torch.float16)
    out = geglu(torch.empty(BATCH, FRAMES, 8 * 1152, dtype=torch.bfloat16, requires_grad=True))
    out.backward(torch.empty_like(out))
    if target.is_hopper():
        for dtype in (torch.float16, torch.bfloat16):
            x, lying = torch.empty(BATCH, FRAMES, 1024, dtype=dtype), torch.empty(8192, 1024, dtype=dtype)
            for product in (lying.T, lying.T.contiguous()):
                geglu_product(x, product, product[0].contiguous())
    latent = torch.empty(BATCH, 128, FRAMES)
    seeds = items = torch.empty(BATCH, dtype=torch.int64)
    weight, row, mask = torch.empty(BATCH), torch.empty(6), torch.empty(BATCH, FRAMES, dtype=torch.bool)
    philox_normal(seeds, items, 2, latent.shape)
    sampler_step(latent, latent, row)
    sampler_step(
        latent, latent, row, negative=latent, previous_clean=latent, scale=weight, rescale=weight,
        seeds=seeds, items=items, step=2, given=latent, mask=mask,
    )  # fmt: skip
    sampler_step(latent, latent, row, noise=latent)


def disassembled(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [DISASSEMBLER, "--print-code", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def unset_registers(listing: str) -> list[str]:
    """Instructions of machine code that read a uniform register which none before them wrote.

    ptxas 12.8 makes such where two warpgroup products share an operand's address and differ in its swizzle: their
    descriptors are garbage, and what they give is wrong or a fault, though nothing is wrong with the PTX.
    """
    written: set[int] = set()
    found = []
    for match in re.finditer(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+) ?(.*?)\s*;", listing):
        operation, operands = match[1], re.split(r",\s*(?![^\[]*\])", match[2])
        if operation.startswith("HGMMA"):  # a descriptor of B is the second pair, the first is A's where A is in memory
            first = 2 if re.fullmatch(r"R\d+\S*", operands[1]) else 0
            described = [int(number) for number in re.findall(r"gdesc\[UR(\d+)\]", match[2])]
            read = {number + index for number in described for index in range(first, 4)}
        else:
            target = re.fullmatch(r"UR(\d+)", operands[0])
            read = {int(number) for number in re.findall(r"\bUR(\d+)\b", ",".join(operands[1 if target else 0 :]))}
        if read - written:
            found.append(f"{operation} {match[2]}")
        written |= read
        if not operation.startswith("HGMMA") and target:
            width = 2 if ".64" in operation or ".WIDE" in operation else 1
            written |= {int(target[1]) + index for index in range(width)}
    return found


def compile_launch(launch: Launch, capability: int) -> dict[str, Any]:
    kernel, signature, constants, attributes, options = launch
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    with redirect_stdout(io.StringIO()) as report:  # where Triton prints what ptxas says of registers and spills
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx, usage = compiled.asm["ptx"], report.getvalue()
    return {
        "kernel": kernel.__name__,
        "constants": {name: value for name, value in constants.items() if value is not None},
        "dtypes": sorted({kind for kind in signature.values() if kind.startswith("*")}),
        "num_warps": compiled.metadata.num_warps,
        "registers": int(re.findall(r"Used (\d+) registers", usage)[0]),
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", usage))),
        "shared_bytes": compiled.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "serialized": re.findall(r".*wgmma.*serialized.*", usage),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "scalar_loads": len(re.findall(r"ld\.global\.b(?:16|32)\b", ptx)),
        "unset": unset_registers(disassembled(compiled.asm["cubin"])) if capability == 90 else [],
        "atomics": len(re.findall(r"\b(?:atom|red)\.", ptx)),
        "barriers": len(re.findall(r"\b(?:bar|barrier)(?:\.cta)?\.sync\b", ptx)),
    }


if __name__ == "__main__":
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True  # what lies in the cache has no report
    use_target(int(sys.argv[1]))
    for caught in caught_launches():
        sys.stdout.write(json.dumps(compile_launch(caught, int(sys.argv[1]))) + "\n")
        sys.stdout.flush()
