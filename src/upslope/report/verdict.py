"""The headline: what training did to held-out pass@1 (to the held-out reward, where nothing says what is solved), in a sentence,
and why where it did not help.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from upslope.report.given import given_verdict, interval_of, teacher_verdict
from upslope.report.points import INSTANCES, Point, Verdict, instances, tone_of
from upslope.report.read import Run
from upslope.report.text import format_number, format_share, number, plural

PASS = "eval/pass@1"
NAMES = {PASS: "pass@1", "eval/return": "return", "eval/reward": "reward"}


def verdict(run: Run) -> Verdict:
    """What the evaluations say, and nothing that they do not: a rise counts if the two intervals do not overlap."""
    metric = next((name for name in NAMES if evaluations(run, name)), PASS)
    what, points = f"Held-out {NAMES[metric]}", evaluations(run, metric)
    if not points and (found := given_verdict(run) or teacher_verdict(run)) is not None:
        return replace(found, reasons=[] if found.tone == "better" else reasons(run))
    if not points:
        return Verdict(
            f"No held-out evaluation was recorded. {_training_sentence(run)}".strip(), reasons(run), "unclear"
        )
    before, after = points[0], points[-1]
    if len(points) == 1:
        sentence = f"{what} was {before} at step {before.step}, {instances(run)}; no later evaluation was recorded."
        return Verdict(sentence, reasons(run), "unclear", before)
    tone = tone_of(before, after)
    sentence = _sentence(what, before, after, tone, instances(run))
    best = max(points, key=lambda point: point.value)
    if tone_of(after, best) == "better":
        sentence += f" It was highest at step {best.step}: {best}."
    if tone == "better":
        return Verdict(sentence, [], tone, before, after)
    why = reasons(run, before if metric == PASS else None)
    return Verdict(f"{sentence} {_training_sentence(run)}".strip(), why, tone, before, after)


def evaluations(run: Run, metric: str = PASS) -> list[Point]:
    """Every recorded value of a held-out metric, in the order of the steps."""
    return [
        Point(row["step"], value, _interval(row, metric))
        for row in run.metrics
        if (value := number(row.get(metric))) is not None
    ]


def _interval(row: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """The recorded interval, or of pass@1, where all n prompts scored alike, and it has no width, what n such prompts exclude:
    with 95 % confidence, a share that lies more than 3 / n away (the rule of three).
    """
    recorded = interval_of(row, metric)
    if recorded is None or metric != PASS:
        return recorded
    low, high = recorded
    count = next((count for name in INSTANCES if (count := number(row.get(name)))), None)
    slack = 3 / count if low == high and count else 0.0
    return max(low - slack, min(low, 0.0)), min(high + slack, max(high, 1.0))


def reasons(run: Run, before: Point | None = None) -> list[str]:
    """What in the records explains that pass@1 did not rise."""
    found = []
    trained = [row for row in run.metrics if row["step"] > 0]
    if before is not None and before.value >= 0.95:
        found.append("There was little left to learn: pass@1 was already high before training.")
    flat, judged = _count(trained, "groups/zero_variance", 0.9995)
    if flat:
        found.append(
            f"No group had any reward variance in {flat} of {plural(judged, 'step')}: where all completions of a prompt "
            "earn the same, there is nothing to prefer. Try easier (or harder) prompts, more rollouts per prompt, "
            "a higher temperature, or a reward with finer grades."
        )
    truncated, counted = _count(trained, "length/truncated", 0.5)
    if truncated:
        found.append(
            f"More than half of the completions reached the length limit in {truncated} of {plural(counted, 'step')}: "
            "raise the maximum number of tokens."
        )
    failed = int(sum(value for row in trained if (value := number(row.get("rewards/failed"))) is not None))
    if failed:
        found.append(
            f"The verifier failed on {plural(failed, 'completion')}, which carried no signal; failures are below."
        )
    rewards = [value for row in trained if (value := number(row.get("reward"))) is not None]
    if rewards and not any(rewards):
        found.append("The reward was 0 in every step.")
    found += [f"{event.kind}: {event.message}" for event in run.events if event.kind == "step skipped"][:3]
    if run.state in ("failed", "stopped"):
        found.append(f"The run {run.state} early{f': {run.message}' if run.message else '.'}")
    return found


def _sentence(what: str, before: Point, after: Point, tone: str, instances: str) -> str:
    where = f"in {plural(after.step - before.step, 'step')}"
    if tone == "better":
        return f"{what} rose from {before} to {after} {where}, {instances}."
    if tone == "worse":
        return f"{what} fell from {before} to {after} {where}, {instances}."
    if before.interval is None or after.interval is None:
        return f"{what} went from {before} to {after} {where}, {instances}, with no interval to judge this by."
    return (
        f"{what} did not change measurably {where}, {instances}: {before} before, {after} after; the intervals overlap."
    )


def _training_sentence(run: Run) -> str:
    """The course of the reward in training, or of the loss where nothing was rewarded."""
    trained = [row for row in run.metrics if row["step"] > 0]
    recorded = {key for row in trained for key in row if number(row.get(key)) is not None}
    name = next((name for name in ("return", "reward") if name in recorded), "loss")
    values = [value for row in trained if (value := number(row.get(name))) is not None]
    if not values:
        return ""
    part = max(1, len(values) // 10)
    first, last = sum(values[:part]) / part, sum(values[-part:]) / part
    which = "step" if part == 1 else f"{part} steps"
    return (
        f"Mean training {name}: {format_number(first)} in the first {which}, {format_number(last)} in the last {which}."
    )


def _count(rows: Sequence[dict], column: str, at_least: float) -> tuple[int, int]:
    values = [value for row in rows if (value := number(row.get(column))) is not None]
    return sum(value >= at_least for value in values), len(values)


def share_text(run: Run, column: str) -> str:
    """The mean of a share over the run, as a percentage; empty if it was not recorded."""
    values = run.column(column)[1]
    return format_share(float(values.mean())) if len(values) else ""
