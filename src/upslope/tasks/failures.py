"""Failed rewards, counted by reason, with one example of each: what the log and the report say about them."""

from collections.abc import Sequence
from dataclasses import dataclass

from upslope.rollout import Example, Outcome
from upslope.tasks.scorers import excerpt


@dataclass
class Failure:
    """`count` completions failed for this reason; `detail`, `key` and `completion` are of the first of them."""

    reason: str
    count: int
    detail: str
    key: str
    completion: str

    def __str__(self) -> str:
        return f"{self.count} x {self.reason} (first: {self.detail}; prompt {self.key}, completion {self.completion})"


class FailureCounts:
    """Adds up until it is taken. A reason is the failure's text up to the first colon, so that messages with changing
    values in them ("ValueError at my.py:3: 'abc'") count together."""

    def __init__(self) -> None:
        self.judged = 0
        self.reasons: dict[str, Failure] = {}

    def add(self, examples: Sequence[Example], completions: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        self.judged += len(outcomes)
        for example, completion, outcome in zip(examples, completions, outcomes, strict=True):
            if outcome.failure is None:
                continue
            reason = outcome.failure.split(": ")[0]
            known = self.reasons.get(reason)
            if known is not None:
                known.count += 1
            else:
                self.reasons[reason] = Failure(reason, 1, outcome.failure, example.key, excerpt(completion))

    @property
    def failed(self) -> int:
        return sum(failure.count for failure in self.reasons.values())

    def most_common(self) -> list[Failure]:
        return sorted(self.reasons.values(), key=lambda failure: -failure.count)

    def __str__(self) -> str:
        if not self.reasons:
            return f"no failed rewards among {self.judged}"
        lines = [f"{self.failed} of {self.judged} rewards failed:", *(f"  {one}" for one in self.most_common())]
        return "\n".join(lines)
