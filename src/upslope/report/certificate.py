"""A certificate as a standalone SVG picture: the certified mean return over the budget, and what attacks leave."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from upslope.report.chart import Chart, Line, color_class, frame_of, text
from upslope.report.figure import TOP, draw_figure
from upslope.runs.files import write_atomic

ROWS = 5  # of the legend


def write_certificate(found: Mapping[str, Any], out: Path) -> Path:
    """Draws what `upslope certify` has found (its JSON) to the SVG file `out`; its path. Raises RunError where the disk refuses."""
    svg = draw_certificate(found)
    write_atomic(Path(out), ET.tostring(svg, encoding="unicode") + "\n")
    return Path(out)


def draw_certificate(found: Mapping[str, Any]) -> ET.Element:
    """The certified mean return, and the mean return under each attack with its interval, over budget / sigma."""
    rows = sorted(found["rows"], key=lambda row: float(row["budget"]))
    x = np.array([row["budget"] for row in rows]) / found["sigma"]
    lines = [Line("certified", x, np.array([row["mean_return"] for row in rows]), marks=True)]
    struck = [row for row in rows if row.get("attacks")]
    at = np.array([row["budget"] for row in struck]) / found["sigma"]
    for index, name in enumerate(struck[0]["attacks"] if struck else (), start=1):
        mean, low, high = (np.array([row["attacks"][name][key] for row in struck]) for key in ("mean", "low", "high"))
        lines.append(Line(name, at, mean, low, high, color=index, marks=True))
    title = f"Mean return in {found['task']}, noise {found['sigma']:g}"
    chart = Chart(title, lines, low=float(found["lowest"]), along="budget / noise")
    style = (Path(__file__).parent / "chart.css").read_text(encoding="utf-8")
    svg = draw_figure([chart], style)
    frame = frame_of(chart)
    for index, line in enumerate(lines):  # below the curves, where they begin
        column, row = divmod(index, ROWS)
        left, y = frame.x.start + 20 + 76 * column, TOP - 8 + frame.y.start - 12 - 16 * (ROWS - 1 - row)
        ET.SubElement(svg, "path", {"d": f"M{left:.1f} {y - 4:.1f}h14", "class": f"line {color_class(line.color)}"})
        text(svg, left + 20, y, line.name, anchor="start")
    return svg
