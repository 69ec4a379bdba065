"""One step's rollouts: prompts from the stream, completions from the engine, rewards from the task, groups that are kept."""

import functools
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from upslope.batch import COLUMNS, Batch
from upslope.errors import UsageError
from upslope.recipe import Observation, Recipe
from upslope.rollout import Example, Outcome, Rollouts, Sampling

Encode = Callable[[Any], list[int]]


def seeded(*key: object) -> torch.Generator:
    """A CPU generator that depends on the key alone, so a resumed step draws what the interrupted one would have drawn."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class PromptStream:
    """Training examples, epoch after epoch, each in an order that depends on the seed and the epoch only."""

    examples: Sequence[Example]
    seed: int

    def take(self, cursor: int, count: int) -> list[Example]:
        """The `count` examples from position `cursor` on."""
        size = len(self.examples)
        places = [divmod(position, size) for position in range(cursor, cursor + count)]
        return [self.examples[int(_permutation(self.seed, epoch, size)[place])] for epoch, place in places]


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


@dataclass(frozen=True)
class Event:
    """Something that went otherwise than planned, for the log: what, how often, and one example."""

    kind: str
    message: str
    count: int = 1


@dataclass
class Collected:
    """A step's rows, aligned: rollouts, the example and outcome of each, and the batch before `prepare` (None: no row kept)."""

    rollouts: Rollouts
    examples: list[Example]
    outcomes: list[Outcome]
    batch: Batch | None
    metrics: dict[str, float]
    seconds: dict[str, float]
    events: list[Event] = field(default_factory=list)


