"""The judge: gives every completion an outcome, whatever the reward does."""

from collections.abc import Callable, Sequence
from typing import Any

from upslope.errors import UsageError
from upslope.rollout import Example, Outcome
from upslope.tasks.failures import FailureCounts
from upslope.tasks.rewards import RewardPart
from upslope.tasks.scorers import Judged, Sample
from upslope.tasks.workers import Job, Pool

SMALLEST_JOB = 8
NOT_JUDGED = (None, "was not judged")


class Judge:
    """Scores completions in worker processes that can be killed.

    parts       the verifiers, whose weighted values add up
    reference   the reference answer of an example, or None
    timeout     seconds per sample (for functions that take a batch: upslope.tasks.workers)
    workers     worker processes; None is one, or two if a function of the user's judges one sample at a time

    A value is the sum over parts of weight times the part's number; `Outcome.parts` holds the summands. A part that
    returns None does not apply and is left out; if none applies, or any part fails, the outcome is a failure.
    `Outcome.columns` holds what the parts give beside their numbers, those that do not apply included.
    """

    def __init__(
        self,
        parts: Sequence[RewardPart],
        reference: Callable[[Example], Any] = lambda example: None,
        *,
        timeout: float = 10.0,
        workers: int | None = None,
    ) -> None:
        if not timeout > 0:
            raise UsageError(f"the reward's timeout must be positive, got {timeout}.")
        if workers is not None and workers < 1:
            raise UsageError(f"the number of reward workers must be at least 1, got {workers}.")
        self.parts = tuple(parts)
        self.reference = reference
        self.step = 0
        """The trainer's step, which rewards in TRL's signature may read as `trainer_state.global_step`."""
        self.failures = FailureCounts()
        count = workers or (2 if any(part.kind == "function" for part in self.parts) else 1)
        self.pool = Pool([{**part.settings, "kind": part.kind} for part in self.parts], timeout, count)

    def start(self) -> None:
        """Start the first worker and return at once; otherwise the first `score` starts it."""
        self.pool.start()

    def check(self, columns: Sequence[str], source: str) -> None:
        """Wait until the reward is loaded. Raises UsageError if it cannot be, or reads a column that is not there."""
        for part, description in zip(self.parts, self.pool.describe(), strict=True):
            missing = [name for name in description["columns"] if name not in columns]
            if missing:
                listing = ", ".join(columns) or "none"
                raise UsageError(
                    f"the reward {part.describe()} needs {' and '.join(map(repr, missing))}, but the columns of "
                    f"{source} are: {listing}. Add the column or give the parameter a default."
                )

    def score(
        self,
        examples: Sequence[Example],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Outcome]:
        """One outcome per completion, in their order. `completion_ids` is only for rewards that read it.

        Raises UsageError only if the reward can no longer be loaded at all.
        """
        if len(examples) != len(completions):
            raise ValueError(f"{len(examples)} examples, but {len(completions)} completions")
        if not completions:
            return []
        jobs = [self.jobs_of(index, examples, completions, completion_ids) for index in range(len(self.parts))]
        self.pool.run([job for part in jobs for job in part])
        judged = [
            [one for job in part for one in zip((s or NOT_JUDGED for s in job.scores), job.columns, strict=True)]
            for part in jobs
        ]
        outcomes = [self.combine(row) for row in zip(*judged, strict=True)]
        self.failures.add(examples, completions, outcomes)
        return outcomes

    def jobs_of(
        self,
        index: int,
        examples: Sequence[Example],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None,
    ) -> list[Job]:
        """A whole batch is one job; otherwise neighbours stay together and each worker gets a share."""
        row = self.parts[index].reads_row
        samples = [
            Sample(
                prompt=example.prompt if row else "",
                completion=completion,
                data=example.data if row else {},
                reference=self.reference(example),
                completion_ids=completion_ids[position] if row and completion_ids is not None else None,
            )
            for position, (example, completion) in enumerate(zip(examples, completions, strict=True))
        ]
        whole = self.pool.describe()[index]["whole_batch"]
        share = len(samples) if whole else max(-(-len(samples) // self.pool.count), SMALLEST_JOB)
        shares = [samples[start : start + share] for start in range(0, len(samples), share)]
        return [Job(index, one, step=self.step) for one in shares]

    def combine(self, judged: Sequence[Judged]) -> Outcome:
        """One completion's outcome, from what each part says."""
        parts: dict[str, float] = {}
        columns: dict[str, float | str] = {}
        for part, ((value, failure), given) in zip(self.parts, judged, strict=True):
            twice = sorted(name for name in given if columns.get(name, given[name]) != given[name])
            if failure is None and twice:
                failure = f"gives '{twice[0]}', which another part of the reward gives differently"
            if failure is not None:
                return Outcome(None, failure=failure if len(self.parts) == 1 else f"[{part.name}] {failure}")
            if value is not None:
                parts[part.name] = part.weight * value
            columns.update(given)
        if not parts:
            return Outcome(None, failure="returned None")
        return Outcome(sum(parts.values()), parts, columns=columns)

    def take_failures(self) -> FailureCounts:
        """The failures since they were last taken."""
        taken, self.failures = self.failures, FailureCounts()
        return taken

    def take_metrics(self) -> dict[str, float]:
        """Means, since last taken, of what rewards logged beside the score: TRL's `log_metric`, other keys of a verl dict."""
        with self.pool.lock:
            taken, self.pool.metrics = self.pool.metrics, {}
        return {name: total / count for name, (total, count) in taken.items()}

    def take_notes(self) -> list[str]:
        """What there is to say about the reward since last taken: warnings, each once, and what it printed (2 kB)."""
        with self.pool.lock:
            notes, self.pool.notes = self.pool.notes, []
        printed = self.pool.output.take()
        return [*notes, *([f"the reward printed: {printed}"] if printed else [])]

    def describe(self) -> str:
        return " + ".join(part.describe() for part in self.parts)

    def close(self) -> None:
        """End the workers. They end by themselves when this process does."""
        self.pool.close()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
