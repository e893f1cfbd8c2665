"""Rules that every graph of a bundle keeps, proved on the files as written.

A rule is a function from a graph to findings; `RULES` lists them. An export with a finding is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ezaudio.export import cpu_fusions, policy
from ezaudio.export.onnx_writer import OPSET
from ezaudio.export.policy import CONVERSIONS, FP32, HALF_OPERATORS, MOVES
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.manifest import GraphEntry
from ezaudio.runtime.tensor_spec import Axis, TensorSpec

IR_VERSIONS = (8, 9, 10)
MAX_SUBNORMAL_ERROR = 5e-3  # of a constant, relative, by numbers that fp16 cannot hold with its full precision

# What makes a shape depend on values, or a size unknown until a graph has run.
DATA_DEPENDENT = frozenset(
    (
        "Compress",
        "If",
        "Loop",
        "NonMaxSuppression",
        "NonZero",
        "Optional",
        "Scan",
        "SequenceConstruct",
        "TopK",
        "Unique",
    )
)
RANDOM = frozenset(("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"))
# Operator → the inputs that are sizes or positions of a result.
SHAPE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Slice": (1, 2),
    "Tile": (1,),
}

IR_DTYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64, "bool": ir.DataType.BOOL}
ALLOWED_DTYPES = frozenset((ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL))
HALF_DTYPES = {"bf16": ir.DataType.BFLOAT16}  # of a precision; fp16 of all others but fp32
CPU_PRECISIONS = ("int8", "w8", "w4")  # untyped graphs in these are for ONNX Runtime's CPU provider alone
OWN_OPERATORS = cpu_fusions.OPERATORS | {"MatMulNBits"}
INTEGERS = frozenset((ir.DataType.INT8, ir.DataType.UINT8))
CODE_DTYPES = {"int8": INTEGERS, "w8": INTEGERS, "w4": INTEGERS, "fp8": frozenset((ir.DataType.FLOAT8E4M3FN,))}


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a node (or tensor) of a graph breaks."""

    graph: str
    node: str
    rule: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A graph to be linted. `typed`: its types say what computes in half precision, so the policy applies."""

    name: str
    model: ir.Model
    entry: GraphEntry
    precision: str
    typed: bool


Found = Iterator[tuple[str, str]]


def lint_bundle(folder: Path, graphs: dict[str, GraphEntry], precision: str, typed: bool) -> list[Finding]:
    """Findings of all graphs in a folder."""
    return [
        finding
        for name, entry in graphs.items()
        for finding in lint_graph(Subject(name, ir.load(folder / entry.file), entry, precision, typed))
    ]


def lint_graph(subject: Subject) -> list[Finding]:
    return [Finding(subject.name, node, rule, text) for rule, check in RULES.items() for node, text in check(subject)]


def refuse(findings: list[Finding]) -> None:
    """Raises BundleError, in one line, when there are findings."""
    if findings:
        rows = "; ".join(f"{f.graph}, {f.node}: {f.text} [{f.rule}]" for f in findings[:5])
        more = f"; and {len(findings) - 5} more" if len(findings) > 5 else ""
        raise BundleError(f"the graphs break {len(findings)} rules, nothing was written: {rows}{more}")


def _opset(subject: Subject) -> Found:
    own = OWN_OPERATORS if subject.precision in CPU_PRECISIONS and not subject.typed else frozenset()
    imports = dict(subject.model.opset_imports)
    if imports != {"": OPSET} and not (own and imports == {"": OPSET, cpu_fusions.DOMAIN: 1}):
        yield "graph", f"opset is {imports}, expected {OPSET} and no other domain"
    if subject.model.ir_version not in IR_VERSIONS:
        yield "graph", f"IR version is {subject.model.ir_version}, expected one of {IR_VERSIONS}"
    if subject.model.functions:
        yield "graph", f"has {len(subject.model.functions)} functions, expected none"
    for node in subject.model.graph:
        if node.domain and not (node.domain == cpu_fusions.DOMAIN and node.op_type in own):
            yield str(node.name), f"operator {node.domain}.{node.op_type} is no standard one"


def _types(subject: Subject) -> Found:
    allowed = set(ALLOWED_DTYPES)
    if subject.precision != "fp32":
        allowed.add(HALF_DTYPES.get(subject.precision, ir.DataType.FLOAT16))
    allowed |= CODE_DTYPES.get(subject.precision, frozenset())
    values = [*subject.model.graph.initializers.values()]
    values += [value for node in subject.model.graph for value in node.outputs]
    for value in values:
        if value.dtype is not None and value.dtype not in allowed:
            yield str(value.name), f"is {value.dtype}, which a bundle in {subject.precision} does not hold"


def _interface(subject: Subject) -> Found:
    graph, entry = subject.model.graph, subject.entry
    for values, specs in ((graph.inputs, entry.inputs), (graph.outputs, entry.outputs)):
        names, expected = [value.name for value in values], [spec.name for spec in specs]
        if names != expected:
            yield "graph", f"has {names}, expected {expected}"
            continue
        for value, spec in zip(values, specs, strict=True):
            yield from _declared(value, spec)


def _declared(value: ir.Value, spec: TensorSpec) -> Found:
    if value.dtype != IR_DTYPES[spec.dtype]:
        yield spec.name, f"is {value.dtype}, declared as {spec.dtype}"
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    expected = [d if isinstance(d, int) else str(d) for d in spec.shape]
    if shape != expected:
        yield spec.name, f"has shape {shape}, declared as {expected}"


def _axes(subject: Subject) -> Found:
    """Inside a graph, too, sizes are numbers or made of declared axes.

    The tracer calls a size that it computed from those s1, s2…, and one that depends on values u1, u2….
    """
    specs = (*subject.entry.inputs, *subject.entry.outputs)
    axes = {dim.name for spec in specs for dim in spec.shape if isinstance(dim, Axis)}
    functions = {"Max", "Min", "Mod", "FloorDiv", "floor", "CeilToInt"}
    for node in subject.model.graph:
        for value in node.outputs:
            for dim in value.shape or ():
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    names = set(re.findall(r"[A-Za-z_]\w*", str(dim.value))) - axes - functions
                    if any(not re.fullmatch(r"s\d+", name) for name in names):
                        yield str(node.name), f"'{value.name}' has size {dim.value}, which is no declared axis"


def _static_shapes(subject: Subject) -> Found:
    for node in subject.model.graph:
        if node.op_type in DATA_DEPENDENT | RANDOM:
            yield (
                str(node.name),
                f"operator {node.op_type} makes sizes or results depend on more than the inputs' sizes",
            )
        for index in SHAPE_INPUTS.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and (culprit := _reads_values(value)):
                yield str(node.name), f"a size of {node.op_type} is computed from the values of '{culprit}'"


def _reads_values(value: ir.Value) -> str:
    """The graph input whose values, rather than sizes, a value is computed from; empty when there is none."""
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop()
        if current in seen or current.const_value is not None:
            continue
        seen.add(current)
        node = current.producer()
        if node is None:
            return str(current.name)
        if node.op_type not in ("Shape", "Size"):
            waiting += [v for v in node.inputs if v is not None]
    return ""


def _whole_norms(subject: Subject) -> Found:
    """LayerNormalization is one node. T5's RMSNorm has no mean to subtract and is none."""
    for node in subject.model.graph:
        if node.op_type == "LayerNormalization":
            stash = node.attributes.get("stash_type")
            if stash is not None and stash.as_int() != 1:
                yield str(node.name), "keeps its statistics in half precision: stash_type must be 1"
        if node.op_type != "Sub" or len(node.inputs) != 2:
            continue
        mean = policy.source(node.inputs[1])
        before = None if mean is None else mean.producer()
        if (
            before is None
            or before.op_type != "ReduceMean"
            or policy.source(before.inputs[0]) is not policy.source(node.inputs[0])
        ):
            continue
        for square, _ in _users(node.outputs[0]):
            if square.op_type in ("Pow", "Mul") and any(
                user.op_type == "ReduceMean" for user, _ in _users(square.outputs[0])
            ):
                yield str(node.name), "a LayerNorm is decomposed into mean, square and mean"


