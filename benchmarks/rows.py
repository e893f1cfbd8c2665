"""The rows of benchmarks/results/, and how their numbers are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured"
Row = dict[str, Any]


class Results:
    """All rows, in the order in which they were measured."""

    def __init__(self, folder: Path) -> None:
        lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def newest(self, benchmark: str, **wanted: Any) -> Row | None:
        """The last row with these values."""
        wanted = {"benchmark": benchmark} | wanted
        found = [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]
        return found[-1] if found else None

    def each(self, benchmark: str, *keys: str, **wanted: Any) -> list[Row]:
        """The newest row of every combination of values of `keys`."""
        wanted = {"benchmark": benchmark} | wanted
        rows = [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]
        return [*{tuple(str(row.get(key)) for key in keys): row for row in rows}.values()]


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """With so many significant digits; large numbers whole, with commas."""
    if value is None:
        return NOT_MEASURED
    text = f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"
    return f"{text} {unit}".rstrip()


def span(quantiles: dict[str, float]) -> str:
    return f"{quantiles['median']:.2f} ({quantiles['p20']:.2f} to {quantiles['p80']:.2f})"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def median(row: Row | None, side: str) -> float | None:
    return None if row is None or side not in row["seconds"] else row["seconds"][side]["median"]


def where(row: Row) -> str:
    versions = row["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("onnxruntime", "torch") if versions.get(name))
    return f"{row['hardware']}; {packages}"
