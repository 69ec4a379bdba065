"""Line charts as SVG, drawn here and styled by chart.css; page.js only adds the values under the pointer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET  # writes only; escapes every text and attribute

import numpy as np
from markupsafe import Markup

from upslope.report.scale import Axis, step_axis, thin, tick_labels, value_axis
from upslope.report.text import visible

COLORS = 8  # colours in chart.css; the ninth line repeats the first colour, dashed
WIDTH, HEIGHT = 420.0, 236.0


@dataclass(frozen=True)
class Line:
    """One curve: steps x [n], values y [n], optionally an interval [n], [n] around them.

    `raw` draws it pale and thin, behind its smoothed sibling; `marks` puts a dot on every point.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    color: int = 0
    raw: bool = False
    marks: bool = False

    def thinned(self) -> "Line":
        """At most as many points as can be seen."""
        kept = thin(self.y)
        low, high = (None if bound is None else bound[kept] for bound in (self.low, self.high))
        return Line(self.name, self.x[kept], self.y[kept], low, high, self.color, self.raw, self.marks)


@dataclass(frozen=True)
class Chart:
    """A title, a sentence that explains it, and its curves. `low`, `high` widen the value axis, `log` permits a log one.

    `steps` widen the step axis, so that the charts of a page share one; `along` says what it counts, where that is not steps.
    """

    title: str
    lines: Sequence[Line]
    help: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    steps: Sequence[int] = ()
    along: str = "step"


@dataclass(frozen=True)
class Frame:
    """Where a chart is drawn: its size and its two axes."""

    width: float
    height: float
    x: Axis
    y: Axis


def frame_of(chart: Chart, width: float = WIDTH, height: float = HEIGHT, top: float = 10.0) -> Frame:
    """Axes around all curves of a chart, with room for the tick labels."""
    values = [line.y for line in chart.lines]
    values += [bound for line in chart.lines for bound in (line.low, line.high) if bound is not None]
    y = value_axis(np.concatenate(values), height - 34, top, low=chart.low, high=chart.high, log=chart.log)
    left = 14 + 7.6 * max(len(label) for label in tick_labels(y.ticks(4)))
    steps = [line.x for line in chart.lines] + [np.array(chart.steps, dtype=float)]
    x = step_axis(
        float(min(x.min() for x in steps if len(x))), float(max(x.max() for x in steps if len(x))), left, width - 14
    )
    return Frame(width, height, x, y)


def draw(chart: Chart, frame: Frame | None = None) -> ET.Element:
    """The chart as an <svg> element; every line needs at least one point."""
    frame = frame or frame_of(chart)
    svg = ET.Element("svg", {"viewBox": f"0 0 {frame.width:g} {frame.height:g}", "class": "chart", "role": "img"})
    svg.set("aria-label", visible(_summary(chart)))
    _draw_axes(svg, frame, chart.along)
    lines = [line.thinned() for line in chart.lines]
    for line in lines:
        if line.low is not None and line.high is not None:
            _draw_band(svg, line, frame)
    for line in sorted(lines, key=lambda each: not each.raw):
        _draw_line(svg, line, frame)
    return svg


def svg_markup(svg: ET.Element) -> Markup:
    """An SVG element for a page. Safe: ElementTree has escaped what it holds."""
    return Markup(ET.tostring(svg, encoding="unicode"))


def hover_data(chart: Chart, frame: Frame | None = None) -> dict[str, Any]:
    """What page.js needs to show the values under the pointer: the points of every line and the two axes."""
    frame = frame or frame_of(chart)
    axis = frame.x
    return {
        "x": [axis.low, axis.high, axis.start, axis.end],
        "y": [frame.y.end, frame.y.start],
        "lines": [_hover_line(line.thinned(), frame) for line in chart.lines],
    }


def text(parent: ET.Element, x: float, y: float, content: str, style: str = "tick", anchor: str = "middle") -> None:
    """Add a text element; `style` is a class of chart.css."""
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style, "text-anchor": anchor}
    ET.SubElement(parent, "text", attributes).text = visible(content)


def color_class(color: int) -> str:
    """The CSS classes of the n-th colour."""
    return f"c{color % COLORS}" + (f" dash{min(color // COLORS, 3)}" if color >= COLORS else "")


def _draw_axes(svg: ET.Element, frame: Frame, along: str) -> None:
    left, right, bottom = frame.x.start, frame.x.end, frame.y.start
    ticks = frame.y.ticks(4)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        y = float(frame.y.place(tick))
        ET.SubElement(svg, "path", {"d": f"M{left:.1f} {y:.1f}H{right:.1f}", "class": "grid"})
        text(svg, left - 8, y + 4, label, anchor="end")
    ticks = [tick for tick in frame.x.ticks(5) if along != "step" or float(tick).is_integer()]
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        x = float(frame.x.place(tick))
        ET.SubElement(svg, "path", {"d": f"M{x:.1f} {bottom:.1f}v4", "class": "axis"})
        near_end = x > right - 12
        text(svg, right + 8 if near_end else x, bottom + 17, label, anchor="end" if near_end else "middle")
    ET.SubElement(svg, "path", {"d": f"M{left:.1f} {bottom:.1f}H{right:.1f}", "class": "axis"})
    text(
        svg,
        (left + right) / 2,
        frame.height - 3,
        along if not frame.y.log else f"{along} (values on a log scale)",
        "label",
    )


def _draw_band(svg: ET.Element, line: Line, frame: Frame) -> None:
    assert line.low is not None
    assert line.high is not None
    if len(line.x) == 1:  # one point has a bar, not a band
        at, low, high = (
            float(a.place(v)[0]) for a, v in ((frame.x, line.x), (frame.y, line.low), (frame.y, line.high))
        )
        ET.SubElement(svg, "path", {"d": f"M{at:.1f} {low:.1f}V{high:.1f}", "class": f"bar {color_class(line.color)}"})
        return
    x = frame.x.place(np.concatenate([line.x, line.x[::-1]]))
    y = frame.y.place(np.concatenate([line.high, line.low[::-1]]))
    ET.SubElement(svg, "path", {"d": _path(x, y) + "Z", "class": f"band {color_class(line.color)}"})


def _draw_line(svg: ET.Element, line: Line, frame: Frame) -> None:
    x, y = frame.x.place(line.x), frame.y.place(line.y)
    style = f"{'raw' if line.raw else 'line'} {color_class(line.color)}"
    if len(x) > 1:
        ET.SubElement(svg, "path", {"d": _path(x, y), "class": style})
    if len(x) == 1 or (line.marks and len(x) <= 40):
        for cx, cy in zip(x, y, strict=True):
            ET.SubElement(svg, "circle", {"cx": f"{cx:.1f}", "cy": f"{cy:.1f}", "r": "3.2", "class": style + " mark"})


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _hover_line(line: Line, frame: Frame) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": visible(line.name),
        "color": color_class(line.color),
        "x": [round(float(x), 3) for x in line.x],
        "y": [_short(y) for y in line.y],
        "at": [round(float(y), 1) for y in frame.y.place(line.y)],
    }
    if line.low is not None and line.high is not None:
        data["low"], data["high"] = [_short(y) for y in line.low], [_short(y) for y in line.high]
    return data


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _summary(chart: Chart) -> str:
    ends = "; ".join(f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in chart.lines if not line.raw)
    return f"{chart.title}: {ends}"
