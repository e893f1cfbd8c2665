"""Products of 8 bits for builders that read precision from the graph: QuantizeLinear and DequantizeLinear around them.

Weights are symmetric per output channel, activations symmetric per tensor with a scale fixed at export from the largest
value that the certificate's corpus reaches: a scale computed as the numbers come would cost such a builder its fusion.
Scales are stored in half precision, the codes made with the scale as stored, so that its rounding adds no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ezaudio.export import policy
from ezaudio.export.onnx_writer import initializer
from ezaudio.export.typed_graphs import DTYPES

MIN_INPUTS = 64
BASE = "fp16"
SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)


@dataclass(frozen=True, slots=True)
class Code:
    """What the numbers of 8 bits are: `largest` of them stands for the largest value of a tensor or channel."""

    dtype: ir.DataType
    numpy: np.dtype[np.generic]
    largest: float

    def of(self, values: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Values → codes, to nearest, beyond the scale's range the largest."""
        codes = values / scale.astype(np.float32)
        if self.numpy.kind == "i":
            codes = np.rint(codes)
        return np.clip(codes, -self.largest, self.largest).astype(self.numpy)

    def scale(self, largest: np.ndarray) -> np.ndarray:
        """largest value ÷ largest code in fp16, rounded up so that no code is beyond it, and no subnormal number."""
        scale = np.maximum(largest / self.largest, SMALLEST_SCALE)
        half = scale.astype(np.float16)
        rounded_down = half.astype(np.float64) < scale
        return np.where(rounded_down, np.nextafter(half, np.float16(np.inf)), half).astype(np.float16)

    def of_weight(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of (in, out) and their fp16 scales (out)."""
        scales = self.scale(np.abs(weight).max(axis=0))
        return self.of(weight, scales), scales


CODES = {
    "int8": Code(ir.DataType.INT8, np.dtype(np.int8), 127.0),
    # 4 bits of exponent, 3 of mantissa, no infinity (Micikevicius et al. 2022).
    "fp8": Code(ir.DataType.FLOAT8E4M3FN, np.dtype(ml_dtypes.float8_e4m3fn), 448.0),
}
"""By the bundle's precision."""


def quantizable(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """The products that gain from int8: those with many inputs."""
    return [node for node in nodes if len(shape := _weight(node).shape) == 2 and shape[0] >= MIN_INPUTS]


def product_error(x: np.ndarray, node: ir.Node, largest: float, code: Code) -> float:
    """‖Q(x)·Q(w) − x·w‖ / ‖x·w‖ of a product in an fp32 graph."""
    weight = _weight(node)
    scale = code.scale(np.asarray(largest))
    rounded = code.of(x, scale).astype(np.float32) * scale.astype(np.float32)
    values, scales = code.of_weight(weight)
    exact = x @ weight
    product = rounded @ (values.astype(np.float32) * scales.astype(np.float32))
    return float(np.linalg.norm(product - exact) / max(float(np.linalg.norm(exact)), 1e-30))


def quantize(model: ir.Model, nodes: Iterable[ir.Node], largest: Mapping[str, float], precision: str) -> None:
    """Put Q/DQ pairs before both sides of products whose tensors are in fp16 already.

    Args:
        largest: tensor of the fp32 graph → max |value|, from the walk.
        precision: a key of `CODES`.
    """
    code = CODES[precision]
    activations: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        x, w = node.inputs[0], node.inputs[1]
        assert x is not None
        assert w is not None
        weight = _weight(node)
        if x not in activations:
            name = policy.original_name(str(x.name))
            zero = initializer(model, f"{precision}.zero", np.zeros((), code.numpy))
            scale = initializer(model, f"{name}.scale", code.scale(np.asarray(largest[name])))
            codes = ir.node("QuantizeLinear", [x, scale, zero], name=f"quantize_{name}")
            codes.outputs[0].name, codes.outputs[0].dtype = f"{name}.codes", code.dtype
            wide = _dequantized(codes.outputs[0], scale, zero, name, None)
            codes.outputs[0].shape = wide.outputs[0].shape = x.shape
            model.graph.insert_before(node, [codes, wide])
            activations[x] = wide.outputs[0]
        name = policy.original_name(str(w.name))
        values, scales = code.of_weight(weight)
        # Of this weight alone, see `precision._stored`.
        zeros = initializer(model, f"{name}.zeros", np.zeros(weight.shape[1], code.numpy))
        stored = initializer(model, f"{name}.{precision}", values)
        wide = _dequantized(stored, initializer(model, f"{name}.scales", scales), zeros, name, 1)
        wide.outputs[0].shape = ir.Shape(weight.shape)
        model.graph.insert_before(node, wide)
        node.replace_input_with(0, activations[x])
        node.replace_input_with(1, wide.outputs[0])
        if not w.uses() and w.is_initializer():
            del model.graph.initializers[str(w.name)]


def _weight(node: ir.Node) -> np.ndarray:
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32)


def _dequantized(codes: ir.Value, scale: ir.Value, zero: ir.Value, name: str, axis: int | None) -> ir.Node:
    node = ir.node(
        "DequantizeLinear", [codes, scale, zero], {} if axis is None else {"axis": axis}, name=f"dequantize_{name}"
    )
    node.outputs[0].name, node.outputs[0].dtype = f"{name}.restored", DTYPES[BASE]
    return node
