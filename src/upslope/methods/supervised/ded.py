"""DED: a few demonstrations, of prompts that the model does not solve yet, as different from each other as can be.

    teachers    each writes demonstrations of the same prompts; the better teacher is the one whose student scores higher
    prompts     kept where the student's pass rate is below `pass_rate_below`
    traces      right ones only; of M of a prompt P = `traces` are kept: the first, then always the one whose smallest edit
                distance to those kept is largest
    loss        mean over the batch's tokens of -logp                                     [R, T]

Differs from sft:  which of the data's demonstrations are trained on; the loss is sft's.
Limits:  pass_rate_below above 1 and traces=0 (all of them): sft on the right demonstrations. traces=1: one of each prompt.
Expects:  demonstrations with the column pass_rate, the student's share of right answers to the prompt, which
    `upslope diagnose pass-rates MODEL` measures and adds; several rows per prompt; where they have a score or reward, at least
    `correct_at` is right. Choose the teacher before, by the students that short runs make:
    `upslope compare sft:data=teacher_a.jsonl sft:data=teacher_b.jsonl --task NAME --steps 30 --out runs/smoke`. Edit distances
    cost the product of two lengths, for every pair that is compared; they are in words unless unit="character".
Source:  arXiv:2508.09883. No code was found, and a public reading note of the paper was read rather than the paper.
Deviations:  the thresholds are not stated there: 0.75 and 2 are ours (the authors end with about 800 demonstrations). Which trace
    the selection begins with is not stated, either: here the first in the file. Without scores all traces count as right.
Not this:  a curriculum over pass rates while training: the selection is made once, before the first step. The authors' diagnostic
    of a teacher, the mean entropy of its tokens (lower is better), is not used for choosing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from upslope.errors import UsageError
from upslope.methods.supervised.sft import sft
from upslope.parts.data import FromData
from upslope.recipe import Recipe
from upslope.registry import method
from upslope.rollout import Example

PASS_RATE = "pass_rate"


@dataclass(frozen=True)
class SelectedDemonstrations(FromData):
    """A `rollout` part: the demonstrations of the data that `select` keeps, as above.

    pass_rate_below   prompts with a lower pass rate are kept; above 1 all are, and the column is not read
    traces            kept per prompt, at most; 0: all
    correct_at        least score of a right one, where the data has scores
    unit              of the edit distance
    """

    kind: Literal["pairs", "labels", "demonstrations"] = "demonstrations"
    pass_rate_below: float = 0.75
    traces: int = 2
    correct_at: float = 1.0
    unit: Literal["word", "character"] = "word"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "demonstrations" or self.traces < 0 or not self.pass_rate_below > 0:
            raise UsageError(
                f"SelectedDemonstrations(kind={self.kind!r}, traces={self.traces}, pass_rate_below={self.pass_rate_below:g}): it "
                "selects demonstrations, traces is at least 0 (all), and pass_rate_below is above 0."
            )

    def select(self, examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
        """The demonstrations that are trained on, in the data's order, and what was left out."""
        by_prompt: dict[str, list[Example]] = {}
        for example in examples:
            by_prompt.setdefault(_identity(example.prompt), []).append(example)
        kept: list[Example] = []
        easy = wrong = alike = 0
        for group in by_prompt.values():
            if self.pass_rate_below <= 1 and _pass_rate(group[0]) >= self.pass_rate_below:
                easy += len(group)
                continue
            right = [example for example in group if self._is_right(example)]
            chosen = farthest([self._units(example) for example in right], self.traces or len(right), edit_distance)
            kept += [right[index] for index in sorted(chosen)]
            wrong += len(group) - len(right)
            alike += len(right) - len(chosen)
        note = (
            f"{len(kept)} of {len(examples)} demonstrations are trained on; left out: {easy} of prompts that are solved too often, "
            f"{wrong} wrong, {alike} too like others of their prompt"
        )
        if not kept:
            raise UsageError(
                f"no demonstration is left of {len(examples)}: {easy} of prompts with a pass rate of {self.pass_rate_below:g} or "
                f"more, {wrong} wrong ones. Raise pass_rate_below, lower correct_at, or give other demonstrations."
            )
        order = {id(example): place for place, example in enumerate(examples)}
        return sorted(kept, key=lambda example: order[id(example)]), [note]

    def _is_right(self, example: Example) -> bool:
        score = example.data["completions"][0].score
        return score is None or score >= self.correct_at

    def _units(self, example: Example) -> list[str]:
        text = example.data["completions"][0].text
        said = text if isinstance(text, str) else "\n".join(message["content"] for message in text)
        return list(said) if self.unit == "character" else said.split()


def _identity(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else repr([(one["role"], one["content"]) for one in prompt])


def _pass_rate(example: Example) -> float:
    """The column of that name. Raises UsageError where it is absent or no share."""
    try:
        value = float(example.data[PASS_RATE])
    except (KeyError, TypeError, ValueError):
        value = float("nan")
    if not 0 <= value <= 1:
        shown = f"is {example.data[PASS_RATE]!r}" if PASS_RATE in example.data else "is missing"
        raise UsageError(
            f"'ded' keeps prompts by how often the student solves them, but the column '{PASS_RATE}' {shown} (a share from 0 to 1) "
            f"for the prompt {_identity(example.prompt)[:60]!r}. Add it: `upslope diagnose pass-rates MODEL --data FILE --reward "
            "REWARD --out FILE`; or keep all prompts: --set pass_rate_below=2."
        )
    return value


def farthest(
    items: Sequence[Sequence[str]], count: int, distance: Callable[[Sequence[str], Sequence[str]], int]
) -> list[int]:
    """Indices of `count` items (all, where there are fewer): the first, then always the one farthest from those chosen.

    An item's distance to a set is that to its nearest member; of equally far ones the first is taken.
    """
    if not items or count >= len(items):
        return list(range(len(items)))
    chosen = [0]
    nearest = np.array([distance(items[0], item) for item in items])
    while len(chosen) < count:
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        if len(chosen) < count:
            nearest = np.minimum(nearest, [distance(items[chosen[-1]], item) for item in items])
    return chosen


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Levenshtein distance of two sequences of words or characters: insertions, deletions and replacements.

    One row of the table at a time: where inserting is best, a cell is the least of cell k + (j - k) over k before it.
    """
    number: dict[str, int] = {}
    first, second = (np.array([number.setdefault(unit, len(number)) for unit in units]) for units in (one, other))
    places = np.arange(len(second) + 1)
    row = places.copy()
    for index, unit in enumerate(first, start=1):
        without = np.minimum(row[1:] + 1, row[:-1] + (second != unit))
        row = np.minimum.accumulate(np.concatenate([[index], without]) - places) + places
    return int(row[-1])


@method(
    paper="2508.09883",
    title="Beyond Scaling Law: A Data-Efficient Distillation Framework for Reasoning",
    parent="sft",
)
def ded() -> Recipe:
    return sft().replace(rollout=SelectedDemonstrations())
