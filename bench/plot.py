"""A document as one picture: ratios to the floors, throughput and latency by size and clients. Pure; plain SVG.

Colours follow the reader's light or dark mode; nothing in it needs a script or a font of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.results import Document, Row
from bench.targets import TARGETS, find, verdicts

_WIDTH = 990
_LEFT = 370
_BAR_WIDTH = 470
_BAR = 18
_GAP = 34
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 15px; font-weight: 600 }
  .note { fill: #57606a }
  .bar { fill: #bf8700 } .bar2 { fill: #2f6feb } .bar3 { fill: #8250df }
  .line { stroke: #d0d7de } .aim { stroke: #cf222e; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .note { fill: #9198a1 }
    .bar { fill: #e3b341 } .bar2 { fill: #79a8ff } .bar3 { fill: #c297ff }
    .line { stroke: #3d444d } .aim { stroke: #ff7b72 }
  }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of a panel.

    Attributes:
        marks: values with their class of colour, drawn from the left on a common scale, the greatest first.
        shown: the figures as text.
        aim: where a mark stands that it should reach.
    """

    name: str
    marks: tuple[tuple[float, str], ...]
    shown: str
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """A title and bars on one scale."""

    title: str
    note: str
    bars: Sequence[Bar]
    logarithmic: bool = False


def svg(document: Document) -> str:
    """The picture."""
    parts: list[str] = []
    y = 10
    for panel in _panels(document):
        if panel.bars:
            y = _draw(panel, y, parts)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" role="img">'
    )
    label = f"<title>AmberBlob {escape(document.commit)}: figures beside their floors</title>"
    return "\n".join([head, label, f"<style>{_STYLE}</style>", *parts, "</svg>"]) + "\n"


def _panels(document: Document) -> list[Panel]:
    aims = {(target.section, target.subject, target.metric): target.aim for target in TARGETS if target.of == "floor"}
    ratios = []
    for section in document.sections:
        if section.name not in ("put", "get", "large"):
            continue
        for row in section.rows:
            if row.ratio is not None and row.floor is not None and row.metric == "throughput":
                aim = aims.get((section.name, row.subject, row.metric))
                shown = f"{row.ratio.median:.2f} of {row.floor.name}"
                ratios.append(Bar(row.subject, ((row.ratio.median, "bar"),), shown, aim))
    rates, latencies = [], []
    for section in document.sections:
        if section.name not in ("put", "get", "sizes", "kinds"):
            continue
        for subject in dict.fromkeys(row.subject for row in section.rows):
            rate = find(document, section.name, subject, "throughput")
            if rate is not None and rate.unit == "ops/s" and "null" not in subject:
                rates.append(Bar(subject, ((rate.series.median, "bar2"),), f"{rate.series.median:,.0f}"))
                latencies += _latency(document, section.name, subject)
    met = [verdict.reached for verdict in verdicts(document)]
    note = (
        f"the line: the aim. {met.count(True)} of {len(met) - met.count(None)} targets are reached; the table has all"
    )
    return [
        Panel("Ratio to the floor", note, ratios),
        Panel("Throughput, requests per second", "logarithmic", rates, True),
        Panel("Latency, ms: median, p99, p99.9", "logarithmic; p99.9 where there were samples enough", latencies, True),
    ]


def _latency(document: Document, section: str, subject: str) -> list[Bar]:
    found: list[tuple[Row, str]] = []
    for metric, colour in (("p99.9", "bar3"), ("p99", "bar2"), ("p50", "bar")):
        row = find(document, section, subject, metric)
        if row is not None:
            found.append((row, colour))
    if not found:
        return []
    shown = " / ".join(f"{row.series.median:.1f}" for row, _ in reversed(found))
    return [Bar(subject, tuple((row.series.median, colour) for row, colour in found), shown)]


def _draw(panel: Panel, y: int, parts: list[str]) -> int:
    parts.append(f'<text class="title" x="10" y="{y + 16}">{escape(panel.title)}</text>')
    parts.append(f'<text class="note" x="{_LEFT}" y="{y + 16}">{escape(panel.note)}</text>')
    y += 26
    values = [value for bar in panel.bars for value, _ in bar.marks if value > 0]
    values += [bar.aim for bar in panel.bars if bar.aim]
    low, high = min(values, default=0.1), max(values, default=1.0)

    def width(value: float) -> float:
        if value <= 0:
            return 0.0
        if not panel.logarithmic:
            return _BAR_WIDTH * value / max(1.0, high) * 0.7
        floor = 10 ** math.floor(math.log10(low))
        return max(1.0, 0.7 * _BAR_WIDTH * math.log10(value / floor) / max(0.1, math.log10(high / floor)))

    bottom = y + _BAR * len(panel.bars)
    parts.append(f'<line class="line" x1="{_LEFT}" y1="{y}" x2="{_LEFT}" y2="{bottom}"/>')
    for bar in panel.bars:
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 13}" text-anchor="end">{escape(bar.name)}</text>')
        for value, colour in bar.marks:
            size = f'width="{width(value):.1f}" height="{_BAR - 5}"'
            parts.append(f'<rect class="{colour}" x="{_LEFT}" y="{y + 3}" {size}/>')
        at = _LEFT + max([width(value) for value, _ in bar.marks] + [width(bar.aim or 0)])
        parts.append(f'<text x="{at + 6:.1f}" y="{y + 13}">{escape(bar.shown)}</text>')
        if bar.aim:
            x = _LEFT + width(bar.aim)
            parts.append(f'<line class="aim" x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + _BAR}"/>')
        y += _BAR
    return y + _GAP
