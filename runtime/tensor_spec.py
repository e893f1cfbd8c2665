"""What a graph takes and gives: one `TensorSpec` per input and output, for exporter, manifest and every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ezaudio.runtime.errors import BundleError

DTYPES = ("float32", "float16", "bfloat16", "int64", "int8", "bool")


@dataclass(frozen=True, slots=True)
class Axis:
    """A dimension known only at run time: `times` × the size called `name`, with the range engines are built for."""

    name: str
    min: int
    opt: int
    max: int
    times: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max or self.opt < 1 or self.times < 1:
            raise ValueError(f"axis {self.name!r} needs 0 <= min <= opt <= max, opt and times >= 1, got {self}")

    def __mul__(self, times: int) -> Axis:
        return Axis(self.name, self.min, self.opt, self.max, self.times * times)

    def __str__(self) -> str:
        return self.name if self.times == 1 else f"{self.times}*{self.name}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a tensor; a dimension is a number or an `Axis`."""

    name: str
    dtype: str
    shape: tuple[int | Axis, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype of {self.name!r} must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    def axes(self) -> dict[int, Axis]:
        """Position → axis, for the dynamic dimensions."""
        return {index: dim for index, dim in enumerate(self.shape) if isinstance(dim, Axis)}

    def sizes(self, values: dict[str, int]) -> tuple[int, ...]:
        """The shape for given axis sizes."""
        return tuple(dim.times * values[dim.name] if isinstance(dim, Axis) else dim for dim in self.shape)

    def to_dict(self) -> dict[str, Any]:
        shape = [
            {"axis": d.name, "times": d.times, "min": d.min, "opt": d.opt, "max": d.max} if isinstance(d, Axis) else d
            for d in self.shape
        ]
        return {"name": self.name, "dtype": self.dtype, "shape": shape}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TensorSpec:
        """Inverse of `to_dict`. Raises BundleError when the data does not describe a tensor."""
        try:
            shape = tuple(
                Axis(d["axis"], d["min"], d["opt"], d["max"], d["times"]) if isinstance(d, dict) else int(d)
                for d in data["shape"]
            )
            return cls(str(data["name"]), str(data["dtype"]), shape)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"not the description of a tensor: {data!r} ({error})") from error
