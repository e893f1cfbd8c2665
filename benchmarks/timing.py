"""Interleaved rounds and the spread of their ratios. Needs nothing but Python."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MIN_ROUNDS = 7


def spread(values: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    if len(values) == 1:
        return dict.fromkeys(("median", "p20", "p80"), values[0])
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p20": deciles[1], "p80": deciles[7]}


def told(quantiles: dict[str, float], unit: str = "") -> str:
    """A spread in words."""
    return f"{quantiles['median']:.3f}{unit} ({quantiles['p20']:.3f} to {quantiles['p80']:.3f})"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every side: `warm_up` of its first run, `seconds` of one run a round."""

    warm_up: dict[str, float]
    seconds: dict[str, list[float]]

    def median(self, side: str) -> float:
        return statistics.median(self.seconds[side])

    def ratio(self, slow: str, fast: str) -> dict[str, float]:
        """Spread of slow ÷ fast, each of the same round."""
        return spread([a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)])

    def fields(self) -> dict[str, Any]:
        """As they stand in a row."""
        return {
            "seconds": {side: spread(values) for side, values in self.seconds.items()},
            "warm_up_s": self.warm_up,
            "rounds": self.seconds,
        }


def interleave(sides: Mapping[str, Callable[[], object]], rounds: int) -> Timing:
    """Run the sides in turn, so that whatever else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    gc.collect()
    for index in range(rounds + 1):
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)
        print(f"round {index} of {rounds}", file=sys.stderr)
    return Timing({side: values[0] for side, values in seconds.items()}, {s: v[1:] for s, v in seconds.items()})
