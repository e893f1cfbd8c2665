"""Precisions of bundles for CPUs: how weights are stored, and what the large products compute in.

| precision | weights of large products | computed | for |
|---|---|---|---|
| fp32 | fp32 | fp32 | reference |
| fp16, bf16 | half | fp32 | downloads, disk |
| int8 | int8 per channel; of text also two of them | integers, activations in 8 or 16 bits | speed |
| w8 | a step's: 8 bits in blocks of 32 inputs; the rest: int8 per channel | integers | memory |
| w4 | a step's: 4 bits in blocks of 32 inputs; the rest: as w8 | integers | the least memory |

Half-precision arithmetic is slower than fp32 on CPUs, so a Cast widens half-precision weights once, when a graph is
loaded. Weights in blocks stay as they are in memory (MatMulNBits of com.microsoft, whose fp32 activations would take
14 times as long as fp32 on the few rows of a prompt). All other weights are fp16 in the last three. A product is a
MatMul with a constant matrix on its right, in whatever surroundings.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ezaudio.export.onnx_writer import initializer
from ezaudio.runtime.bundle_store import PRECISIONS as PRECISIONS
from ezaudio.runtime.errors import BundleError

STEP_GRAPHS = ("denoiser", "denoiser_shallow", "denoiser_controlled", "controlnet")

MIN_HALF_VALUES = 4096  # below this a tensor is a bias, a norm or a small table, and its bytes do not matter
KEEP_FP32 = ("embedding.", "final_linear.", "final_layer.")  # RoPE tables, and the layers next to the latents
MIN_INT8_INPUTS = 64

BLOCK = 32  # inputs that share a scale; 8 bits: 0.5 % error with 32, 0.64 % with 128
STEP_BITS = {"w8": 8, "w4": 4}
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: products of int8, with one scale for every 32 activations of a row
DOMAIN = "com.microsoft"

INT8, WIDE, BOTH_WIDE, FP32 = "int8", "wide", "both wide", "fp32"
"""Levels of a product of integers. WIDE: activations in 16 bits, as two products of 8; BOTH_WIDE: weights, too, as
four."""
COST = {INT8: 1.0, WIDE: 2.2, FP32: 3.5}
"""Time of a product relative to INT8: 4096 → 1024 over 1000 rows took 11.0, 24.7 and 38.6 ms of an EPYC's core."""

_HALF = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def has_integer_products(graph_name: str) -> bool:
    """Whether a graph runs once a step, where int8 pays."""
    return graph_name in STEP_GRAPHS


def apply(
    model: ir.Model, graph_name: str, precision: str, levels: Mapping[str, str] | None = None, level: str = WIDE
) -> None:
    """Rewrite the graph in place for a precision.

    Args:
        levels: of the graphs of a step in int8. Name of a weight → WIDE or FP32, where int8 would damage too much.
        level: of every product of the other graphs in int8, w8 and w4.
    """
    if precision == "int8" and has_integer_products(graph_name):
        quantize_products(model, levels or {})
        return
    if precision in STEP_BITS and has_integer_products(graph_name):
        quantize_weights(model, STEP_BITS[precision])
    elif precision in ("int8", "w8", "w4"):
        quantize_products(model, {}, level)
    if precision != "fp32":
        store_half(model, "bf16" if precision == "bf16" else "fp16")


def _is_kept(name: str) -> bool:
    return name.startswith(KEEP_FP32)


def products(model: ir.Model) -> list[tuple[ir.Node, ir.Value]]:
    """The large products of a graph, in order: the MatMul and its constant right side (in, out)."""
    found = []
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.const_value is None or weight.name is None or _is_kept(weight.name):
            continue
        if len(weight.const_value.shape) == 2 and weight.const_value.shape.numpy()[0] >= MIN_INT8_INPUTS:
            found.append((node, weight))
    return found


