"""Which part of a graph computes in which precision, as one table, and what the table's words mean in a graph.

A node is known by its role, which its surroundings give it (a product whose left side is a gated activation is `gated`,
whatever a tracer called it), and by the name of its weight. The first rule that fits decides; a node that no rule names
computes in fp32, unless it only moves or scales numbers between nodes of a lower precision (see `typed_graphs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

PRODUCTS = ("MatMul", "Gemm", "Conv")
MOVES = ("Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
FOLLOWERS = ("Add", "Gelu", "Mul", "Sigmoid")  # may stay in half precision between nodes that compute in it
CONVERSIONS = ("Cast", "DequantizeLinear", "QuantizeLinear")
HALF_OPERATORS = frozenset((*PRODUCTS, *MOVES, *FOLLOWERS, *CONVERSIONS, "Shape"))

ROPE_TABLES = ("embedding.cos", "embedding.sin")
HALF, EIGHT_BITS, FP32 = "half", "8 bits", "fp32"


@dataclass(frozen=True, slots=True)
class Rule:
    """Nodes → precision.

    Attributes:
        graphs, roles, weights: patterns, alternatives separated by a bar.
        only: the precisions of bundles that the rule is for, as a pattern.
    """

    graphs: str
    roles: str
    weights: str
    precision: str
    why: str
    only: str = "*"

    def fits(self, graph: str, role: str, weight: str, precision: str) -> bool:
        pairs = ((self.graphs, graph), (self.roles, role), (self.weights, weight), (self.only, precision))
        return all(any(fnmatchcase(value, pattern) for pattern in patterns.split("|")) for patterns, value in pairs)


POLICY = (
    Rule("*modulation", "*", "*", FP32, "once a run, and its rows scale every block"),
    Rule("*frame_bias", "*", "*", FP32, "once a clip, and it is added to the latents"),
    Rule("*", "sum", "*", FP32, "residual streams, RoPE, snake, guidance and the solver's row end in a sum of tensors"),
    Rule("*", "rope", "*", FP32, "at late positions an angle's step is 0.25 rad in fp16 and 2 rad in bf16"),
    Rule("text_encoder", "gated", "*", FP32, "wo: beyond 65504 in FLAN-T5"),
    Rule("text_encoder", "scores|raw", "*", FP32, "T5 does not scale its scores, and softmax makes factors of errors"),
    Rule("denoiser*|controlnet*", "product", "embedding.*", FP32, "next to the latents, which are sampler state"),
    Rule("denoiser*", "product|conv", "final_l*", FP32, "guidance multiplies their error by 5 to 11"),
    Rule("decoder", "conv", "layers.[!0].weight", FP32, "the last layer: a sample rounded to bf16 is noise"),
    Rule("decoder", "conv", "layers.0.weight|layers.1.1.weight", FP32, "where companded latents are expanded"),
    Rule("encoder", "conv", "layers.[!0].weight", FP32, "the last layer: mean and deviation of the given latent"),
    Rule("encoder", "companded", "*", FP32, "companding multiplies the error of faint coefficients"),
    Rule("*", "conv", "*", FP32, "opset 20 has no convolution in bf16, and 8 bits are too few for audio", only="bf16"),
    # Not the gated products and the long skips: what they are fed has outliers that one scale a tensor cannot hold.
    Rule("denoiser*|controlnet*", "product", "*attn.*|*.mlp.up.*", EIGHT_BITS, "most of a step", only="int8|fp8"),
    Rule("*", "product|gated|raw|scores|mix|conv", "*", HALF, "the work of a graph"),
)


def decide(graph: str, node: ir.Node, precision: str) -> Rule | None:
    """The rule for a node of a bundle in `precision`; None where none fits."""
    role, weight = role_of(node), weight_name(node)
    return next((rule for rule in POLICY if rule.fits(graph, role, weight, precision)), None)


def source(value: ir.Value | None, through: tuple[str, ...] = CONVERSIONS) -> ir.Value | None:
    """Where a value comes from, seen through conversions."""
    while value is not None and (node := value.producer()) is not None and node.op_type in through:
        value = node.inputs[0]
    return value


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer, or a conversion of one."""
    found = source(value)
    return found is not None and found.const_value is not None


def weight_name(node: ir.Node) -> str:
    """The name of a product's constant right side without what a precision added to it; empty where it has none."""
    if node.op_type not in PRODUCTS or len(node.inputs) < 2 or not is_constant(node.inputs[1]):
        return ""
    found = source(node.inputs[1])
    assert found is not None
    return original_name(found.name or "")


def original_name(name: str) -> str:
    """The name in the fp32 graph of a tensor or weight that a precision gave another type."""
    for ending in (".fp16", ".bf16", ".fp32", ".int8", ".fp8"):
        name = name.removesuffix(ending)
    return name


def role_of(node: ir.Node) -> str:
    """`product`, `gated` (fed by a gated activation), `raw` (queries and keys that no norm follows), `scores`, `mix`
    (softmax · values), `conv`, `companded` (conv of a graph that compands), `sum`, `bias`, `rope`, or the operator."""
    if node.op_type == "Conv":
        compands = node.graph is not None and any(other.op_type == "Sign" for other in node.graph)
        return "companded" if compands else "conv"
    if node.op_type in PRODUCTS:
        left = source(node.inputs[0])
        before = None if left is None else left.producer()
        if is_constant(node.inputs[1]):
            gated = before is not None and before.op_type == "Mul" and not any(map(is_constant, before.inputs))
            return "gated" if gated else "raw" if _makes_scores(node.outputs[0]) else "product"
        return "mix" if before is not None and before.op_type == "Softmax" else "scores"
    if node.op_type == "Add" and is_number(node.outputs[0]):
        return "bias" if any(map(is_constant, node.inputs)) else "sum"
    if node.op_type == "Mul" and any(_is_rope_table(value) for value in node.inputs):
        return "rope"
    return node.op_type


def _makes_scores(value: ir.Value) -> bool:
    """Whether a value is moved, and nothing else, into the scores of attention."""
    for node, _ in value.uses():
        if node.op_type in (*MOVES, *CONVERSIONS):
            if _makes_scores(node.outputs[0]):
                return True
        elif node.op_type == "MatMul" and not is_constant(node.inputs[1]) and role_of(node) == "scores":
            return True
    return False


def _is_rope_table(value: ir.Value | None) -> bool:
    found = source(value, (*CONVERSIONS, *MOVES))
    return found is not None and original_name(found.name or "") in ROPE_TABLES


NUMBERS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def is_number(value: ir.Value | None) -> bool:
    """Whether a value is of a floating-point type that a precision may change."""
    return value is not None and value.dtype in NUMBERS
