"""Graph rewrites for ONNX Runtime's CPU provider: its fused operators, and products cut where their result is cut.

A graph as traced holds standard operators only: any backend runs it, and every other target is typed from it. `apply`
rewrites one for int8 bundles, which are for CPUs alone; exactly but for the order of rounding:

| traced | rewritten | why |
|---|---|---|
| one product for q, k and v, its result cut | three products | weights are cut here, not results in every step |
| RoPE of halves, nine operators | com.microsoft.RotaryEmbedding | one pass over q and one over k |
| q·kᵀ, softmax, ·v, and transposes | com.microsoft.MultiHeadAttention | scores stay in the cache: no (L, L) in memory |
| one product for value and gate of GEGLU | two products | as for q, k and v |
| a sum and its norm | a Reshape between | ONNX Runtime's fused SkipLayerNormalization takes ten times as long |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

DOMAIN = "com.microsoft"
OPERATORS = frozenset(("MultiHeadAttention", "RotaryEmbedding"))
"""All that `apply` puts into a graph beyond the standard operators; version 1 of DOMAIN."""


def apply(model: ir.Model) -> None:
    """Rewrite the graph in place; what matches no pattern stays as it is."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Softmax":
            if (attention := _SelfAttention.at(node)) is not None:
                attention.rewrite(graph)
                model.opset_imports[DOMAIN] = 1
        elif node.op_type == "Gelu":
            _split_geglu(graph, node)
        elif node.op_type == "LayerNormalization":
            _keep_from_sum(graph, node)
    _drop_unused(graph)


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _above(value: ir.Value | None, *op_types: str) -> list[ir.Node] | None:
    """Nodes of these types, from the one that makes `value` up through first inputs; None when there are others."""
    nodes = []
    for op_type in op_types:
        node = _producer(value, op_type)
        if node is None:
            return None
        nodes.append(node)
        value = node.inputs[0]
    return nodes