class Collector:
    """Draws prompts until enough groups are kept. `state` is {"cursor": position in the stream}, passed in and out."""

    def __init__(
        self, *, engine: Any, judge: Any, encode: Encode, stream: PromptStream, recipe: Recipe, limit: int
    ) -> None:
        self.engine, self.judge, self.encode, self.stream, self.recipe, self.limit = (
            engine,
            judge,
            encode,
            stream,
            recipe,
            limit,
        )
        self.observe = observed_at_sampling(recipe)
        self._encoded: dict[str, list[int]] = {}

    def collect(
        self, state: dict[str, Any], *, prompts: int, sampling: Sampling, key: Sequence[object]
    ) -> tuple[Collected, dict]:
        """The rollouts of one step for `prompts` groups, and the next state; `key` seeds the sampling."""
        rounds: list[Collected] = []
        events: list[Event] = []
        cursor, kept_groups = int(state["cursor"]), 0
        curriculum, group_size = self.recipe.curriculum, self.recipe.rollout.group_size  # type: ignore[union-attr]
        for attempt in range(curriculum.max_rounds):  # type: ignore[union-attr]
            examples, cursor, dropped = self._draw(cursor, prompts - kept_groups)
            events += dropped
            generator = seeded(*key, attempt)
            drawn = self._sample(examples, group_size, sampling, generator)
            rounds.append(drawn)
            if drawn.batch is not None:
                kept_groups += int(curriculum.keep(drawn.batch).sum())  # type: ignore[union-attr]
            if kept_groups >= prompts:
                break
        else:
            if kept_groups < prompts and len(rounds) > 1:
                events.append(
                    Event(
                        "few groups",
                        f"{kept_groups} of {prompts} groups had rewards that differ, in {len(rounds)} rounds",
                    )
                )
        return self._merge(rounds, events), {"cursor": cursor}

    def _draw(self, cursor: int, count: int) -> tuple[list[Example], int, list[Event]]:
        """Examples whose prompt leaves room for an answer; too long ones are passed over, counted and named."""
        chosen: list[Example] = []
        long: list[Example] = []
        while len(chosen) < count:
            (example,) = self.stream.take(cursor, 1)
            cursor += 1
            (chosen if len(self._ids(example)) <= self.limit else long).append(example)
            if len(long) > max(1000, len(self.stream.examples)) and not chosen:
                raise UsageError(
                    f"every prompt is longer than the {self.limit} tokens that the model's context leaves beside max_tokens; "
                    f"'{long[0].key}' has {len(self._ids(long[0]))}. Lower max_tokens, shorten the prompts or take another model."
                )
        if not long:
            return chosen, cursor, []
        message = f"longer than {self.limit} tokens, e.g. '{long[0].key}' with {len(self._ids(long[0]))}"
        return chosen, cursor, [Event("prompt too long", message, len(long))]

    def _ids(self, example: Example) -> list[int]:
        if example.key not in self._encoded:
            if len(self._encoded) > 100_000:
                self._encoded.clear()
            self._encoded[example.key] = self.encode(example.prompt)
        return self._encoded[example.key]

    def _sample(
        self, examples: list[Example], group_size: int, sampling: Sampling, generator: torch.Generator
    ) -> Collected:
        started = time.perf_counter()
        rollouts = self.engine.generate(
            [self._ids(e) for e in examples], [group_size] * len(examples), sampling, generator, self.observe
        )
        sampled = time.perf_counter()
        of_row = [examples[index] for index in rollouts.prompt.tolist()]
        ids = [row[:length].tolist() for row, length in zip(rollouts.tokens, rollouts.length.tolist(), strict=True)]
        outcomes = self.judge.score(of_row, rollouts.text, ids)
        seconds = {"rollout": sampled - started, "reward": time.perf_counter() - sampled}
        batch = first_batch(rollouts, outcomes, of_row, self.recipe.needs)
        return Collected(rollouts, of_row, outcomes, batch, {}, seconds)

    def _merge(self, rounds: list[Collected], events: list[Event]) -> Collected:
        """All rounds' kept groups as one; metrics are over everything that was sampled, kept or not."""
        metrics = reward_metrics([outcome for part in rounds for outcome in part.outcomes])
        metrics |= group_metrics(rounds)
        rows = [self._kept_rows(part) for part in rounds]
        chosen = [(part, kept) for part, kept in zip(rounds, rows, strict=True) if len(kept)]
        events += failure_events([outcome for part in rounds for outcome in part.outcomes])
        seconds = {name: sum(part.seconds[name] for part in rounds) for name in rounds[0].seconds}
        if not chosen:
            return Collected(rounds[0].rollouts, rounds[0].examples, rounds[0].outcomes, None, metrics, seconds, events)
        rollouts = Rollouts.concatenate([part.rollouts.select(kept) for part, kept in chosen])
        examples = [part.examples[row] for part, kept in chosen for row in kept.tolist()]
        outcomes = [part.outcomes[row] for part, kept in chosen for row in kept.tolist()]
        batch = first_batch(rollouts, outcomes, examples, self.recipe.needs)
        return Collected(rollouts, examples, outcomes, batch, metrics, seconds, events)

    def _kept_rows(self, part: Collected) -> torch.Tensor:
        if part.batch is None:
            return torch.zeros(0, dtype=torch.int64)
        return self.recipe.curriculum.keep(part.batch)[part.batch.group].nonzero().squeeze(1)  # type: ignore[union-attr]


def first_batch(
    rollouts: Rollouts, outcomes: Sequence[Outcome], examples: Sequence[Example], needs: frozenset[str] = frozenset()
) -> Batch | None:
    """The columns that sampling and rewards give; None where no reward is valid. `examples`: that of each row.

    Of `needs`, columns that the verifier names among an outcome's parts are taken from there.
    Raises UsageError where it does not name one that only it can give.
    """
    valid = torch.tensor([outcome.value is not None for outcome in outcomes])
    if not valid.any():
        return None
    reward = torch.tensor(
        [0.0 if outcome.value is None else outcome.value for outcome in outcomes], dtype=torch.float32
    )
    return Batch(
        logp=rollouts.logp,
        old_logp=rollouts.logp,
        behavior_logp=rollouts.behavior_logp,
        mask=rollouts.mask,
        tokens=rollouts.tokens,
        turn=torch.zeros_like(rollouts.tokens),
        reward=reward,
        valid=valid,
        truncated=torch.tensor([finish == "length" for finish in rollouts.finish]),
        group=rollouts.prompt,
        prompt=rollouts.prompt,
        prompt_key=torch.tensor([key_number(example.key) for example in examples]),
        trajectory=torch.arange(len(rollouts)),
        source=torch.zeros(len(rollouts), dtype=torch.int64),
        **rollouts.observed,
        **_verdict_columns(rollouts, outcomes, needs),
    )


