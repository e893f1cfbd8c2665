"""Precisions: how a graph's weights are stored and which products run in int8.

`fp16` and `bf16` halve the files; a Cast widens each weight when the graph is loaded, because half-precision arithmetic
is slower than fp32 on CPUs. `int8` makes the denoiser's products integer ones (weights per output channel, activations
quantised as they come) and stores everything else in fp16: the text encoder and the VAE run once a clip, and int8 would
cost them quality for nothing.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ezaudio.runtime.errors import BundleError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
STEP_GRAPHS = ("denoiser", "denoiser_shallow", "denoiser_controlled", "controlnet")

MIN_HALF_VALUES = 4096  # below this a tensor is a bias, a norm or a small table, and its bytes do not matter
KEEP_FP32 = ("embedding.", "final_linear.", "final_layer.")  # RoPE tables, and the layers next to the latents
MIN_INT8_INPUTS = 64

_HALF = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def has_integer_products(graph_name: str) -> bool:
    """Whether a graph runs once a step, where int8 pays."""
    return graph_name in STEP_GRAPHS


def apply(model: ir.Model, graph_name: str, precision: str) -> None:
    """Rewrite the graph in place for a precision."""
    if precision == "int8" and has_integer_products(graph_name):
        quantize_products(model)
    elif precision != "fp32":
        store_half(model, "bf16" if precision == "bf16" else "fp16")


def _is_kept(name: str) -> bool:
    return name.startswith(KEEP_FP32)


def store_half(model: ir.Model, precision: str) -> None:
    """Store large float32 weights in half precision behind a Cast to float32.

    Raises BundleError where a weight is beyond the largest number of that precision.
    """
    dtype = _HALF[precision]
    limit = float(ml_dtypes.finfo(dtype).max)
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype != ir.DataType.FLOAT or tensor.size < MIN_HALF_VALUES or _is_kept(name):
            continue
        array = tensor.numpy()
        largest = float(np.abs(array).max())
        if largest > limit:
            raise BundleError(
                f"weight {name!r} reaches {largest:.3g}, beyond {precision}'s {limit:.3g}: use --precision fp32"
            )
        stored = _initializer(model, f"{name}.{precision}", array.astype(dtype))
        cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
        cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = (
            f"{name}.wide",
            ir.DataType.FLOAT,
            value.shape,
        )
        _replace_initializer(model, name, cast)


def quantize_products(model: ir.Model) -> None:
    """x @ W → DynamicQuantizeLinear, MatMulInteger and one rescale: the pattern ONNX Runtime fuses into one kernel.

    Weights are symmetric per output channel; activations are quantised per tensor, once for all their readers.
    """
    quantized: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        x, w = node.inputs
        if x is None or w is None or w.const_value is None or w.name is None or _is_kept(w.name):
            continue
        weight = w.const_value.numpy()
        if weight.ndim != 2 or weight.shape[0] < MIN_INT8_INPUTS:
            continue
        scale = np.maximum(np.abs(weight).max(axis=0), 1e-12).astype(np.float32) / np.float32(127)
        codes = np.rint(weight / scale).astype(np.int8)
        if x not in quantized:
            quantize = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
            model.graph.insert_before(node, quantize)
            quantized[x] = tuple(quantize.outputs)  # type: ignore[assignment]
        x_codes, x_scale, x_zero = quantized[x]
        w_codes = _initializer(model, f"{w.name}.int8", codes)
        w_scale = _initializer(model, f"{w.name}.scale", scale)
        w_zero = _initializer(model, f"{w.name}.zero", np.zeros(weight.shape[1], np.int8))
        product = ir.node("MatMulInteger", [x_codes, w_codes, x_zero, w_zero])
        wide = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        scales = ir.node("Mul", [x_scale, w_scale])
        result = ir.node("Mul", [wide.outputs[0], scales.outputs[0]])
        model.graph.insert_before(node, [product, wide, scales, result])
        node.outputs[0].replace_all_uses_with(result.outputs[0])
        model.graph.remove(node, safe=True)
        if not w.uses():
            del model.graph.initializers[w.name]


def _initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    return value


def _replace_initializer(model: ir.Model, name: str, cast: ir.Node) -> None:
    value = model.graph.initializers[name]
    value.replace_all_uses_with(cast.outputs[0])
    model.graph.insert_before(model.graph[0], cast)
    del model.graph.initializers[name]
