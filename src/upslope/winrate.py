"""Win rate of one model against another: both answer the same held-out prompts, and a judge compares the answers.

    preference      1 where the first model's answer is the better one, 0 where the other's is, 1/2 for a tie
    win rate        mean over prompts of the prompt's mean preference; 1/2 says that the models are equals
    interval        95 %, by a bootstrap over prompts: the answers of one prompt are not independent of each other
    similar length  the same over those comparisons in which the shorter answer has at least 4/5 of the characters of the
                    longer one, since judges are known to prefer long answers

A comparison that failed (the reward raised, the score is not finite, the judge named no winner) is counted, and left out.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upslope.collect import seeded
from upslope.errors import UsageError
from upslope.rollout import Example, Outcome, Rollouts, Sampling
from upslope.runs.statistics import bootstrap, mean

SIMILAR = 0.8  # characters of the shorter answer, as a share of the longer one's
EQUAL = 1e-9  # scores that differ by no more are equal: sums of weighted rewards are rounded


class Contest(NamedTuple):
    """The answers of both models to one prompt."""

    example: Example
    ours: Sequence[str]
    theirs: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """One answer of each model, by their places in the contest: a preference, or a failure with its reason. Never both.

    `notes` are what the judge says beside it, such as the scores of both, as plain JSON.
    """

    ours: int
    theirs: int
    preference: float | None
    failure: str | None = None
    notes: Mapping[str, Any] | None = None


PairJudge = Callable[[Sequence[Contest]], list[list[Comparison]]]
"""The comparisons of each contest, in its order."""


class ByScore:
    """Compares by scores of single answers: the higher one wins, equal ones tie; every answer meets every other one.

    `score` gives an outcome for each example and answer, as `upslope.tasks.judge.Judge.score`.
    """

    def __init__(self, score: Callable[[Sequence[Example], Sequence[str]], Sequence[Outcome]]) -> None:
        self.score = score

    def __call__(self, contests: Sequence[Contest]) -> list[list[Comparison]]:
        # Equal answers to a prompt are scored once: a model rounds differently in another batch, and that is no preference.
        answers = list(
            dict.fromkeys((place, text) for place, one in enumerate(contests) for text in (*one.ours, *one.theirs))
        )
        outcomes = self.score([contests[place].example for place, _ in answers], [text for _, text in answers])
        known = dict(zip(answers, outcomes, strict=True))
        return [
            [
                by_score(i, j, known[place, ours], known[place, theirs])
                for i, ours in enumerate(contest.ours)
                for j, theirs in enumerate(contest.theirs)
            ]
            for place, contest in enumerate(contests)
        ]


def by_score(ours: int, theirs: int, one: Outcome, other: Outcome) -> Comparison:
    if one.value is None or other.value is None:
        return Comparison(ours, theirs, None, one.failure or other.failure or "not judged")
    scores = (float(one.value), float(other.value))
    notes = {"scores": scores}
    if not np.isfinite(scores).all():
        failed = next(score for score in scores if not np.isfinite(score))
        return Comparison(ours, theirs, None, f"the score is {failed}", {"scores": [str(score) for score in scores]})
    if abs(scores[0] - scores[1]) <= EQUAL * max(1.0, *map(abs, scores)):
        return Comparison(ours, theirs, 0.5, notes=notes)
    return Comparison(ours, theirs, float(scores[0] > scores[1]), notes=notes)


@dataclass
class Contender:
    """A model that answers. `encode` turns a prompt into tokens; `rollouts` are there once it has answered."""

    name: str
    engine: Any
    encode: Callable[[Any], list[int]]
    rollouts: Rollouts | None = None

    def answer(self, examples: Sequence[Example], samples: int, sampling: Sampling, *key: object) -> list[list[str]]:
        """`samples` answers to each example; the same key draws the same noise."""
        prompts = [self.encode(example.prompt) for example in examples]
        self.rollouts = self.engine.generate(prompts, [samples] * len(prompts), sampling, seeded(*key))
        text = self.rollouts.text
        return [list(text[start : start + samples]) for start in range(0, len(text), samples)]

    def facts(self) -> dict[str, float]:
        """Mean length in characters and in its own tokens, and the share that reached the limit of tokens."""
        assert self.rollouts is not None
        return {
            "characters": float(np.mean([len(text) for text in self.rollouts.text])),
            "tokens": float(self.rollouts.mask.sum(1).float().mean()),
            "truncated": float(np.mean([finish == "length" for finish in self.rollouts.finish])),
        }


@dataclass
class WinRate:
    """What came of it. `metrics` are those of `summary`; contests and comparisons are aligned."""

    metrics: dict[str, float | None]
    contests: list[Contest]
    comparisons: list[list[Comparison]]

    def failures(self) -> list[tuple[str, int]]:
        """Reasons of the comparisons that failed, the most frequent first."""
        reasons = Counter(one.failure for row in self.comparisons for one in row if one.failure is not None)
        return reasons.most_common()

    def write(self, path: Path) -> None:
        """One JSON line per prompt: both models' answers, and every comparison with what the judge said."""
        lines = [
            json.dumps(
                {
                    "key": contest.example.key,
                    "prompt": contest.example.prompt,
                    "ours": list(contest.ours),
                    "theirs": list(contest.theirs),
                    "comparisons": [asdict(one) for one in row],
                },
                ensure_ascii=False,
            )
            for contest, row in zip(self.contests, self.comparisons, strict=True)
        ]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}. Give --out another path.") from None


