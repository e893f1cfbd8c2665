"""What a bundle's lower precision costs, as measured at export, and how far that may go.

A `Certificate` lies in the manifest; the reference velocities that it can be measured against anywhere lie in a file of
the bundle (`reference_data`). Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

HEADROOM = 4.0  # how many times a tensor of half precision may grow before it is beyond its type


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a precision may be from fp32.

    Attributes:
        cosine: of the velocity of any step, at least.
        relative_l2: of the velocity of any step, at most.
        level_db: mean distance of the decoded clip's mel levels, at most.
        graph: relative error of the outputs of the graphs beside the denoiser.
    """

    cosine: float
    relative_l2: float
    level_db: float
    graph: float


# Beside each, what was measured on the packaged model and on random weights; docs/bundle.md has the table.
TOLERANCES = {
    "fp32": Tolerance(cosine=0.999999, relative_l2=1e-3, level_db=0.02, graph=1e-4),
    "fp16": Tolerance(cosine=0.9999, relative_l2=1.5e-2, level_db=0.5, graph=5e-3),
    "bf16": Tolerance(cosine=0.999, relative_l2=4.5e-2, level_db=0.5, graph=6e-2),
    "int8": Tolerance(cosine=0.995, relative_l2=1e-1, level_db=0.5, graph=5e-3),
    "fp8": Tolerance(cosine=0.995, relative_l2=1e-1, level_db=0.5, graph=5e-3),
}


@dataclass(frozen=True, slots=True)
class Island:
    """A layer that was moved to fp32, because one of its tensors comes too close to the largest fp16 number."""

    graph: str
    layer: str
    largest: float


@dataclass(frozen=True, slots=True)
class GraphError:
    """‖got − expected‖ / ‖expected‖ of one output, both graphs fed with the reference's inputs; the worst of all."""

    graph: str
    output: str
    relative_error: float


@dataclass(frozen=True, slots=True)
class VelocityError:
    """Of one step. `mode`: of guidance; `frames`: length of the latents."""

    graph: str
    mode: str
    frames: int
    timestep: int
    cosine: float
    relative_l2: float


@dataclass(frozen=True, slots=True)
class LevelError:
    """Mean distance of the mel levels of a decoded clip of so many frames."""

    frames: int
    distance_db: float


@dataclass(frozen=True, slots=True)
class ReferencePoint:
    """One velocity of the reference bundle; its arrays are in the bundle's reference file."""

    prompt: str
    timestep: int


@dataclass(frozen=True, slots=True)
class Reference:
    """What the reference file holds: for every point latents and velocity (1, C, frames), then the decoded clip's
    latents and its mel levels."""

    file: str
    frames: int
    points: tuple[ReferencePoint, ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Measured at export, each worst case over the corpus.

    Attributes:
        corpus: the prompts.
        limit: the largest number of the half type.
        largest: graph → tensor in half precision → max |value| in fp32.
        not_quantized: weights of products that are fp16 in a bundle of 8 bits, because in those they were too far off.
    """

    corpus: tuple[str, ...]
    limit: float
    largest: dict[str, dict[str, float]]
    islands: tuple[Island, ...]
    not_quantized: tuple[str, ...]
    graphs: tuple[GraphError, ...]
    velocities: tuple[VelocityError, ...]
    levels: tuple[LevelError, ...]
    reference: Reference

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError when the data is something else."""
        reference = data["reference"]
        return cls(
            corpus=tuple(map(str, data["corpus"])),
            limit=float(data["limit"]),
            largest={
                str(graph): {str(name): float(value) for name, value in tensors.items()}
                for graph, tensors in data["largest"].items()
            },
            islands=tuple(Island(**row) for row in data["islands"]),
            not_quantized=tuple(map(str, data["not_quantized"])),
            graphs=tuple(GraphError(**row) for row in data["graphs"]),
            velocities=tuple(VelocityError(**row) for row in data["velocities"]),
            levels=tuple(LevelError(**row) for row in data["levels"]),
            reference=Reference(
                str(reference["file"]),
                int(reference["frames"]),
                tuple(ReferencePoint(str(row["prompt"]), int(row["timestep"])) for row in reference["points"]),
            ),
        )

    def tightest(self) -> list[tuple[str, str, float]]:
        """Of each graph the tensor nearest to the limit: graph, tensor, limit over largest."""
        rows = []
        for graph, tensors in self.largest.items():
            if tensors:
                name = max(tensors, key=lambda key: tensors[key])
                rows.append((graph, name, self.limit / max(tensors[name], 1e-30)))
        return rows


def certificate_table(certificate: Certificate, precision: str) -> str:
    """What was measured at export, worst case by worst case, with the tolerances."""
    tolerance = TOLERANCES[precision]
    rows: list[tuple[str, ...]] = [("graph", "measured", "worst", "tolerance")]
    for graph, tensor, margin in certificate.tightest():
        rows.append((graph, f"headroom of '{tensor}'", f"{margin:.3g}x", f"{HEADROOM:g}x"))
    rows += [(i.graph, f"'{i.layer}' reaches", f"{i.largest:.3g}", "moved to fp32") for i in certificate.islands]
    rows += [
        (r.graph, f"error of {r.output}", f"{r.relative_error:.1e}", f"{tolerance.graph:.0e}")
        for r in certificate.graphs
    ]
    rows += [
        ("denoiser", f"'{name}'", f"too far off in {precision}", "moved to fp16") for name in certificate.not_quantized
    ]
    for graph, mode, frames in dict.fromkeys((v.graph, v.mode, v.frames) for v in certificate.velocities):
        steps = [v for v in certificate.velocities if (v.graph, v.mode, v.frames) == (graph, mode, frames)]
        worst = min(steps, key=lambda v: v.cosine)
        what = f"velocity cosine, {mode}, {len(steps)} steps of {frames} frames"
        rows.append((graph, what, f"{worst.cosine:.6f} (t={worst.timestep})", f"{tolerance.cosine}"))
        rows.append(
            (graph, "velocity relative L2", f"{max(v.relative_l2 for v in steps):.1e}", f"{tolerance.relative_l2:.1e}")
        )
    rows += [
        ("decoder", f"mel levels of {r.frames} frames", f"{r.distance_db:.3f} dB", f"{tolerance.level_db} dB")
        for r in certificate.levels
    ]
    return table(rows)


def table(rows: list[tuple[str, ...]]) -> str:
    """Left-aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
