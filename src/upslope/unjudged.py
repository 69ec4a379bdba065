"""Prompts whose answers nobody judges: for methods that learn from a teacher alone, and how far from it these are evaluated."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.collect import Collector, seeded
from upslope.evaluate import Evaluation
from upslope.parts.data import FromData
from upslope.parts.distill import kl_divergence
from upslope.parts.sampling import Sample, Uniform
from upslope.recipe import Recipe, State
from upslope.rollout import Example, Outcome, Rollouts, Sampling
from upslope.runs.statistics import ratio_interval
from upslope.tasks.scorers import VERDICT_COLUMNS
from upslope.teaching import Informs, Rewrites, Teaching, informing, reads_teacher
from upslope.update import Updater

OF_REWARDS = VERDICT_COLUMNS | {"reward", "token_reward", "expected_reward"}
"""Columns that only a reward can give."""


def learns_unjudged(recipe: Recipe) -> bool:
    """Whether the recipe samples, learns from a teacher and asks for no reward: neither a part does, nor how prompts are chosen."""
    reads = any(
        part.needs & OF_REWARDS or (isinstance(part, Informs | Rewrites) and getattr(part, "reads_reward", True))
        for _, part in recipe.stages()
    )
    chooses = type(recipe.curriculum) is not Uniform or type(recipe.rollout) is not Sample
    return reads_teacher(recipe) and not (isinstance(recipe.rollout, FromData) or reads or chooses)


class NotJudged:
    """In the place of a judge: outcomes that have neither a value nor a failure.

    reference   the reference answer of an example, or None, which a method may learn from although nobody judges by it
    """

    def __init__(self, reference: Callable[[Example], Any]) -> None:
        self.reference = reference
        self.step = 0

    def score(
        self,
        examples: Sequence[Example],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Outcome]:
        """One outcome per completion, which says nothing."""
        return [Outcome(None)] * len(completions)

    def describe(self) -> str:
        return (
            "none is given, so none is measured: whether answers are right is not known. The evaluation is the KL to the teacher "
            "on held-out prompts; --reward measures the answers, too"
        )

    def close(self) -> None:
        """There is nothing to end."""


def evaluate_unjudged(
    collector: Collector,
    updater: Updater,
    examples: Sequence[Example],
    states: State,
    *,
    samples: int,
    sampling: Sampling,
    seed: int,
) -> Evaluation:
    """How far the policy is from the teacher: `samples` completions of each held-out prompt, the same noise every time.

    eval/teacher/kl is the mean over their tokens of KL(policy || teacher) of the next-token distributions, in nats, with a
    bootstrap interval over prompts (_low, _high) where there are two or more. The teacher reads what the recipe tells it.
    """
    teaching, recipe = updater.teaching, updater.recipe
    references = recipe.rollout.reference_rows if informing(recipe) else 0  # type: ignore[union-attr]
    found = collector.sample(examples, sampling, seeded(seed, "eval"), references, samples)
    assert found.batch is not None
    teaching.restore(states)
    told, _ = teaching.rollouts(found.rollouts, found.batch, states)
    kl = _divergence(teaching, found.rollouts, told, updater.tokens_per_pass)
    own = (found.source == 0).nonzero().squeeze(1)  # without reference answers
    rollouts = found.rollouts.select(own)
    total, count = (_by_prompt(column[own].sum(1), rollouts.prompt) for column in (kl, found.rollouts.mask))
    interval = ratio_interval(total, count).named("eval/teacher/kl")
    metrics = {
        **(interval if len(examples) > 1 else {"eval/teacher/kl": interval["eval/teacher/kl"]}),
        "eval/prompts": float(len(examples)),
        "eval/length": float(rollouts.mask.sum(1).float().mean()),
        "eval/truncated": sum(finish == "length" for finish in rollouts.finish) / len(rollouts),
    }
    shown, outcomes = ([column[row] for row in own.tolist()] for column in (found.examples, found.outcomes))
    return Evaluation(metrics, rollouts, shown, outcomes)


@torch.no_grad()
def _divergence(teaching: Teaching, rollouts: Rollouts, told: Rollouts, tokens_per_pass: int) -> Tensor:
    """KL(policy || teacher) of the next-token distributions [R, T] on the CPU, 0 where nothing is trained."""
    asking = copy.copy(teaching)
    asking.compared = {"teacher_kl": kl_divergence}
    plan = list(teaching.policy.plan(rollouts, tokens_per_pass=tokens_per_pass))
    parts = [asking.compare(rollouts, told, rows, None, frozenset(asking.compared))["teacher_kl"] for rows in plan]
    return torch.cat([part.cpu() for part in parts])[torch.cat(plan).argsort()]


def _by_prompt(values: Tensor, prompt: Tensor) -> Tensor:
    """Sums [P] of values [R] over each prompt's rows."""
    return torch.zeros(int(prompt.max()) + 1, dtype=torch.float64).index_add(0, prompt, values.double())
