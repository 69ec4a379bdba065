"""Which of a run's samples a page shows: pairs of the first and last evaluation, an even choice, failures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from upslope.report.text import cut, number, visible

KEPT = 400  # samples read for the list, evenly spread over the run
LISTED_CHARACTERS = 400_000  # characters of text in the list of one page
PAIRS = 12  # prompts shown before and after
SAME = 4  # of them, those with equal rewards, which have less to say
REASONS = 50  # different reasons of failure told apart


@dataclass(frozen=True)
class Sample:
    """One completion, its texts visible and cut. `reward` is None where the reward failed; `failure` says why."""

    step: int
    split: str
    key: str
    prompt: str
    completion: str
    reward: float | None
    parts: Mapping[str, float]
    failure: str
    finish: str
    advantage: float | None


@dataclass
class Samples:
    """What was kept of samples.jsonl. `first` and `last`: all samples of the first and last evaluation."""

    total: int = 0
    first: list[Sample] = field(default_factory=list)
    last: list[Sample] = field(default_factory=list)
    kept: list[Sample] = field(default_factory=list)
    failures: dict[str, tuple[int, Sample]] = field(default_factory=dict)

    def listed(self) -> list[Sample]:
        """The list of the page: an even choice over the run, newest first, as much as the page has room for."""
        for stride in range(1, len(self.kept) + 1):
            chosen = self.kept[::-stride]
            if sum(len(sample.prompt) + len(sample.completion) for sample in chosen) <= LISTED_CHARACTERS:
                return chosen
        return []


@dataclass(frozen=True)
class Pair:
    """One held-out prompt in the first and the last evaluation. Rewards are means over its completions."""

    prompt: str
    before: Sample
    after: Sample
    reward_before: float | None
    reward_after: float | None
    completions: tuple[int, int]

    @property
    def change(self) -> str:
        if self.reward_before is None or self.reward_after is None:
            return "not compared"
        if abs(self.reward_after - self.reward_before) < 1e-9:
            return "same"
        return "better" if self.reward_after > self.reward_before else "worse"


def collect_samples(rows: Iterable[Mapping[str, Any]]) -> Samples:
    """Read samples once, keeping memory bounded by the first and last evaluation and `KEPT` others."""
    samples = Samples()
    stride = 1
    for row in rows:
        sample = _sample(row)
        if sample.split == "eval":
            _keep_evaluation(samples, sample)
        if sample.failure:
            reason = sample.failure.split("\n")[0][:160]
            if reason not in samples.failures and len(samples.failures) >= REASONS:
                reason = "other reasons"
            count, example = samples.failures.get(reason, (0, sample))
            samples.failures[reason] = (count + 1, example)
        if samples.total % stride == 0:
            samples.kept.append(sample)
        samples.total += 1
        if len(samples.kept) > 2 * KEPT:
            samples.kept, stride = samples.kept[::2], 2 * stride
    return samples


def pairs(samples: Samples) -> list[Pair]:
    """Every prompt that both the first and the last evaluation answered, in the order of the first."""
    before, after = _by_key(samples.first), _by_key(samples.last)
    return [
        Pair(
            prompt=before[key][0].prompt,
            before=_typical(before[key]),
            after=_typical(after[key]),
            reward_before=_mean_reward(before[key]),
            reward_after=_mean_reward(after[key]),
            completions=(len(before[key]), len(after[key])),
        )
        for key in before
        if key in after
    ]


def chosen_pairs(every: list[Pair]) -> list[Pair]:
    """At most PAIRS of them, each kind of change in its proportion and at least once, so that losses are shown too."""
    kinds = {kind: [p for p in every if p.change == kind] for kind in ("better", "worse", "same", "not compared")}
    chosen: list[Pair] = []
    for kind, members in kinds.items():
        share = max(1, round(PAIRS * len(members) / max(len(every), 1)))
        chosen += members[: min(share, SAME) if kind == "same" else share]
    return chosen[: PAIRS + 3]


def _keep_evaluation(samples: Samples, sample: Sample) -> None:
    if samples.last and sample.step != samples.last[0].step:
        samples.last = []
    samples.last.append(sample)
    if samples.first and sample.step < samples.first[0].step:
        samples.first = []
    if not samples.first or sample.step == samples.first[0].step:
        samples.first.append(sample)


def _by_key(samples: list[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.key, []).append(sample)
    return groups


def _mean_reward(samples: list[Sample]) -> float | None:
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    return sum(rewards) / len(rewards) if rewards else None


def _typical(samples: list[Sample]) -> Sample:
    """The first sample whose reward is nearest to the mean, so that what is shown agrees with the number beside it."""
    mean = _mean_reward(samples)
    if mean is None:
        return samples[0]
    return min((s for s in samples if s.reward is not None), key=lambda s: abs((s.reward or 0.0) - mean))


def _sample(row: Mapping[str, Any]) -> Sample:
    step = number(row.get("step"))
    parts = row.get("parts")
    parts = parts if isinstance(parts, dict) else {}
    return Sample(
        step=0 if step is None else int(step),
        split=visible(row.get("split", ""))[:20],
        key=visible(row.get("key", ""))[:200],
        prompt=cut(_prompt_text(row.get("prompt", ""))),
        completion=cut(row.get("completion", "")),
        reward=number(row.get("reward")),
        parts={visible(name)[:60]: p for name, value in list(parts.items())[:20] if (p := number(value)) is not None},
        failure=cut(row.get("failure") or "", 600),
        finish=visible(row.get("finish", ""))[:20],
        advantage=number(row.get("advantage")),
    )


def _prompt_text(prompt: Any) -> str:
    """A plain prompt, or chat messages one under the other."""
    if not isinstance(prompt, list):
        return str(prompt)
    messages = [message if isinstance(message, dict) else {"content": message} for message in prompt]
    return "\n".join(f"{message.get('role', 'message')}: {message.get('content', '')}" for message in messages)
