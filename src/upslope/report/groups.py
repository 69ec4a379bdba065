"""Several runs: which belong together as seeds of one configuration, and their curves and results as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from upslope.config import FREE_ON_RESUME
from upslope.report.chart import Line
from upslope.report.read import Run
from upslope.report.scale import smooth, smoothing_width
from upslope.report.text import cut
from upslope.runs.statistics import Interval, bootstrap

CURVE_POINTS = 100  # points of a curve with a bootstrap interval each
CURVE_DRAWS = 400


@dataclass(frozen=True)
class Difference:
    """The mean difference from the group `base`, run by run with equal seeds."""

    base: str
    interval: Interval


@dataclass(frozen=True)
class Result:
    """The last value of a metric in every run of a group, and their interquartile mean with its interval."""

    name: str
    values: Sequence[float]
    interval: Interval | None
    difference: Difference | None = None


def run_name(run: Run) -> str:
    """The method of a run, or the name of its folder."""
    return run.setting("method.name", "method") or cut(run.path.resolve().name, 80)


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but seed and folder, under their method and what sets them apart."""
    varying = [name for name in varying_settings(runs) if name not in ("method", "method.name")]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        apart = [f"{name}={cut(run.settings.get(name, 'unset'), 40)}" for name in varying]
        shown = ", ".join([run_name(run), *apart[:4], *(["..."] if len(apart) > 4 else [])])
        groups.setdefault(shown, []).append(run)
    return groups


def varying_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings in which the runs differ, without seeds and what leaves the training alone."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    free = FREE_ON_RESUME - {"steps"}
    return [
        name
        for name in names
        if name not in free
        and name.split(".")[-1] != "seed"
        and len({repr(run.settings.get(name)) for run in runs}) > 1
    ]


def group_line(group: Sequence[Run], column: str, name: str, color: int) -> Line | None:
    """A column of several runs: at steps that all of them recorded, the interquartile mean and its 95 % interval."""
    columns = [found for run in group if (found := dict(zip(*run.column(column), strict=True)))]
    shared = sorted(set.intersection(*map(set, columns))) if columns else []
    if not shared:
        return None
    width = smoothing_width(len(shared)) if not column.startswith("eval/") else 0.0
    values = np.array([smooth(np.array([run[step] for step in shared]), width) for run in columns])
    kept = np.unique(np.linspace(0, len(shared) - 1, min(CURVE_POINTS, len(shared))).round().astype(int))
    points = [bootstrap(values[:, index], draws=CURVE_DRAWS) for index in kept]
    y, low, high = (np.array([getattr(point, end) for point in points]) for end in ("value", "low", "high"))
    steps, marks = np.array(shared)[kept], column.startswith("eval/")
    if len(columns) == 1:
        return Line(name, steps, y, color=color, marks=marks)
    return Line(name, steps, y, low, high, color, marks=marks)


def results_of(groups: Mapping[str, Sequence[Run]], column: str) -> list[Result]:
    """The last recorded value of a metric in every run of every group; "-NAME" is a metric of which less is better."""
    results = []
    sign = -1.0 if column.startswith("-") else 1.0
    for name, group in groups.items():
        values = [sign * float(y[-1]) for run in group if len(y := run.column(column.removeprefix("-"))[1])]
        results.append(Result(name, values, bootstrap(values) if values else None))
    return results
