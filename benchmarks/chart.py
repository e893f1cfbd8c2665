"""A bar chart of factors as SVG, readable on light and dark pages: each bar starts where the one above it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, ROW = 760, 190, 70, 44, 34
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.axis { stroke: #d1d9e0 }
.tick, .none { fill: #59636e }
.bar { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .axis { stroke: #3d444d }
  .tick, .none { fill: #9198a1 }
  .bar { fill: #4493f8 }
}
""".strip()


@dataclass(frozen=True, slots=True)
class Bar:
    """One step: how many times as fast it is as the step before; None when that was not measured."""

    label: str
    factor: float | None


def draw(title: str, bars: list[Bar]) -> str:
    """On a logarithmic axis, where factors that multiply stand one after the other. Only factors are written."""
    end = math.prod(bar.factor or 1.0 for bar in bars)
    most = next((tick for tick in TICKS if tick >= end), TICKS[-1]) if end > 1 else 2
    height = TOP + ROW * len(bars) + 30

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * max(0.0, math.log(value) / math.log(most))

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
    ]
    bottom = TOP + ROW * len(bars)
    for tick in (tick for tick in TICKS if tick <= most):
        lines.append(f'<line class="axis" x1="{x(tick):.1f}" y1="{TOP - 6}" x2="{x(tick):.1f}" y2="{bottom}"/>')
        lines.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick}×</text>')
    reached = 1.0
    for index, bar in enumerate(bars):
        y = TOP + ROW * index
        lines.append(f'<text x="{LEFT - 10}" y="{y + 18}" text-anchor="end">{escape(bar.label)}</text>')
        if bar.factor is None:
            lines.append(f'<text class="none" x="{x(reached) + 6:.1f}" y="{y + 18}">not measured</text>')
            continue
        begin, stop = sorted((x(reached), x(reached * bar.factor)))
        lines.append(f'<rect class="bar" x="{begin:.1f}" y="{y + 4}" width="{max(stop - begin, 1):.1f}" height="20"/>')
        lines.append(f'<text x="{stop + 6:.1f}" y="{y + 18}">{bar.factor:.3g}×</text>')
        reached *= bar.factor
    return "\n".join([*lines, "</svg>"]) + "\n"
