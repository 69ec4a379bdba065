"""What a step's rewards say, as metrics and events for the log."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from upslope.batch import SOURCES
from upslope.rollout import Outcome

TEACHER = SOURCES.index("teacher")


@dataclass(frozen=True)
class Event:
    """Something that went otherwise than planned, for the log: what, how often, and one example."""

    kind: str
    message: str
    count: int = 1


def reward_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean and deviation of the valid rewards and of their parts; the number that failed. {} where nobody judges."""
    if outcomes and not any(outcome.judged for outcome in outcomes):
        return {}
    values = np.array([outcome.value for outcome in outcomes if outcome.value is not None])
    metrics = {"rewards/failed": float(len(outcomes) - len(values))}
    if len(values):
        metrics |= {"reward": float(values.mean()), "reward_std": float(values.std(ddof=1)) if len(values) > 1 else 0.0}
    parts: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, value in outcome.parts.items():
            parts.setdefault(name, []).append(value)
    return metrics | {f"rewards/{name}/mean": float(np.mean(values)) for name, values in sorted(parts.items())}


def group_metrics(rounds: Sequence[Any]) -> dict[str, float]:
    """Share of groups of two or more whose rewards are all equal, where there are rewards; length and truncation of everything
    the policy sampled.

    `rounds` are of type upslope.collect.Collected. `entropy` is the mean of -logp over sampled tokens: an estimate without bias
    where temperature is 1 and nothing truncated.
    """
    same, groups = 0, 0
    for part in rounds:
        if part.batch is not None and "reward" in part.batch:
            mean, count = part.batch.group_mean(part.batch.reward)
            spread, _ = part.batch.group_mean((part.batch.reward - mean[part.batch.group]).abs())
            same += int(((spread < 1e-9) & (count > 1)).sum())
            groups += int((count > 1).sum())
    own = [part.rollouts.select((part.source != TEACHER).nonzero().squeeze(1)) for part in rounds]
    lengths = torch.cat([rollouts.mask.sum(1) for rollouts in own]).float()
    truncated = [finish == "length" for rollouts in own for finish in rollouts.finish]
    logp_sum = sum(float((rollouts.logp * rollouts.mask).sum()) for rollouts in own)
    return {
        **({"groups/zero_variance": same / groups} if groups else {}),
        "groups/sampled": float(sum(len(rollouts.prompts) for rollouts in own)),
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
