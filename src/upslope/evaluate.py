"""Evaluation on held-out prompts: pass@k by the unbiased estimator, with bootstrap intervals over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upslope.collect import Encode, seeded
from upslope.rollout import Example, Outcome, Rollouts, Sampling
from upslope.runs.statistics import bootstrap, mean, pass_at_k_interval


@dataclass
class Evaluation:
    """`metrics` has eval/pass@k with _low and _high, eval/reward, eval/length; rows of the rollouts, aligned with examples."""

    metrics: dict[str, float]
    rollouts: Rollouts
    examples: list[Example]
    outcomes: list[Outcome]


def evaluate(
    *,
    engine: Any,
    judge: Any,
    encode: Encode,
    examples: Sequence[Example],
    samples: int,
    sampling: Sampling,
    solved_at: float | None,
    seed: int,
    ks: Sequence[int] | None = None,
) -> Evaluation:
    """`samples` completions of each example; the same seed draws the same noise, so checkpoints are compared on equal terms.

    `ks` (default: 1, 2, 4, ... up to `samples`) are the k of pass@k.
    A failed reward counts as not passed and is counted in eval/failed. Where nothing says what is solved (`solved_at` None),
    there is no pass@k, but an interval of eval/reward.
    """
    rollouts = engine.generate(
        [encode(e.prompt) for e in examples], [samples] * len(examples), sampling, seeded(seed, "eval")
    )
    of_row = [examples[index] for index in rollouts.prompt.tolist()]
    outcomes = judge.score(of_row, rollouts.text)
    metrics = (
        reward_interval(outcomes, samples)
        if solved_at is None
        else pass_metrics(outcomes, samples, solved_at, ks or [2**power for power in range(samples.bit_length())])
    )
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    metrics["eval/prompts"] = float(len(examples))
    metrics["eval/reward"] = float(np.mean(values)) if values else float("nan")
    metrics["eval/failed"] = float(len(outcomes) - len(values))
    metrics["eval/length"] = float(rollouts.mask.sum(1).float().mean())
    metrics["eval/truncated"] = float(np.mean([finish == "length" for finish in rollouts.finish]))
    return Evaluation(metrics, rollouts, of_row, outcomes)


def pass_metrics(outcomes: Sequence[Outcome], samples: int, solved_at: float, ks: Sequence[int]) -> dict[str, float]:
    """pass@k with its interval, for each k; the outcomes of a prompt's samples follow one another."""
    passed = np.array([outcome.value is not None and outcome.value >= solved_at - 1e-9 for outcome in outcomes])
    passed = passed.reshape(-1, samples)
    metrics: dict[str, float] = {}
    for k in ks:
        metrics |= pass_at_k_interval(np.full(len(passed), samples), passed.sum(1), k).named(f"eval/pass@{k}")
    return metrics


def reward_interval(outcomes: Sequence[Outcome], samples: int) -> dict[str, float]:
    """A bootstrap interval of the mean reward over prompts; {} where every reward failed."""
    valid = [
        [outcome.value for outcome in outcomes[start : start + samples] if outcome.value is not None]
        for start in range(0, len(outcomes), samples)
    ]
    means = [float(np.mean(values)) for values in valid if values]
    if not means:
        return {}
    found = bootstrap(np.array(means)[:, None], mean)
    return {"eval/reward_low": found.low, "eval/reward_high": found.high}