def store_half(model: ir.Model, precision: str) -> None:
    """Store large float32 weights in half precision behind a Cast to float32.

    ONNX Runtime folds a Cast of a constant when it loads the graph. Of a table, the rows that were looked up are cast
    instead, so that it stays half as large in memory.

    Raises BundleError where a weight is beyond the largest number of that precision.
    """
    dtype = _HALF[precision]
    limit = float(ml_dtypes.finfo(dtype).max)
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype != ir.DataType.FLOAT or tensor.size < MIN_HALF_VALUES or _is_kept(name) or _is_scale(value):
            continue
        array = tensor.numpy()
        largest = float(np.abs(array).max())
        if largest > limit:
            raise BundleError(
                f"weight {name!r} reaches {largest:.3g}, beyond {precision}'s {limit:.3g}: use --precision fp32"
            )
        stored = initializer(model, f"{name}.{precision}", array.astype(dtype))
        lookups = [node for node, index in value.uses() if node.op_type == "Gather" and index == 0]
        if len(lookups) == len(value.uses()):
            for node in lookups:
                node.replace_input_with(0, stored)
                rows = node.outputs[0]
                cast = _cast_to_float(rows, f"{rows.name}.wide")
                rows.replace_all_uses_with(cast.outputs[0])
                rows.type = stored.type
                cast.replace_input_with(0, rows)
                model.graph.insert_after(node, cast)
        else:
            cast = _cast_to_float(stored, f"{name}.wide")
            value.replace_all_uses_with(cast.outputs[0])
            model.graph.insert_before(model.graph[0], cast)
        del model.graph.initializers[name]


def _is_scale(value: ir.Value) -> bool:
    """Whether a value is what quantised weights are multiplied by."""
    return str(value.name).endswith((".scale", ".scales"))


