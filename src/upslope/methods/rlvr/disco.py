"""DisCO: raises the scores of a prompt's correct completions over its wrong ones, within a KL constraint.

    P, N  the correct and the wrong completions of a prompt; Q counts all prompts of the mini-batch
    s     mean over the completion's tokens of logp ("log_likelihood"), or of exp(logp - old_logp) ("ratio")    [R]
    l     -(mean over P of s - tau ln(mean over N of exp(s / tau))); DisCO-b: -(mean over P of s - mean over N of s)
    K     mean over the mini-batch's tokens of old_logp - logp, an estimate of KL(old || new)
    loss  sum of l over the prompts with both kinds / Q + beta max(K - delta, 0) K, the factor before K constant

Differs from grpo:  every prompt with both kinds weighs the same; no ratio to clip; wrong completions with high scores weigh
    more; the squared hinge on K in place of clip and KL against the reference.
Limits:  tau -> infinity is DisCO-b (tau=None). On-policy DisCO-b is grpo with the population deviation and beta = 0, each
    prompt's gradient divided by sqrt(p (1 - p)), p its share of correct ones (groups of equal size). K <= delta: no constraint.
Expects:  correct means a reward over 0.5; several updates per batch of rollouts, since in the first K = 0; score="ratio" wants
    tau=1. Samples at temperature 1: K is no estimate of the KL otherwise. A mini-batch that does not fit one pass
    (tokens_per_pass) costs one more forward pass, in which K is measured.
Source:  Li et al. 2025 (arXiv:2505.12366) and the authors' core_algos.py, with their beta, delta and four mini-batches.
Deviations:  the authors sample and score at temperature 0.6; here both are at 1. The log-mean-exp in their loss has the value
    tau, and the same gradient. A wrong completion is any that is not correct; their code drops rewards other than 0 and 1.
    Their code can also take K as the mean of r - 1 - ln r.
Not this:  DisCO-b is tau=None. In the authors' repository the loss type disco_Lratio raises a TypeError, and the discob scripts
    train disco.
Claim:  no difficulty bias: slower than grpo in the study "length" (5 seeds, four updates a step), -0.164 [-0.225, -0.112]:
    at the published delta and beta the constraint outweighs the contrast once rows are stale. The exact lab: it climbs the
    log-odds of success.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.aggregate import GroupSum, TokenMean
from upslope.parts.sampling import Update
from upslope.parts.surrogate import token_ratio
from upslope.recipe import Part, Recipe, Stats, Term
from upslope.registry import method


@dataclass(frozen=True)
class CorrectAgainstWrong(Part):
    """1 / |P| for a correct completion, -1 / |N| for a wrong one, 0 where the prompt lacks either, [R]."""

    correct_above: float = 0.5
    formula: ClassVar[str] = "1 / |P| where reward > {correct_above}, else -1 / |N|; 0 where P or N is empty"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group"})

    def __call__(self, batch: Batch) -> Tensor:
        correct = batch.reward > self.correct_above
        right, wrong = ((batch.trained & side).to(batch.dtype) for side in (correct, ~correct))
        rights, wrongs = ((share * count)[batch.group] for share, count in map(batch.group_mean, (right, wrong)))
        contrast = right / rights.clamp(min=1) - wrong / wrongs.clamp(min=1)
        return torch.where((rights > 0) & (wrongs > 0), contrast, 0.0)


@dataclass(frozen=True)
class DiscriminativeScore(Part):
    """-A s of the correct, -A tau ln(mean over N of exp(s / tau)) of each wrong completion, [R]: their sum is l.

    `tau` None takes -A s for these too. Reads groups whole. Raises UsageError where the advantage differs within a sequence.
    """

    score: Literal["log_likelihood", "ratio"] = "log_likelihood"
    tau: float | None = 10.0
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tau is not None and self.tau <= 0:
            raise UsageError(
                f"DiscriminativeScore(tau={self.tau:g}): it must be positive, e.g. 10, or None for DisCO-b."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads old_logp for the ratio."""
        return frozenset({"advantage", "group"} | ({"old_logp"} if self.score == "ratio" else set()))

    def describe(self) -> str:
        score = "mean of logp" if self.score == "log_likelihood" else "mean of exp(logp - old_logp)"
        tilted = "" if self.tau is None else f", where A < 0 the group's {self.tau:g} ln(mean of exp(s / {self.tau:g}))"
        return f"-A s, s = {score}{tilted}"

    def __call__(self, batch: Batch) -> Tensor:
        per_token = batch.logp if self.score == "log_likelihood" else token_ratio(batch)
        score = (per_token * batch.mask).sum(1) / batch.length.clamp(min=1)
        side = batch.per_row("advantage")
        if self.tau is not None:
            wrong = side < 0
            score = score.masked_scatter(wrong, log_mean_exp(score[wrong], batch.group[wrong], self.tau))
        return -side * score


def log_mean_exp(score: Tensor, group: Tensor, tau: float) -> Tensor:
    """tau ln(mean of exp(score / tau)) over the rows of each row's group, [R]."""
    mates = group.unsqueeze(1) == group
    among = (score / tau).expand_as(mates).masked_fill(~mates, -torch.inf)
    return tau * (among.logsumexp(1) - mates.sum(1).to(score.dtype).log())


@dataclass(frozen=True)
class KLHinge(Part):
    """Column kl_multiplier [R]: beta max(K - delta, 0), the same in every row, K measured over the whole mini-batch."""

    beta: float = 1e3
    delta: float = 1e-4
    formula: ClassVar[str] = "kl_multiplier = {beta} max(mean of (old_logp - logp) - {delta}, 0)"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})
    makes: ClassVar[frozenset[str]] = frozenset({"kl_multiplier"})

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        divergence = batch.masked_mean(batch.old_logp - batch.logp)
        multiplier = self.beta * (divergence - self.delta).clamp(min=0)
        return {"kl_multiplier": multiplier.expand(len(batch))}


@dataclass(frozen=True)
class MultipliedKL(Part):
    """kl_multiplier times (old_logp - logp) per token [R, T]: with a token mean, the constraint's term."""

    formula: ClassVar[str] = "kl_multiplier * (old_logp - logp)"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "kl_multiplier"})

    def __call__(self, batch: Batch) -> Tensor:
        return batch.kl_multiplier.unsqueeze(1) * (batch.old_logp - batch.logp)

    def stats(self, batch: Batch) -> Stats:
        return {"constraint/kl": batch.old_logp - batch.logp, "constraint/multiplier": batch.kl_multiplier}


@method(
    paper="2505.12366",
    title="DisCO: Reinforcing Large Reasoning Models with Discriminative Constrained Optimization",
    parent="grpo",
)
def disco() -> Recipe:
    return grpo().replace(
        advantage=CorrectAgainstWrong(),
        control=KLHinge(beta=1e3, delta=1e-4),
        surrogate=DiscriminativeScore(score="log_likelihood", tau=10.0),
        regularizer=None,
        aggregate=GroupSum(),
        terms=(Term(MultipliedKL(), TokenMean()),),
        update=Update(minibatches=4),
    )
