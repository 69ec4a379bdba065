"""The headline of a run whose answers nobody judges: held-out loss of given completions, and how many pairs are ordered rightly;
or how far the policy is from its teacher.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from upslope.report.points import Point, Verdict, instances, tone_of
from upslope.report.read import Run
from upslope.report.text import format_number, number, plural

LOSS, PAIRS, MARGIN = "eval/loss", "eval/pairs/accuracy", "eval/pairs/margin"
TEACHER_KL, GAP = "eval/teacher/kl", "eval/teacher/gap"
UNJUDGED = "No reward is measured, so whether answers became right more often is not known."


def given_verdict(run: Run) -> Verdict | None:
    """What the evaluations on given completions say; None where there is none. Pairs, where there are any, are what is judged."""
    rows = [row for row in run.metrics if number(row.get(LOSS)) is not None]
    if not rows:
        return None
    if any(number(row.get(GAP)) is not None for row in rows):  # of a policy gradient, whose loss says nothing
        return falling(run, GAP, "distance from the teacher's log-probs")
    pairs = [point for row in (rows[0], rows[-1]) if (point := pairs_point(row)) is not None]
    found = falling(run, LOSS, "loss")
    if len(rows) == 1 or len(pairs) < 2:
        return replace(found, before=pairs[0]) if pairs else found
    before = "none by the reference it began as" if pairs[0].interval == (0.5, 0.5) else f"{pairs[0]} before"
    sentence = f"{found.sentence} Of the pairs, it orders {pairs[1]} rightly, {before}."
    return Verdict(sentence, [], tone_of(*pairs), *pairs)


def teacher_verdict(run: Run) -> Verdict | None:
    """How near the policy came to its teacher, where nobody judged its answers; None where that was not evaluated."""
    if all(number(row.get(TEACHER_KL)) is None for row in run.metrics):
        return None
    found = falling(run, TEACHER_KL, "KL to the teacher")
    return replace(found, sentence=f"{found.sentence} {UNJUDGED}")


def falling(run: Run, metric: str, name: str) -> Verdict:
    """What the evaluations say of a metric of which less is better: a fall counts if the two intervals do not overlap."""
    points = [
        FinePoint(row["step"], value, interval_of(row, metric))
        for row in run.metrics
        if (value := number(row.get(metric))) is not None
    ]
    first, last, best = points[0], points[-1], min(points, key=lambda point: point.value)
    if len(points) == 1:
        told = f"Held-out {name} was {first} at step {first.step}, {instances(run)}; no later evaluation was recorded."
        return Verdict(told, [], "unclear", first)
    overlap = tone_of(last, first) == "unclear" and first.interval is not None and last.interval is not None
    if format_number(first.value) == format_number(last.value):
        course, overlap = f"stayed at {last}", False
    else:
        course = f"{'fell' if last.value < first.value else 'rose'} from {first} to {last}"
    if last.value - best.value > 0.1 * (first.value - best.value) and best.value < first.value:
        course += f" (lowest at step {best.step}: {best})"
    where = f"in {plural(last.step - first.step, 'step')}, {instances(run)}"
    told = f"Held-out {name} {course} {where}{'; the intervals overlap' if overlap else ''}."
    return Verdict(told, [], tone_of(last, first), first, last)


class FinePoint(Point):
    """A point whose number is no share: three significant digits."""

    def __str__(self) -> str:
        ends = "" if self.interval is None else f" [{', '.join(map(format_number, self.interval))}]"
        return f"{format_number(self.value)}{ends}"


def interval_of(row: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """The recorded interval of a metric, _low and _high; None where it has none."""
    low, high = number(row.get(f"{metric}_low")), number(row.get(f"{metric}_high"))
    return None if low is None or high is None else (low, high)


def pairs_point(row: Mapping[str, Any]) -> Point | None:
    """Pair accuracy with its Wilson interval; exactly 1/2 at the reference, where all margins are 0."""
    share, count = number(row.get(PAIRS)), number(row.get("eval/prompts"))
    if share is None:
        return None
    if abs(share - 0.5) < 1e-6 and number(row.get(MARGIN)) == 0:  # float32: a mean of halves need not be one half
        return Point(row["step"], 0.5, (0.5, 0.5))
    return Point(row["step"], share, wilson(share, count) if count else None)


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share among `count`."""
    z = 1.96
    middle, half = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, (middle - half) / (1 + z**2 / count)), min(1.0, (middle + half) / (1 + z**2 / count))
