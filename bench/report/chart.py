"""The chart of a run: for each row where fuseunion and its best rival stand, kernel overlayfs being 1. An SVG."""

from __future__ import annotations

import math
from html import escape

from bench.report.results import NATIVE, OURS, Line, Results

LEFT, RIGHT, WIDTH, STEP, TOP = 260, 40, 900, 18, 70
OURS_COLOUR, RIVAL_COLOUR, GRID = "#1f6feb", "#d1242f", "#d0d7de"


def _shown(lines: list[Line]) -> list[tuple[str, float, float | None]]:
    """Label, our ratio to overlayfs and that of the best rival, of the lines that have the first."""
    shown = []
    for line in lines:
        ours = line.ratio(NATIVE)
        if ours is None:
            continue
        rival = line.ratio(line.best_rival)
        # ours/native divided by ours/rival is rival/native
        shown.append((line.label, ours, ours / rival if rival is not None else None))
    return shown


def _powers(values: list[float]) -> tuple[int, int]:
    """The powers of ten between which all values lie, 1 among them."""
    logarithms = [math.log10(value) for value in [*values, 1.0]]
    low, high = math.floor(min(logarithms)), math.ceil(max(logarithms))
    return low, max(high, low + 1)


def chart(results: Results) -> str:
    """The SVG text; of the first circumstances of the run, in which tmpfs, root and idle cores come first."""
    where = results.circumstances[0] if results.circumstances else None
    shown = _shown([line for line in results.lines if line.where == where])
    low, high = _powers([value for _, ours, rival in shown for value in (ours, rival) if value is not None])
    height = TOP + STEP * len(shown) + 20

    def x(value: float) -> float:
        share = (math.log10(value) - low) / (high - low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    title = f"Time, kernel overlayfs = 1 ({', '.join(where) if where else 'nothing measured'}); less is better"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
        *_legend(),
    ]
    for power in range(low, high + 1):
        place = x(10.0**power)
        colour = "#57606a" if power == 0 else GRID
        parts.append(f'<line x1="{place:.1f}" y1="{TOP - 10}" x2="{place:.1f}" y2="{height - 15}" stroke="{colour}"/>')
        parts.append(f'<text x="{place:.1f}" y="{TOP - 15}" text-anchor="middle">{10.0**power:g}</text>')
    for number, (label, ours, rival) in enumerate(shown):
        y = TOP + STEP * number + 8
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        if rival is not None:
            parts.append(f'<line x1="{x(ours):.1f}" y1="{y}" x2="{x(rival):.1f}" y2="{y}" stroke="{GRID}"/>')
            parts.append(_point(x(rival), y, RIVAL_COLOUR, f"{label}: best FUSE rival {rival:.2f}"))
        parts.append(_point(x(ours), y, OURS_COLOUR, f"{label}: fuseunion {ours:.2f}"))
    return "\n".join([*parts, "</svg>", ""])


def _point(x: float, y: float, colour: str, says: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{colour}"><title>{escape(says)}</title></circle>'


def _legend() -> list[str]:
    entries = ((OURS_COLOUR, f"fuseunion ({OURS} engine)"), (RIVAL_COLOUR, "best FUSE rival"))
    parts = []
    for number, (colour, text) in enumerate(entries):
        x = 20 + 200 * number
        parts.append(f'<circle cx="{x}" cy="36" r="4" fill="{colour}"/><text x="{x + 10}" y="40">{text}</text>')
    return parts
