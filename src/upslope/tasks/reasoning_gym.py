"""The tasks of the reasoning-gym package: instances made by a program, each with its own scorer.

An instance belongs to evaluation if its question is held out (upslope.tasks.holdout), whatever the seed, and to training
otherwise, so the two can never share a question.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, overload

from upslope.errors import UsageError
from upslope.rollout import Example
from upslope.tasks.base import Task
from upslope.tasks.holdout import is_held_out
from upslope.tasks.judge import Judge
from upslope.tasks.procedural import HASH_DEPENDENT, make_dataset, told
from upslope.tasks.rewards import RewardPart, RewardSpec, parse_reward

PROBE_STEP = 1_000_003
PROBES = 300
PATIENCE = 500
CACHE = 20_000


def open_procedural(
    name: str,
    settings: Mapping[str, Any],
    seed: int,
    reward: RewardSpec | None,
    timeout: float,
    workers: int | None,
    sizes: tuple[int, int],
) -> Task:
    """The named dataset as a task; `sizes` of its train and eval splits.

    Raises UsageError for an unknown name, a setting that the dataset lacks, or a bad value.
    """
    dataset = make_dataset(name, settings, seed)
    stream = Stream(name, dataset, dataset.config.size)
    if not any(stream.at(position) for position in range(5)):
        raise UsageError(f"task '{name}' cannot make an instance with {dict(settings)}: {stream.problem}.")
    own = RewardPart(name, "reasoning_gym", settings={"name": name, "settings": dict(settings)})
    parts = parse_reward(reward, own) if reward is not None else (own,)
    judge = Judge(parts, lambda example: example.data.get("answer"), timeout=timeout, workers=workers)
    judge.start()
    try:
        if reward is not None:
            judge.check(("question", "answer", "metadata"), f"task '{name}'")
    except BaseException:
        judge.close()
        raise
    notes = [f"{name}: reasoning-gym, instances made from seed {seed}; a tenth of the questions is held out"]
    if name in HASH_DEPENDENT:
        notes.append(f"{name} makes other instances in each process; set PYTHONHASHSEED=0 for the same ones every time")
    splits = {"train": TrainSplit(stream, sizes[0]), "eval": EvalSplit(stream, sizes[1], notes)}
    return Task(name, splits, judge, dict(settings), notes)


class Stream:
    """Examples by their position in the long sequence of a dataset, kept once made."""

    def __init__(self, name: str, dataset: Any, length: int) -> None:
        self.name, self.dataset, self.length = name, dataset, length
        self.made: dict[int, Example | None] = {}
        self.problem = ""

    def at(self, position: int) -> Example | None:
        """The example, or None where the generator gives up on this position (`problem` says why)."""
        if position not in self.made:
            if len(self.made) >= CACHE:
                self.made.pop(next(iter(self.made)))
            self.made[position] = self.make(position)
        return self.made[position]

    def make(self, position: int) -> Example | None:
        try:
            entry = self.dataset[position]
        except Exception as error:
            self.problem = f"{type(error).__name__}: {told(error)}"
            self.dataset.size = self.length  # word_ladder ends itself at the first position where it finds no pair
            return None
        question = entry["question"]
        digest = hashlib.sha256(question.encode("utf-8")).hexdigest()
        return Example(f"{self.name}-{digest[:16]}", question, entry)


class Split(Sequence[Example]):
    """A sequence over a stream of at most `size` examples, made when they are asked for; a slice is a list."""

    def __init__(self, stream: Stream, size: int) -> None:
        self.stream, self.size = stream, size

    def example(self, index: int) -> Example:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            from_end = index.stop is None or min(index.stop, index.start or 0, index.step or 1) < 0
            wanted = range(*index.indices(len(self) if from_end else self.size))
            return [self.example(one) for one in wanted if self.reaches(one)]
        index += len(self) if index < 0 else 0
        if not 0 <= index < self.size or not self.reaches(index):
            raise IndexError(f"no example {index} among {len(self)} of task '{self.stream.name}'")
        return self.example(index)

    def reaches(self, index: int) -> bool:
        """Whether there is an example at this place."""
        return True


class TrainSplit(Split):
    """The example at a position, or the next of a fixed sequence of positions whose question is not held out.

    Random access costs one or two instances. Questions may repeat where the task has few.
    """

    def __len__(self) -> int:
        return self.size

    def example(self, index: int) -> Example:
        for probe in range(PROBES):
            example = self.stream.at((index + probe * PROBE_STEP) % self.stream.length)
            if example is not None and not is_held_out(str(example.prompt)):
                return example
        problem = self.stream.problem or "all its questions are held out"
        raise UsageError(f"task '{self.stream.name}' has too few different questions for training: {problem}.")


class EvalSplit(Split):
    """Different held-out questions, in the order of the stream.

    Only as many are made as are asked for. Where 500 instances in a row bring nothing new, the task has no more, and
    the split is that much shorter; `notes` is then told so.
    """

    def __init__(self, stream: Stream, size: int, notes: list[str]) -> None:
        super().__init__(stream, size)
        self.notes = notes
        self.found: set[str] = set()
        self.order: list[Example] = []
        self.position = self.idle = 0

    def __len__(self) -> int:
        self.fill(self.size)
        return len(self.order)

    def example(self, index: int) -> Example:
        return self.order[index]

    def reaches(self, index: int) -> bool:
        self.fill(index + 1)
        return index < len(self.order)

    def fill(self, count: int) -> None:
        while len(self.order) < min(count, self.size):
            if self.idle >= PATIENCE or self.position >= self.stream.length:
                self.size = len(self.order)
                self.notes.append(f"{self.stream.name} has few questions: only {self.size} for evaluation")
                return
            example = self.stream.at(self.position)
            self.position += 1
            self.idle += 1
            if example is not None and is_held_out(str(example.prompt)) and example.key not in self.found:
                self.found.add(example.key)
                self.order.append(example)
                self.idle = 0