def win_rate(
    ours: Contender,
    theirs: Contender,
    judge: PairJudge,
    *,
    examples: Sequence[Example],
    samples: int,
    sampling: Sampling,
    seed: int,
) -> WinRate:
    """How often the answers of `ours` are preferred to those of `theirs`.

    The two draw independent noise, so that an answer of the one says nothing of its partner: with shared noise the rate
    would depend on how alike the two models' distributions are ordered. Raises UsageError if no comparison could be judged.
    """
    answers = [
        contender.answer(examples, samples, sampling, seed, "win-rate", side)
        for side, contender in (("ours", ours), ("theirs", theirs))
    ]
    contests = [Contest(*one) for one in zip(examples, *answers, strict=True)]
    comparisons = judge(contests)
    found = WinRate({}, contests, comparisons)
    if not any(one.preference is not None for row in comparisons for one in row):
        (reason, _), *_ = found.failures()
        raise UsageError(f"eval: none of {sum(map(len, comparisons))} comparisons could be judged, e.g.: {reason}.")
    found.metrics = {"eval/prompts": float(len(contests)), **summary(contests, comparisons)}
    for name, contender in (("", ours), ("_against", theirs)):
        found.metrics |= {f"eval/{fact}{name}": value for fact, value in contender.facts().items()}
    return found


def summary(contests: Sequence[Contest], comparisons: Sequence[Sequence[Comparison]]) -> dict[str, float | None]:
    """Metrics of judged comparisons, at least one:

    eval/win_rate, with _low and _high                  over all of them
    eval/wins, /ties, /losses, /failed                  how many there were of each
    eval/similar_length/win_rate, _low, _high; /count   over those of similar length; None where there is none
    eval/judge/NAME                                     mean of each number or truth value in the notes that all have
    """
    judged = [[one for one in row if one.preference is not None] for row in comparisons]
    flat = [one.preference for row in judged for one in row]
    metrics: dict[str, float | None] = rate_of(judged, "eval/win_rate")
    metrics |= {
        "eval/wins": float(sum(value > 0.5 for value in flat if value is not None)),
        "eval/ties": float(flat.count(0.5)),
        "eval/losses": float(sum(value < 0.5 for value in flat if value is not None)),
        "eval/failed": float(sum(map(len, comparisons)) - len(flat)),
    }
    similar = [
        [one for one in row if alike(contest.ours[one.ours], contest.theirs[one.theirs])]
        for contest, row in zip(contests, judged, strict=True)
    ]
    metrics |= rate_of(similar, "eval/similar_length/win_rate")
    metrics["eval/similar_length/count"] = float(sum(map(len, similar)))
    notes = [dict(one.notes or {}) for row in judged for one in row]
    for name, value in notes[0].items():
        if isinstance(value, int | float) and all(name in note for note in notes):
            metrics[f"eval/judge/{name}"] = float(np.mean([note[name] for note in notes]))
    return metrics


def rate_of(comparisons: Sequence[Sequence[Comparison]], name: str) -> dict[str, float | None]:
    """Mean over prompts of their mean preference, with its interval; prompts without any comparison are left out."""
    per_prompt = [float(np.mean([one.preference for one in row])) for row in comparisons if row]
    if not per_prompt:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    found = bootstrap(np.array(per_prompt)[:, None], mean)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def alike(one: str, other: str) -> bool:
    short, long = sorted((len(one), len(other)))
    return short >= SIMILAR * long
