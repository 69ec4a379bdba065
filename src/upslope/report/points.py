"""What a verdict is made of: evaluations with their intervals, and what two of them say together."""

from collections.abc import Sequence
from dataclasses import dataclass

from upslope.report.read import Run
from upslope.report.text import number, plural

INSTANCES = ("eval/prompts", "eval/examples", "eval/episodes")  # metrics that count held-out instances


@dataclass(frozen=True)
class Point:
    """A held-out share or loss at a step, with the interval to judge it by, where one was recorded."""

    step: int
    value: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"


@dataclass(frozen=True)
class Verdict:
    """A sentence, the reasons that the run's own records give for it, and "better", "worse" or "unclear"."""

    sentence: str
    reasons: Sequence[str]
    tone: str
    before: Point | None = None
    after: Point | None = None


def tone_of(before: Point, after: Point) -> str:
    """Better or worse only where the intervals do not overlap."""
    if before.interval is None or after.interval is None:
        return "unclear"
    if after.interval[0] > before.interval[1]:
        return "better"
    return "worse" if after.interval[1] < before.interval[0] else "unclear"


def instances(run: Run) -> str:
    """On how many held-out instances a run was evaluated, in words."""
    played = [value for row in run.metrics if (value := number(row.get("eval/episodes")))]
    if played:
        return f"over {plural(int(played[0]), 'episode')} that nothing is learned from"
    counts = [value for row in run.metrics for name in INSTANCES if (value := number(row.get(name)))]
    return f"on {plural(int(counts[0]), 'instance')} never trained on" if counts else "on instances never trained on"
