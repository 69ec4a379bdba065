"""The report of one run."""

from collections import Counter
from pathlib import Path
from typing import Any

from upslope.report.catalog import charts_of
from upslope.report.chart import svg_markup
from upslope.report.groups import run_name
from upslope.report.page import Figures, write_page
from upslope.report.read import Event, Run
from upslope.report.samples import Sample, chosen_pairs, pairs
from upslope.report.text import cut, format_duration, format_number
from upslope.report.timing import draw_timing, timing_of
from upslope.report.verdict import share_text, verdict

SETTINGS_LIMIT = 500
EVENTS_LIMIT = 100


def write_single_report(run: Run, out: Path, title: str | None = None) -> Path:
    """Write the page of one run; see `write_report`."""
    figures = Figures()
    curves = figures.place(charts_of({run_name(run): [run]}))
    timing = timing_of(run)
    compared = pairs(run.samples)
    listed = run.samples.listed()
    rewards = [sample.reward for sample in listed if sample.reward is not None]
    task = run.setting("task.name", "task") or Path(run.setting("data")).name or "an unnamed task"
    return write_page(
        out,
        "single.html",
        title=title or f"{run_name(run)} on {task}",
        run=run,
        verdict=verdict(run),
        facts=_facts(run, timing.total if timing else 0.0),
        curves=curves,
        timing=timing,
        timing_svg=svg_markup(draw_timing(timing)) if timing else None,
        pairs=chosen_pairs(compared),
        changes=Counter(pair.change for pair in compared),
        compared=len(compared),
        listed=[(sample, _level(sample, min(rewards, default=0), max(rewards, default=0))) for sample in listed],
        rewarded=bool(rewards) or bool(run.samples.failures),
        reward_range=(min(rewards, default=0), max(rewards, default=0)),
        texts=not _plays(run),
        failures=sorted(run.samples.failures.items(), key=lambda item: -item[1][0]),
        events=_grouped(run.events),
        nonfinite=_nonfinite(run),
        settings=list(run.settings.items())[:SETTINGS_LIMIT],
        data=figures.data,
    )


def _facts(run: Run, seconds: float) -> list[tuple[str, str]]:
    """The line under the title: model, seed, steps, duration, tokens or actions, how it ended."""
    planned = run.setting("steps", "trainer.steps", "train.steps")
    tokens, played = run.column("tokens")[1].sum(), run.column("env_steps")[1]
    facts = [
        ("model", run.setting("model.name", "model", "policy.model")),
        ("teacher", run.setting("teacher")),
        ("seed", run.setting("seed", "trainer.seed")),
        ("steps", f"{run.steps:,} of {planned}" if planned and planned != str(run.steps) else f"{run.steps:,}"),
        ("time", format_duration(seconds) if seconds else ""),
        ("tokens", f"{tokens:,.0f}" if tokens else ""),
        ("actions", f"{played[-1]:,.0f}" if len(played) else ""),
        ("groups without variance", share_text(run, "groups/zero_variance")),
        ("state", run.state),
    ]
    return [(name, value) for name, value in facts if value]


def _plays(run: Run) -> bool:
    """Whether a policy acts in an environment or learned from a log of one, so that there are no texts to show."""
    numbers = ("env_steps", "return", "eval/return", "critic_loss")
    return not run.samples.total and any(len(run.column(name)[1]) for name in numbers)


def _level(sample: Sample, lowest: float, highest: float) -> str:
    """Where a reward lies among those listed: for its colour and for the filter."""
    if sample.reward is None and not sample.failure:
        return "unjudged"
    if sample.failure or sample.reward is None:
        return "failed"
    if sample.reward == highest and highest > lowest:
        return "high"
    return "low" if sample.reward == lowest else "middle"


def _grouped(events: list[Event]) -> list[dict[str, Any]]:
    """Events by kind: how many, at which steps, and the first message as an example."""
    kinds: dict[str, list[Event]] = {}
    for event in events:
        kinds.setdefault(event.kind, []).append(event)
    return [
        {
            "kind": kind,
            "count": sum(event.count for event in members),
            "steps": _span([event.step for event in members if event.step is not None]),
            "message": members[0].message,
        }
        for kind, members in list(kinds.items())[:EVENTS_LIMIT]
    ]


def _span(steps: list[int]) -> str:
    distinct = sorted(set(steps))
    if len(distinct) <= 3:
        return ", ".join(f"{step:,}" for step in distinct)
    return f"{len(distinct):,} steps, {distinct[0]:,} to {distinct[-1]:,}"


def _nonfinite(run: Run) -> list[tuple[str, int, str]]:
    """Metrics that were not finite: name, in how many steps, what they were first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for row in run.metrics:
        marks = row.get("nonfinite")
        for name, value in marks.items() if isinstance(marks, dict) else ():
            found.setdefault(str(name), []).append((row["step"], str(value)))
    return [
        (cut(name, 100), len(places), f"{cut(places[0][1], 20)} at step {format_number(places[0][0])}")
        for name, places in found.items()
    ]
