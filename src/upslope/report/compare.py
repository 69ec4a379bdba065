"""The report of several runs: methods side by side, each over its seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup

from upslope.compare import METRICS
from upslope.errors import UsageError
from upslope.report.catalog import charts_of
from upslope.report.chart import color_class, svg_markup, text
from upslope.report.groups import Difference, Result, group_runs, results_of, varying_settings
from upslope.report.page import Figures, page_path, write_page
from upslope.report.read import Run, read_run
from upslope.report.scale import tick_labels, value_axis
from upslope.report.text import cut, format_duration, number, plural, visible
from upslope.report.timing import timing_of
from upslope.report.verdict import verdict
from upslope.runs.statistics import Interval

SETTINGS_LIMIT = 500


def write_compare_report(folder: Path, out: Path, *, title: str | None = None) -> Path:
    """Write the page of a folder that `upslope compare` wrote, from its results.json and the runs that this names.

    Raises:
        UsageError: there is no readable results.json, or none of its runs is there.
    """
    content = _read_results(folder / "results.json")
    groups: dict[str, list[Run]] = {visible(name): [] for name in content["methods"]}
    notes: list[str] = []
    for name, entry in content["methods"].items():
        entry = entry if isinstance(entry, dict) else {}
        for given in entry.get("runs") or ():
            try:
                groups[visible(name)].append(read_run(_locate(folder, str(given))))
            except UsageError as error:
                notes.append(f"A run of {visible(name)} is left out: {error}")
    if not any(groups.values()):
        raise UsageError(f"{folder / 'results.json'} names no run that can be read. {' '.join(notes[:1])}")
    metric = str(content.get("metric") or "eval/pass@1")
    entries = {visible(name): entry for name, entry in content["methods"].items() if isinstance(entry, dict)}
    results = [
        replace(
            result,
            interval=_interval(entries.get(result.name), "iqm") or result.interval,
            difference=_difference(entries.get(result.name)),
        )
        for result in results_of(groups, metric)
    ]
    task = cut(content.get("task") or "", 100)
    heading = title or f"{plural(len(groups), 'method')}{f' on {task}' if task else ''}"
    return write_groups_report(groups, results, out, heading, metric=metric, notes=notes)


def write_runs_report(runs: Sequence[Run], out: Path, title: str | None = None) -> Path:
    """Write the page of several runs, grouped by what sets them apart; see `write_report`."""
    groups = group_runs(runs)
    recorded = {name for run in runs for name in run.columns()}
    metric = next((name for name in METRICS if name.removeprefix("-") in recorded), "reward")
    heading = title or f"{plural(len(runs), 'run')} of {plural(len(groups), 'configuration')}"
    return write_groups_report(groups, results_of(groups, metric), out, heading, metric=metric, notes=[])


def write_groups_report(
    groups: Mapping[str, Sequence[Run]],
    results: Sequence[Result],
    out: Path,
    title: str,
    *,
    metric: str,
    notes: Sequence[str],
) -> Path:
    """Write the page of named groups of runs and their results in `metric`."""
    figures, out = Figures(), page_path(out)
    curves = figures.place(charts_of(groups))
    runs = [run for group in groups.values() for run in group]
    varying = varying_settings(runs)
    apart = varying if varying != ["method"] else []  # the names of the groups say that much
    common = {name: value for name, value in runs[0].settings.items() if name not in varying}
    order = list(groups)
    results = sorted(results, key=lambda result: -result.interval.value if result.interval else float("inf"))
    scale, images = draw_intervals(results, order)
    return write_page(
        out,
        "compare.html",
        title=title,
        metric=visible(metric),
        results=[
            {"result": result, "color": color_class(order.index(result.name)), "range": image}
            for result, image in zip(results, images, strict=True)
        ],
        scale=scale,
        base=next((result.difference.base for result in results if result.difference), ""),
        seeds=max(len(group) for group in groups.values()),
        curves=curves,
        legend_entries=[(name, color_class(index)) for index, name in enumerate(order)],
        runs=[_row(name, run, out) for name, group in groups.items() for run in group],
        varying=[(name, [(label, _values(group, name)) for label, group in groups.items()]) for name in apart],
        common=list(common.items())[:SETTINGS_LIMIT],
        notes=[*notes, *_shared_notes(runs)],
        data=figures.data,
    )


def draw_intervals(results: Sequence[Result], order: Sequence[str]) -> tuple[Markup, list[Markup]]:
    """The labels of an axis, and for each result an SVG on it: interval, estimate, and every run as a dot."""
    ends = [bound for r in results if r.interval for bound in (r.interval.low, r.interval.high)]
    numbers = np.array([value for result in results for value in result.values] + ends)
    if not len(numbers):
        return Markup(), [Markup()] * len(results)
    axis = value_axis(numbers, 14, 226)
    images = []
    for result in results:
        svg = ET.Element("svg", {"viewBox": "0 0 240 22", "class": "chart range", "aria-hidden": "true"})
        color = color_class(order.index(result.name))
        ET.SubElement(svg, "path", {"d": "M14 11H226", "class": "grid"})
        for value in result.values:
            at = f"{float(axis.place(value)):.1f}"
            ET.SubElement(svg, "circle", {"cx": at, "cy": "11", "r": "3", "class": f"dot {color}"})
        if result.interval:
            low, middle, high = axis.place(np.array([result.interval.low, result.interval.value, result.interval.high]))
            ET.SubElement(svg, "path", {"d": f"M{low:.1f} 11H{high:.1f}", "class": f"line {color}"})
            ET.SubElement(svg, "path", {"d": f"M{middle:.1f} 4V18", "class": f"line {color}"})
        images.append(svg_markup(svg))
    scale = ET.Element("svg", {"viewBox": "0 0 240 22", "class": "chart range", "aria-hidden": "true"})
    ticks = axis.ticks(4)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        text(scale, float(axis.place(tick)), 15, label)
    return svg_markup(scale), images


def _row(name: str, run: Run, out: Path) -> dict[str, Any]:
    """One line of the table of runs; the link is relative, so that the folders can move together."""
    timing = timing_of(run)
    own = run.path / "report.html"
    link = ""
    if own.is_file() and own.resolve() != out.resolve():
        try:
            inner = own.resolve().relative_to(out.resolve().parent)
            link = "./" + quote(inner.as_posix(), errors="replace")
        except ValueError:
            pass
    return {
        "group": name,
        "folder": cut(run.path.name, 80),
        "link": link,
        "seed": run.setting("seed", "trainer.seed"),
        "steps": run.steps,
        "verdict": verdict(run),
        "time": format_duration(timing.total) if timing else "",
        "state": run.state,
    }


def _shared_notes(runs: Sequence[Run]) -> list[str]:
    """What could not be read, with the runs that it happened to: by name if they are few."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            names.setdefault(note, []).append(visible(f"{run.path.parent.name}/{run.path.name}"))
    return [
        f"{', '.join(where) if len(where) <= 3 else plural(len(where), 'run')}: {note}" for note, where in names.items()
    ]


def _values(group: Sequence[Run], name: str) -> str:
    return ", ".join(dict.fromkeys(cut(run.settings.get(name, "unset"), 100) for run in group))


def _read_results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {error}. Give a folder that `upslope compare` wrote.") from error
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict):
        raise UsageError(f'{path} has no "methods". Give a folder that `upslope compare` wrote.')
    return content


def _locate(folder: Path, given: str) -> Path:
    """A run's folder, given relative to `folder` or, where all was moved since, by the longest tail that lies in it."""
    parts = Path(given).parts
    tails = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    return next((path for path in tails if path.is_dir()), folder / given)


def _interval(entry: Any, name: str) -> Interval | None:
    if not isinstance(entry, dict):
        return None
    value, low, high = (number(entry.get(end)) for end in (name, "low", "high"))
    return None if value is None or low is None or high is None else Interval(value, low, high)


def _difference(entry: Any) -> Difference | None:
    found = entry.get("difference") if isinstance(entry, dict) else None
    interval = _interval(found, "mean")
    if not isinstance(found, dict) or interval is None:
        return None
    return Difference(visible(found.get("from", "")), interval)