def _users(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Readers of a value, seen through conversions."""
    for node, index in value.uses():
        if node.op_type in CONVERSIONS:
            yield from _users(node.outputs[0])
        else:
            yield node, index


def _islands(subject: Subject) -> Found:
    """Half precision only where the policy allows it."""
    if not subject.typed:
        return
    for node in subject.model.graph:
        tensors = [v for v in (*node.inputs, *node.outputs) if v is not None]
        halves = [v for v in tensors if v.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)]
        if not halves or node.op_type in CONVERSIONS:
            continue
        rule = policy.decide(subject.name, node, subject.precision)
        if node.op_type not in HALF_OPERATORS:
            yield str(node.name), f"{node.op_type} computes in half precision: it must stay in fp32"
        elif rule is not None and rule.precision == FP32 and node.op_type not in MOVES:
            what = policy.weight_name(node) or policy.role_of(node)
            yield str(node.name), f"'{what}' computes in half precision: it must stay in fp32 ({rule.why})"


def _constants(subject: Subject) -> Found:
    """Every constant is finite, and fp16 holds it with its precision."""
    for name, value in subject.model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not policy.is_number(value):
            continue
        array = tensor.numpy().astype(np.float32)
        if not np.isfinite(array).all():
            yield name, "holds infinity or NaN"
        elif value.dtype == ir.DataType.FLOAT16 and not name.endswith((".scale", ".scales")):
            tiny = np.abs(array) < float(np.finfo(np.float16).smallest_normal)
            # Below the smallest normal number a value is off by up to half of 2⁻²⁴.
            lost = float(np.sqrt(np.count_nonzero(tiny))) * 2.0**-25
            norm = float(np.linalg.norm(array))
            if array.size and tiny.any() and lost > MAX_SUBNORMAL_ERROR * max(norm, 1e-30) and norm > 0:
                yield name, f"is too small for fp16: {np.count_nonzero(tiny):,} of {array.size:,} numbers are subnormal"


RULES: dict[str, Callable[[Subject], Found]] = {
    "opset": _opset,
    "types": _types,
    "interface": _interface,
    "axes": _axes,
    "static shapes": _static_shapes,
    "whole norms": _whole_norms,
    "islands": _islands,
    "constants": _constants,
}
