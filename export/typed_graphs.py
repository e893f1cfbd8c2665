"""fp32 graph → graph whose types say what computes in half precision: what a strongly typed builder needs.

Products of a lower precision take and give half-precision tensors; what only moves, biases or scales numbers between
them follows; everything else stays in fp32, with a Cast at each border. Names of inputs and outputs, and their types,
stay as they are, so that every runtime feeds a typed graph as it feeds any other.
"""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ezaudio.export import policy
from ezaudio.export.onnx_writer import initializer
from ezaudio.export.policy import EIGHT_BITS, FOLLOWERS, HALF, MOVES

DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}

# A weight that half precision changes by more than this stays in fp32. fp16 rounds to 2.8e-4, bf16 to 2.3e-3.
MAX_WEIGHT_ERROR = 5e-3


def base_precision(precision: str) -> str:
    """What computes around products of 8 bits, and everything else of a lower precision: fp16 or bf16."""
    return "bf16" if precision == "bf16" else "fp16"


def limit(precision: str) -> float:
    """The largest number of a precision's half type."""
    return float(ml_dtypes.finfo(_NUMPY[base_precision(precision)]).max)


def fold_widened_weights(model: ir.Model) -> None:
    """Weights that a bundle for CPUs stores in half precision behind a Cast → fp32 weights without one.

    The Cast of a table stands behind its lookups.
    """
    for node in list(model.graph):
        if node.op_type != "Cast" or node.inputs[0] is None:
            continue
        stored, wide = node.inputs[0], node.outputs[0]
        lookup = stored.producer()
        if lookup is not None and lookup.op_type == "Gather" and lookup.inputs[0] is not None:
            stored = lookup.inputs[0]
        if stored.const_value is None or stored.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            continue
        assert stored.name is not None
        weight = initializer(model, policy.original_name(stored.name), stored.const_value.numpy().astype(np.float32))
        if lookup is not None:
            lookup.replace_input_with(0, weight)
            lookup.outputs[0].dtype = ir.DataType.FLOAT
            weight = lookup.outputs[0]
        wide.replace_all_uses_with(weight)
        model.graph.remove(node, safe=True)
        if not stored.uses():
            del model.graph.initializers[stored.name]


def half_nodes(
    model: ir.Model,
    graph_name: str,
    precision: str,
    hot: frozenset[str] = frozenset(),
    weight_errors: dict[str, float] | None = None,
) -> dict[ir.Node, str]:
    """The nodes of an fp32 graph that compute in a lower precision → `half` or `8 bits`.

    Args:
        hot: tensors that must not be in half precision, by name; no node that touches one is among the result.
        weight_errors: of weights by their place in the weights file, filled and read: graphs share weights.
    """
    errors = {} if weight_errors is None else weight_errors
    chosen: dict[ir.Node, str] = {}
    followers: dict[ir.Node, str] = {}
    for node in model.graph:
        rule = policy.decide(graph_name, node, precision)
        if rule is None:
            if node.op_type in (*MOVES, *FOLLOWERS) and _fits(node, precision, hot, errors):
                followers[node] = HALF
        elif rule.precision in (EIGHT_BITS, HALF) and _fits(node, precision, hot, errors):
            chosen[node] = rule.precision
    for node in list(followers):  # a bias right after its product is that product's last step
        if policy.role_of(node) == "bias" and any(value.producer() in chosen for value in _tensors(node)):
            chosen[node] = followers.pop(node)
    while True:
        outside = [node for node in followers if not _follows(node, chosen, followers)]
        if not outside:
            return chosen | followers
        for node in outside:
            del followers[node]


def _tensors(node: ir.Node) -> list[ir.Value]:
    """A node's inputs in floating point that are no constants."""
    return [
        value for value in node.inputs if value is not None and policy.is_number(value) and value.const_value is None
    ]


def _fits(node: ir.Node, precision: str, hot: frozenset[str], errors: dict[str, float]) -> bool:
    """Whether nothing a node touches is beyond half precision, and nothing it gives is an output of the graph."""
    if not all(map(policy.is_number, node.outputs)) or any(value.is_graph_output() for value in node.outputs):
        return False
    if any(value.name in hot for value in (*_tensors(node), *node.outputs)):
        return False
    for value in node.inputs:
        if value is None or value.const_value is None or not policy.is_number(value):
            continue
        tensor = value.const_value
        place = f"{tensor.location}:{tensor.offset}" if isinstance(tensor, ir.ExternalTensor) else ""
        error = errors[place] if place in errors else weight_error(tensor.numpy(), precision)
        if place:
            errors[place] = error
        if not error <= MAX_WEIGHT_ERROR:
            return False
    return True


def weight_error(weight: np.ndarray, precision: str) -> float:
    """‖half(w) − w‖ / ‖w‖; infinite where a value is beyond half precision."""
    if not float(np.abs(weight).max(initial=0)) <= limit(precision):
        return float("inf")
    half = weight.astype(_NUMPY[base_precision(precision)]).astype(np.float32)
    norm = float(np.linalg.norm(weight))
    return float(np.linalg.norm(half - weight)) / norm if norm else 0.0


def _follows(node: ir.Node, chosen: dict[ir.Node, str], followers: dict[ir.Node, str]) -> bool:
    """Whether a node that moves or scales numbers has only half precision before it, and what that asks for after it.

    A transposition right before a product is half as much work behind the Cast as before it.
    """
    before = [value.producer() in chosen or value.producer() in followers for value in _tensors(node)]
    after = [use.node for value in node.outputs for use in value.uses()]
    if node.op_type in FOLLOWERS:
        return bool(before) and all(before) and all(user in chosen or user in followers for user in after)
    transposed = node.op_type == "Transpose" and all(user in chosen for user in after)
    return bool(before) and (all(before) or transposed)


def half_tensors(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    """The names, in the fp32 graph, of the tensors that are in half precision when `nodes` are."""
    return tuple(dict.fromkeys(str(value.name) for node in nodes for value in (*_tensors(node), *node.outputs)))


def apply_types(model: ir.Model, nodes: dict[ir.Node, str], precision: str) -> None:
    """Give `nodes` their half-precision types, in place."""
    base = base_precision(precision)
    lowered: dict[ir.Value, ir.Value] = {}
    for result in (value for node in nodes for value in node.outputs):
        result.dtype = DTYPES[base]
    for node in list(nodes):
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT:
                continue
            if value not in lowered:
                lowered[value] = _lowered(model, value, base)
            node.replace_input_with(index, lowered[value])
    for node in nodes:
        for result in node.outputs:
            users = [use for use in result.uses() if use.node not in nodes]
            if not users:
                continue
            wide = _cast(result, ir.DataType.FLOAT, f"{result.name}.fp32")
            model.graph.insert_after(node, wide.producer())  # type: ignore[arg-type]
            for use in users:
                use.node.replace_input_with(use.idx, wide)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]


def _lowered(model: ir.Model, value: ir.Value, base: str) -> ir.Value:
    """The value in half precision: a constant converted, a tensor cast where it is made."""
    name = f"{value.name}.{base}"
    if value.const_value is not None:
        return initializer(model, name, value.const_value.numpy().astype(_NUMPY[base]))
    half = _cast(value, DTYPES[base], name)
    cast, producer = half.producer(), value.producer()
    assert cast is not None
    if producer is None:
        model.graph.insert_before(model.graph[0], cast)
    else:
        model.graph.insert_after(producer, cast)
    return half


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"cast_{name}")
    result = node.outputs[0]
    result.name, result.dtype, result.shape = name, dtype, value.shape
    return result
