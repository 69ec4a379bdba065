"""The headline of a run that is evaluated on given completions: held-out loss, and how many pairs are ordered rightly."""

import math
from collections.abc import Mapping
from typing import Any

from upslope.report.points import Point, Verdict, instances, tone_of
from upslope.report.read import Run
from upslope.report.text import format_number, number, plural

LOSS, PAIRS, MARGIN = "eval/loss", "eval/pairs/accuracy", "eval/pairs/margin"


def given_verdict(run: Run) -> Verdict | None:
    """What the evaluations on given completions say; None where there is none. Only the pairs have an interval to judge by."""
    rows = [row for row in run.metrics if number(row.get(LOSS)) is not None]
    if not rows:
        return None
    first, last = rows[0], rows[-1]
    pairs = [point for row in (first, last) if (point := pairs_point(row)) is not None]
    points = pairs if len(pairs) == 2 else [Point(row["step"], number(row[LOSS]) or 0.0, None) for row in (first, last)]
    if len(rows) == 1:
        sentence = (
            f"Held-out loss was {format_number(first[LOSS])} at step {first['step']}, {instances(run)}; no later evaluation "
            "was recorded."
        )
        return Verdict(sentence, [], "unclear", points[0])
    sentence = (
        f"Held-out loss {_loss_course(rows)} in {plural(last['step'] - first['step'], 'step')}, {instances(run)}."
    )
    if len(pairs) == 2:
        before = "none by the reference it began as" if pairs[0].interval == (0.5, 0.5) else f"{pairs[0]} before"
        sentence += f" Of the pairs, it orders {pairs[1]} rightly, {before}."
    return Verdict(sentence, [], tone_of(*pairs) if len(pairs) == 2 else "unclear", points[0], points[1])


def pairs_point(row: Mapping[str, Any]) -> Point | None:
    """Pair accuracy with its Wilson interval; exactly 1/2 at the reference, where all margins are 0."""
    share, count = number(row.get(PAIRS)), number(row.get("eval/prompts"))
    if share is None:
        return None
    if share == 0.5 and number(row.get(MARGIN)) == 0:
        return Point(row["step"], 0.5, (0.5, 0.5))
    return Point(row["step"], share, wilson(share, count) if count else None)


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share among `count`."""
    z = 1.96
    middle, half = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, (middle - half) / (1 + z**2 / count)), min(1.0, (middle + half) / (1 + z**2 / count))


def _loss_course(rows: list[dict[str, Any]]) -> str:
    values = [number(row[LOSS]) or 0.0 for row in rows]
    before, after, best = values[0], values[-1], min(values)
    if format_number(before) == format_number(after):
        course = f"stayed at {format_number(after)}"
    else:
        course = f"{'fell' if after < before else 'rose'} from {format_number(before)} to {format_number(after)}"
    if after - best > 0.1 * (before - best) and best < before:
        course += f" (lowest at step {rows[values.index(best)]['step']}: {format_number(best)})"
    return course