def _verdict_columns(rollouts: Rollouts, outcomes: Sequence[Outcome], needs: frozenset[str]) -> dict[str, torch.Tensor]:
    """What the verifier says beside the reward. Without a part `answer`, the completion's last line is the answer."""
    made = {}
    for name in sorted(needs & VERDICT_COLUMNS):
        missing = [
            row for row, outcome in enumerate(outcomes) if outcome.value is not None and name not in outcome.parts
        ]
        if not missing:
            made[name] = torch.tensor([float(outcome.parts.get(name, 0.0)) for outcome in outcomes])
        elif name == "answer":
            numbers: dict[str, int] = {}
            last = [text.strip().rpartition("\n")[2] for text in rollouts.text]
            made[name] = torch.tensor([numbers.setdefault(line, len(numbers)) for line in last])
        else:
            raise UsageError(
                f"the method reads '{name}' ({COLUMNS[name].meaning}), but the task's verifier does not give it for "
                f"{len(missing)} of {len(outcomes)} completions. Return it among the parts of the reward."
            )
    return made


VERDICT_COLUMNS = frozenset({"answer", "prediction", "stratum"})


def key_number(key: str) -> int:
    """A 63-bit number for the key of an example, the same in every process."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def observed_at_sampling(recipe: Recipe) -> dict[str, Observation]:
    """What a recipe reads of the distributions that are sampled from, before the update."""
    functions = {"entropy": entropy_of, **recipe.observes()}
    return {name: functions[name] for name in sorted(recipe.needs_before & functions.keys())}


def entropy_of(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Entropy [M] of distributions [M, V], in nats."""
    return torch.special.entr(log_probs.exp()).sum(-1)


def reward_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean and deviation of the valid rewards and of their parts; the number that failed."""
    values = np.array([outcome.value for outcome in outcomes if outcome.value is not None])
    metrics = {"rewards/failed": float(len(outcomes) - len(values))}
    if len(values):
        metrics |= {"reward": float(values.mean()), "reward_std": float(values.std(ddof=1)) if len(values) > 1 else 0.0}
    parts: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, value in outcome.parts.items():
            parts.setdefault(name, []).append(value)
    return metrics | {f"rewards/{name}/mean": float(np.mean(values)) for name, values in sorted(parts.items())}


def group_metrics(rounds: Sequence[Collected]) -> dict[str, float]:
    """Share of groups of two or more whose rewards are all equal; length and truncation of everything sampled.

    `entropy` is the mean of -logp over sampled tokens: an estimate without bias where temperature is 1 and nothing truncated.
    """
    same, groups = 0, 0
    for part in rounds:
        if part.batch is not None:
            mean, count = part.batch.group_mean(part.batch.reward)
            spread, _ = part.batch.group_mean((part.batch.reward - mean[part.batch.group]).abs())
            same += int(((spread < 1e-9) & (count > 1)).sum())
            groups += int((count > 1).sum())
    lengths = torch.cat([part.rollouts.mask.sum(1) for part in rounds]).float()
    truncated = [finish == "length" for part in rounds for finish in part.rollouts.finish]
    logp_sum = sum(float((part.rollouts.logp * part.rollouts.mask).sum()) for part in rounds)
    return {
        **({"groups/zero_variance": same / groups} if groups else {}),
        "groups/sampled": float(sum(len(part.rollouts.prompts) for part in rounds)),
        "length/mean": float(lengths.mean()),
        "length/max": float(lengths.max()),
        "length/truncated": float(np.mean(truncated)),
        "entropy": -logp_sum / float(lengths.sum()),
        "tokens": float(lengths.sum()),
    }


def failure_events(outcomes: Sequence[Outcome]) -> list[Event]:
    """One event per reason (its first line), with a count."""
    reasons = Counter(outcome.failure.splitlines()[0] for outcome in outcomes if outcome.failure)
    return [Event("reward failed", reason, count) for reason, count in reasons.most_common()]