def _cast_to_float(value: ir.Value, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
    result = cast.outputs[0]
    result.name, result.dtype, result.shape = name, ir.DataType.FLOAT, value.shape
    return cast


def quantize_weights(model: ir.Model, bits: int) -> None:
    """x @ W → MatMulNBits: codes of 4 or 8 bits, one scale for each output and BLOCK inputs."""
    for node, w in products(model):
        assert w.const_value is not None
        weight = w.const_value.numpy()
        inputs, outputs = weight.shape
        codes, scales = blockwise_codes(weight, bits)
        name = f"{w.name}.w{bits}"
        stored = [initializer(model, name, codes), initializer(model, f"{name}.scales", scales)]
        settings = {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": INT8_ACTIVATIONS}
        _replace(model, node, [ir.node("MatMulNBits", [node.inputs[0], *stored], settings, domain=DOMAIN)], w)
        model.graph.opset_imports[DOMAIN] = 1


def blockwise_codes(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) → codes (out, blocks, BLOCK·bits / 8) around 2^(bits − 1), scales (out, blocks).

    The number of largest magnitude in a block takes the code −2^(bits − 1), which has no positive counterpart.
    """
    inputs, outputs = weight.shape
    blocks = ceil(inputs / BLOCK)
    padded = np.zeros((outputs, blocks * BLOCK), np.float32)
    padded[:, :inputs] = weight.T
    padded = padded.reshape(outputs, blocks, BLOCK)
    middle = 2 ** (bits - 1)
    largest = np.take_along_axis(padded, np.abs(padded).argmax(axis=2, keepdims=True), axis=2)
    scales = np.where(largest == 0, np.float32(1), -largest / np.float32(middle))
    codes = (np.clip(np.rint(padded / scales), -middle, middle - 1) + middle).astype(np.uint8)
    if bits == 4:
        codes = codes[:, :, 0::2] | (codes[:, :, 1::2] << 4)
    return codes, scales[:, :, 0]


def quantize_products(model: ir.Model, levels: Mapping[str, str], default: str = INT8) -> None:
    """x @ W → DynamicQuantizeLinear, MatMulInteger and one rescale: the pattern ONNX Runtime fuses into one kernel.

    Weights are symmetric per output channel; activations are quantised per tensor, once for all their readers. What is
    wide is the sum of two tensors of 8 bits, the second of what the first leaves over, and a product is that of every
    pair.

    Args:
        levels: name of a weight → its level, where that is not `default`.
    """
    quantized: dict[ir.Value, list[tuple[ir.Value, ...]]] = {}
    for node, w in products(model):
        level = levels.get(str(w.name), default)
        if level == FP32:
            continue
        x = node.inputs[0]
        assert x is not None
        parts = quantized.setdefault(x, [])
        while len(parts) < (1 if level == INT8 else 2):
            new, part = _quantized(x if not parts else _left_over(model, node, x, parts[0]))
            model.graph.insert_before(node, new)
            parts.append(part)
        codes = _weight_codes(w, 2 if level == BOTH_WIDE else 1)
        terms = [
            _integer_product(part, _stored(model, *one, ending))
            for part, ending in zip(parts, ("",) if level == INT8 else ("", ".again"), strict=False)
            for one in codes
        ]
        new_nodes = [new for term in terms for new in term]
        total = terms[0][-1]
        for term in terms[1:]:
            total = ir.node("Add", [total.outputs[0], term[-1].outputs[0]])
            new_nodes.append(total)
        _replace(model, node, new_nodes, w)


def _weight_codes(weight: ir.Value, count: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, int8 codes and scales of a weight and, with count 2, of what they leave over."""
    assert weight.const_value is not None
    rest, found = weight.const_value.numpy(), []
    for name in (str(weight.name), f"{weight.name}.rest")[:count]:
        codes, scale = channel_codes(rest)
        found.append((name, codes, scale))
        rest = rest - codes * scale
    return found


def _stored(model: ir.Model, name: str, codes: np.ndarray, scale: np.ndarray, ending: str) -> tuple[ir.Value, ...]:
    """Codes, zero points and scales in a model.

    ending: of their names. Codes and zero points are of one product each, for ONNX Runtime makes others of them where
    int8 overflows (`session.keep_integers_exact`) and fails at the second product; the weights file has them once.
    """
    values = {f"int8{ending}": codes, f"zero{ending}": np.zeros(len(scale), np.int8), "scale": scale}
    return tuple(initializer(model, f"{name}.{key}", value) for key, value in values.items())


def _integer_product(x: tuple[ir.Value, ...], weight: tuple[ir.Value, ...]) -> list[ir.Node]:
    x_codes, x_scale, x_zero = x
    codes, zero, scale = weight
    product = ir.node("MatMulInteger", [x_codes, codes, x_zero, zero])
    wide = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    scales = ir.node("Mul", [x_scale, scale])
    return [product, wide, scales, ir.node("Mul", [wide.outputs[0], scales.outputs[0]])]


def channel_codes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) → int8 codes, scales (out)."""
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12).astype(np.float32) / np.float32(127)
    return np.rint(weight / scale).astype(np.int8), scale


def _quantized(x: ir.Value) -> tuple[ir.Node, tuple[ir.Value, ...]]:
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
    return node, tuple(node.outputs)


def _left_over(model: ir.Model, before: ir.Node, x: ir.Value, part: tuple[ir.Value, ...]) -> ir.Value:
    """What quantisation takes from x."""
    restored = ir.node("DequantizeLinear", list(part))
    rest = ir.node("Sub", [x, restored.outputs[0]])
    model.graph.insert_before(before, [restored, rest])
    return rest.outputs[0]


def _replace(model: ir.Model, node: ir.Node, new: list[ir.Node], weight: ir.Value) -> None:
    """Put nodes, the last of which gives the result, in the place of a product; drop its weight when unused."""
    result = new[-1].outputs[0]
    result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
    model.graph.insert_before(node, new)
    node.outputs[0].replace_all_uses_with(result)
    model.graph.remove(node, safe=True)
    if not weight.uses():
        del model.graph.initializers[str(weight.name)]
