"""Where the time of a run went: totals, shares, and their course over the steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import numpy as np

from upslope.report.chart import HEIGHT, WIDTH, color_class, text
from upslope.report.read import Run
from upslope.report.scale import Axis, tick_labels
from upslope.report.text import format_duration, format_share, number, plural

KNOWN = ("time/rollout", "time/reward", "time/update", "time/eval")
WHOLE = ("time/step", "time/total")  # the step's whole time, of which the others are parts
BINS = 120


@dataclass(frozen=True)
class Phase:
    """One kind of work: its total seconds, its share of the run, and its CSS colour classes."""

    name: str
    seconds: float
    share: float
    color: str

    @property
    def duration(self) -> str:
        return format_duration(self.seconds)

    @property
    def percent(self) -> str:
        return format_share(self.share)


@dataclass(frozen=True)
class Timing:
    """Seconds per step [S] and phase [S, P]."""

    steps: np.ndarray
    seconds: np.ndarray
    phases: Sequence[Phase]

    @property
    def total(self) -> float:
        return float(self.seconds.sum())


def timing_of(run: Run) -> Timing | None:
    """The breakdown, or None if the run recorded no times. What a step's whole time has beyond its parts is "other"."""
    columns = [name for name in run.columns() if name.startswith("time/") and name not in WHOLE]
    columns.sort(key=lambda name: KNOWN.index(name) if name in KNOWN else len(KNOWN))
    rows = [row for row in run.metrics if any(number(row.get(name)) is not None for name in (*columns, *WHOLE))]
    if not rows:
        return None
    seconds = np.array([[max(number(row.get(name)) or 0.0, 0.0) for name in columns] for row in rows])
    seconds = seconds.reshape(len(rows), len(columns))
    whole = np.array([next((w for name in WHOLE if (w := number(row.get(name))) is not None), 0.0) for row in rows])
    names = [name.removeprefix("time/") for name in columns]
    rest = np.clip(whole - seconds.sum(1), 0, None)
    if rest.any():
        seconds, names = np.column_stack([seconds, rest]), [*names, "other"]
    total = seconds.sum()
    if not total > 0:
        return None
    sums = seconds.sum(0)
    phases = [
        Phase(name, float(spent), float(spent / total), color_class(6 if name == "other" else index))
        for index, (name, spent) in enumerate(zip(names, sums, strict=True))
    ]
    return Timing(np.array([row["step"] for row in rows], dtype=float), seconds, phases)


def draw_timing(timing: Timing) -> ET.Element:
    """Stacked shares of every phase over the steps, as an <svg> element; long runs in BINS stretches."""
    svg = ET.Element("svg", {"viewBox": f"0 0 {WIDTH:g} {HEIGHT:g}", "class": "chart", "role": "img"})
    parts = ", ".join(f"{phase.name} {phase.percent}" for phase in timing.phases)
    svg.set("aria-label", f"Share of time over {plural(len(timing.steps), 'step')}: {parts}")
    x, bottom, top = Axis(timing.steps[0] - 0.5, timing.steps[-1] + 0.5, 52, WIDTH - 14), HEIGHT - 34, 10.0
    bins = np.array_split(np.arange(len(timing.steps)), min(BINS, len(timing.steps)))
    sums = np.array([timing.seconds[rows].sum(0) for rows in bins])
    shares = np.cumsum(sums / np.maximum(sums.sum(1, keepdims=True), 1e-12), axis=1)
    edges = np.array([*(float(x.place(timing.steps[rows[0]] - 0.5)) for rows in bins), x.end])
    previous = np.zeros(len(bins))
    for phase, upper in zip(timing.phases, shares.T, strict=True):
        shape = "M" + "L".join(_steps(edges, bottom - (bottom - top) * upper))
        shape += "L" + "L".join(reversed(_steps(edges, bottom - (bottom - top) * previous))) + "Z"
        ET.SubElement(svg, "path", {"d": shape, "class": f"area {phase.color}"})
        previous = upper
    for share in (0.0, 0.5, 1.0):
        text(svg, 44, bottom - (bottom - top) * share + 4, f"{share:.0%}", anchor="end")
    ticks = [tick for tick in x.ticks(5) if float(tick).is_integer()]
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        text(svg, float(x.place(tick)), bottom + 17, label)
    text(svg, (x.start + x.end) / 2, HEIGHT - 3, "step", "label")
    return svg


def _steps(edges: np.ndarray, heights: np.ndarray) -> list[str]:
    """Corners of a staircase: each height over its stretch."""
    return [f"{x:.1f} {y:.1f}" for i, y in enumerate(heights) for x in (edges[i], edges[i + 1])]
