"""CAPO: tokens whose own optimizer step would change the objective or the policy too much are left out of the loss.

Of a token a with hidden state h and probabilities pi, with the output layer W [V, H] as the only parameter:
    v      e_a - pi, the gradient of log pi(a) by the logits                                               [V]
    D      the direction of Adam's next step of W, were A v h' its gradient                                [V, H]
    u      D h, what that step adds to the logits, over lr                                                 [V]
    gain   lr A v'u + lr^2 / 2 A ((v'u)^2 - u'F u), F = diag(pi) - pi pi'; of A pi(a) / pi_old(a), to second order
    shift  lr^2 / 2 (v'u)^2; its mean over the words a is the KL from the policy to the moved one, to second order
    A_i    R_i - mean of group                                                                             [R]
    loss   mean over sequences of the mean over kept tokens of max(-A r, -A clip(r, 0.8, 1.2))
    A token is kept where |gain| < max_gain and shift < max_shift; a sequence that keeps none has loss 0 and counts.

Differs from grpo:  the rejection, before the mean over tokens; no division by the group's deviation; no KL.
Limits:  max_gain and max_shift to infinity is grpo with scale=None and beta = 0; to 0, nothing is learned from. words=None
    computes D exactly, and so does words of the vocabulary's size.
Expects:  an aggressive learning rate, which both bounds scale with: the authors' is 1.5e-5 for 7B parameters, five times their
    usual one, with a batch of a twelfth. On Dr. GRPO (aggregate="dr_grpo", mean_over_kept=False) they take max_gain=5e-4 and
    max_shift=1e-2 or 1e-3. Every weight trained, since adapters leave the output layer without moments, and logits that are W h.
    Watch curvature/rejected: with the authors' setting below 0.08; at 1 nothing is learned. Costs words * H entries of D per
    token, a tenth of a step of a model of 1M parameters, where words=None (V = 1024) makes it four times as long; and, where a
    mini-batch takes several passes, one more forward pass.
Source:  Melo et al. 2025 (arXiv:2510.00819); the authors' stable-pg-llm, grpo_entropy_trainer.py and its recipes.
Deviations:  the moments are those of the run's AdamW, which are of the clipped gradient of the batch and decay on
    every step. The authors keep moments of their own per logit, means over the tokens that touch it and are kept, and take the
    plain gradient in the first step. Of tokens outside the top k the sampled one replaces the least likely; theirs are sampled
    from the top 50. The ratio pi / pi_old within gain is taken as 1, as in the first update of a batch.
Not this:  clip_cov and kl_cov select tokens by a covariance of log-prob and advantage.
Claim:  holds at aggressive learning rates: not reproduced. At ten times the default rate (study "aggressive", 5 seeds)
    pass@1 ends at 0.01, grpo's at 0.20: the published bounds are absolute, for steps of 1.5e-5, and reject a third and more
    of the tokens here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.learner import AdamStep
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method

ENTRIES = {"cpu": 1 << 18}  # of D at once: what fits the cache
ENTRIES_ELSEWHERE = 1 << 26


@dataclass(frozen=True)
class CurvatureRejection(Part):
    """Weights 0 for rejected tokens, and with `mean_over_kept` length / kept tokens for the row's others, as above, [R, T].

    `one_sided` also rejects tokens of negative gain. `words`: how many of the vocabulary are in v, pi and D, None for all.
    """

    max_gain: float = 1e-2
    max_shift: float = 1e-4
    one_sided: bool = False
    mean_over_kept: bool = True
    words: int | None = 50
    needs: ClassVar[frozenset[str]] = frozenset({"predicted_gain", "predicted_shift"})
    makes: ClassVar[frozenset[str]] = frozenset({"weight"})
    measured_from: ClassVar[frozenset[str]] = frozenset({"hidden", "top_logp", "top_ids"})

    def __post_init__(self) -> None:
        for name in ("max_gain", "max_shift"):
            if not getattr(self, name) > 0:
                raise UsageError(
                    f"CurvatureRejection.{name} is {getattr(self, name)}; it must be above 0, .inf for no bound."
                )
        if self.words is not None and self.words < 1:
            raise UsageError(
                f"CurvatureRejection.words is {self.words}; it must be at least 1, or None for every word."
            )

    def measure(self, batch: Batch, step: AdamStep) -> dict[str, Tensor]:
        """gain and shift [R, T] of every token with an advantage, 0 for others, whose gradient is 0 in any case."""
        chosen = batch.mask & (batch.advantage != 0)
        made = {name: torch.zeros_like(batch.logp) for name in ("predicted_gain", "predicted_shift")}
        columns = (batch.hidden, batch.top_logp, batch.top_ids, batch.tokens, batch.logp, batch.advantage)
        hidden, log_probs, ids, tokens, own, advantage = (column[chosen].to(step.mean.device) for column in columns)
        ids, log_probs = with_chosen(ids, log_probs, tokens, own)
        entries = ENTRIES.get(hidden.device.type, ENTRIES_ELSEWHERE)
        at_once = max(1, entries // (ids.shape[1] * hidden.shape[1]))
        found = [
            predicted_changes(h.to(step.mean.dtype), p.exp(), i == t.unsqueeze(1), a, i, step)
            for h, p, i, t, a in zip(
                *(c.split(at_once) for c in (hidden, log_probs, ids, tokens, advantage)), strict=True
            )
        ]
        for name, parts in zip(made, zip(*found, strict=True), strict=False):
            made[name][chosen] = torch.cat(parts).to(made[name])
        return made

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        keep = self._keep(batch)
        share = batch.length / keep.sum(1).clamp(min=1) if self.mean_over_kept else torch.ones_like(batch.length)
        return {"weight": batch.weight * keep * share.unsqueeze(1)}

    def stats(self, batch: Batch) -> Stats:
        rejected = ~self._keep(batch) & batch.mask
        return {
            "curvature/rejected": rejected.to(batch.dtype),
            "curvature/gain": batch.predicted_gain,
            "curvature/shift": batch.predicted_shift,
        }

    def _keep(self, batch: Batch) -> Tensor:
        gain = batch.predicted_gain
        bounded = (gain >= 0) & (gain < self.max_gain) if self.one_sided else gain.abs() < self.max_gain
        return bounded & (batch.predicted_shift < self.max_shift) & batch.mask


def with_chosen(ids: Tensor, log_probs: Tensor, tokens: Tensor, logp: Tensor) -> tuple[Tensor, Tensor]:
    """The top words [M, K] and their log-probs, where the sampled token [M] takes the last place if it is not among them."""
    outside = ~(ids == tokens.unsqueeze(1)).any(1)
    ids, log_probs = ids.clone(), log_probs.clone()
    ids[:, -1] = torch.where(outside, tokens, ids[:, -1])
    log_probs[:, -1] = torch.where(outside, logp, log_probs[:, -1])
    return ids, log_probs


def predicted_changes(
    hidden: Tensor, probability: Tensor, chosen: Tensor, advantage: Tensor, ids: Tensor, step: AdamStep
) -> tuple[Tensor, Tensor]:
    """(gain, shift) [M], as above, of tokens with states h [M, H] by the words `ids` [M, K] of the output layer.

    pi [M, K]; `chosen` [M, K] bool marks the sampled word; A [M]; `step` is that of the layer [V, H] that minimizes the loss.
    """
    error = chosen.to(probability.dtype) - probability
    ascent = (advantage.unsqueeze(1) * error).unsqueeze(2) * hidden.unsqueeze(1)
    logits = -(step.direction(-ascent, ids) @ hidden.unsqueeze(2)).squeeze(2)
    along = (error * logits).sum(1)
    spread = (probability * logits.square()).sum(1) - (probability * logits).sum(1).square()
    half = 0.5 * step.lr**2
    return step.lr * advantage * along + half * advantage * (along.square() - spread), half * along.square()


@method(
    paper="2510.00819",
    title="Stabilizing Policy Gradients for Sample-Efficient Reinforcement Learning in LLM Reasoning",
    parent="grpo",
)
def capo_curvature() -> Recipe:
    return grpo().replace(advantage=GroupBaseline(scale=None), control=CurvatureRejection(), regularizer=None)