def _below(value: ir.Value, op_type: str) -> ir.Node | None:
    """The only reader of a value, if it is of this type."""
    readers = [node for node, _ in value.uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None


def _ints(value: ir.Value | None) -> list[int]:
    """Numbers of a constant; empty for anything else."""
    tensor = None if value is None else value.const_value
    return [] if tensor is None else [int(number) for number in tensor.numpy().ravel()]


@dataclass(frozen=True, slots=True)
class _Head:
    """q, k or v: the part of a product that it is, and for q and k the norm and the RoPE tables behind it."""

    product: ir.Node
    part: int
    norm: ir.Node | None = None
    tables: tuple[ir.Value, ir.Value] | None = None

    @classmethod
    def at(cls, value: ir.Value | None) -> _Head | None:
        nodes = _above(value, "Squeeze", "Slice", "Transpose", "Reshape", "MatMul")
        if nodes is None:
            return None
        _, cut, transpose, _, product = nodes
        weight, begin = product.inputs[1], _ints(cut.inputs[1])
        if transpose.attributes.get_ints("perm") != (2, 0, 3, 1, 4) or not begin or weight is None:
            return None
        return None if weight.const_value is None else cls(product, begin[0])

    @classmethod
    def rotated(cls, value: ir.Value | None) -> _Head | None:
        """first·cos − second·sin beside second·cos + first·sin, of the halves of a normalised head."""
        joined = _producer(value, "Concat")
        if joined is None or len(joined.inputs) != 2:
            return None
        difference, total = _producer(joined.inputs[0], "Sub"), _producer(joined.inputs[1], "Add")
        if difference is None or total is None:
            return None
        products = [_producer(term, "Mul") for node in (difference, total) for term in node.inputs]
        factors = [None if product is None else tuple(product.inputs) for product in products]
        first, cos = factors[0] or (None, None)
        second, sin = factors[1] or (None, None)
        norm = _above(first, "Split", "LayerNormalization")
        caches = [_above(table, "Slice") for table in (cos, sin)]
        if norm is None or factors[2:] != [(second, cos), (first, sin)] or tuple(norm[0].outputs) != (first, second):
            return None
        if caches[0] is None or caches[1] is None or any(_ints(cut[0].inputs[1]) != [0] for cut in caches if cut):
            return None
        head = cls.at(norm[1].inputs[0])
        tables = caches[0][0].inputs[0], caches[1][0].inputs[0]
        if head is None or tables[0] is None or tables[1] is None:
            return None
        return cls(head.product, head.part, norm[1], (tables[0], tables[1]))


@dataclass(frozen=True, slots=True)
class _SelfAttention:
    """softmax(rope(LN(q))·rope(LN(k))ᵀ)·v of one product, heads put together again by `end`."""

    q: _Head
    k: _Head
    v: _Head
    end: ir.Node

    @classmethod
    def at(cls, softmax: ir.Node) -> _SelfAttention | None:
        scores = _producer(softmax.inputs[0], "MatMul")
        keys = None if scores is None else _producer(scores.inputs[1], "Transpose")
        mixed = _below(softmax.outputs[0], "MatMul")
        if scores is None or keys is None or mixed is None or mixed.inputs[0] is not softmax.outputs[0]:
            return None
        transposed = _below(mixed.outputs[0], "Transpose")
        end = None if transposed is None else _below(transposed.outputs[0], "Reshape")
        q, k, v = _Head.rotated(scores.inputs[0]), _Head.rotated(keys.inputs[0]), _Head.at(mixed.inputs[1])
        if q is None or k is None or v is None or end is None or [h.part for h in (q, k, v)] != [0, 1, 2]:
            return None
        same = q.product is k.product is v.product and q.tables == k.tables
        return cls(q, k, v, end) if same else None

    def rewrite(self, graph: ir.Graph) -> None:
        x, weight = self.q.product.inputs
        assert weight is not None
        parts = _cut(graph, weight, ("q", "k", "v"))
        q, k, v = (self._add(graph, "MatMul", [x, part]) for part in parts)
        q, k = self._positioned(graph, q, self.q), self._positioned(graph, k, self.k)
        num_heads = _width(parts[0]) // self.head_width
        # Queries come scaled: the affine of their norm holds 1/√E.
        result = self._add(graph, "MultiHeadAttention", [q, k, v], {"num_heads": num_heads, "scale": 1.0})
        result.shape = self.end.outputs[0].shape
        self.end.outputs[0].replace_all_uses_with(result)

    @property
    def head_width(self) -> int:
        assert self.q.norm is not None
        return _width(self.q.norm.inputs[1])

    def _positioned(self, graph: ir.Graph, value: ir.Value, head: _Head) -> ir.Value:
        """Norm of every head, then RoPE, both of (R, L, D) as it lies in memory."""
        assert head.norm is not None
        assert head.tables is not None
        width = _width(value.producer().inputs[1])  # type: ignore[union-attr]
        # 0 keeps a dimension
        by_head = _constant(graph, "heads", np.array([0, 0, width // self.head_width, self.head_width], np.int64))
        together = _constant(graph, "width", np.array([0, 0, width], np.int64))
        value = self._add(graph, "Reshape", [value, by_head])
        value = self._add(graph, "LayerNormalization", [value, *head.norm.inputs[1:]], dict(head.norm.attributes))
        value = self._add(graph, "Reshape", [value, together])
        first_position = _constant(graph, "first_position", np.zeros(1, np.int64))
        return self._add(graph, "RotaryEmbedding", [value, first_position, *head.tables])

    def _add(
        self, graph: ir.Graph, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        """Insert a node before the end of the pattern; its output."""
        domain = DOMAIN if op_type in OPERATORS else ""
        node = ir.node(op_type, inputs, attributes, domain=domain)
        node.outputs[0].dtype = ir.DataType.FLOAT
        graph.insert_before(self.end, node)
        return node.outputs[0]


def _split_geglu(graph: ir.Graph, gelu: ir.Node) -> None:
    """value·GELU(gate), both cut from one product plus bias → two products, each plus its bias."""
    nodes = _above(gelu.inputs[0], "Split", "Add", "MatMul")
    if nodes is None or len(nodes[0].outputs) != 2 or nodes[0].outputs[1] is not gelu.inputs[0]:
        return
    split, add, product = nodes
    weight, bias = product.inputs[1], add.inputs[1]
    if weight is None or weight.const_value is None or bias is None or bias.const_value is None:
        return
    weights, biases = (_cut(graph, whole, ("value", "gate")) for whole in (weight, bias))
    # A bias of two dimensions, for ONNX Runtime joins one of a single dimension with GELU to BiasGelu, which is slower.
    for part, old in enumerate(split.outputs):
        cut = ir.node("MatMul", [product.inputs[0], weights[part]])
        total = ir.node("Add", [cut.outputs[0], biases[part]])
        cut.outputs[0].dtype = total.outputs[0].dtype = ir.DataType.FLOAT
        cut.outputs[0].shape = total.outputs[0].shape = old.shape
        graph.insert_before(split, [cut, total])
        old.replace_all_uses_with(total.outputs[0])


def _keep_from_sum(graph: ir.Graph, norm: ir.Node) -> None:
    """Put a Reshape that changes nothing in memory before a norm that alone reads a sum, and its inverse behind."""
    total = _producer(norm.inputs[0], "Add")
    if total is None or len(total.outputs[0].uses()) != 1 or len(total.outputs[0].shape or ()) != 3:
        return
    width = _width(norm.inputs[0])
    for value, name, sizes in ((norm.inputs[0], "apart", [0, 0, 1, width]), (norm.outputs[0], "width", [0, 0, width])):
        assert value is not None
        readers = [(node, index) for node, index in value.uses() if value is norm.outputs[0] or node is norm]
        reshape = ir.node("Reshape", [value, _constant(graph, name, np.array(sizes, np.int64))])
        reshape.outputs[0].dtype = ir.DataType.FLOAT
        for node, index in readers:
            node.replace_input_with(index, reshape.outputs[0])
        if value is norm.outputs[0]:
            graph.insert_after(norm, reshape)
            reshape.outputs[0].shape, value.shape = value.shape, None
        else:
            graph.insert_before(norm, reshape)


def _cut(graph: ir.Graph, whole: ir.Value, names: tuple[str, ...]) -> list[ir.Value]:
    """A constant → equal parts of its last dimension: blocks.0.attn.qkv.weight → blocks.0.attn.qkv.q.weight, …"""
    assert whole.const_value is not None
    module, parameter = str(whole.name).rsplit(".", 1)
    parts = np.split(np.atleast_2d(whole.const_value.numpy()), len(names), axis=-1)  # views: no second copy in memory
    return [_constant(graph, f"{module}.{name}.{parameter}", part) for name, part in zip(names, parts, strict=True)]


def whole_of(name: str) -> str:
    """What a constant was called before `_cut`: blocks.0.attn.qkv.q.weight → blocks.0.attn.qkv.weight."""
    part, _, parameter = name.rpartition(".")
    return f"{part.rpartition('.')[0]}.{parameter}"


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        graph.register_initializer(value)
    return graph.initializers[name]


def _width(value: ir.Value | None) -> int:
    assert value is not None
    assert value.shape is not None
    return int(value.shape[-1])  # type: ignore[arg-type]


def _drop_unused(graph: ir.Graph) -> None:
    """Remove nodes and constants that nothing reads any more."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
