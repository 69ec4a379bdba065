"""RLHF-PPO: PPO on the score of a whole completion, less a KL penalty for every token.

    R_i     score_i - penalty if the completion did not end by itself                                      [R]
    rho     R at the last token - beta (old_logp - ref_logp) at every token; perhaps divided by its deviation [R, T]
    A       sum over s >= t of (gamma lam)^(s-t) (rho_s + gamma V_{s+1} - V_s), V the critic's old value   [R, T]
    returns A + V; then A is whitened over the batch's tokens                                              [R, T]
    loss    mean over the batch's tokens of max(-A r, -A clip(r, 0.8, 1.2))
    critic  mean over the batch's tokens of max((V' - returns)^2, (clip(V', V - 0.2, V + 0.2) - returns)^2) / 2

Differs from ppo_llm:  beta; four passes over each batch, each in one update; the penalty and the scale of rewards, which
    are off.
Limits:  one pass, a clip that never acts, V = 0 and lam = 1 without whitening: reinforce on the score less beta times the
    KL. Its optimum is ref * exp(R / beta) / Z.
Expects:  a score of any scale, from a reward model (`upslope train rm --data PAIRS`, then --reward-model RUN) or a verifier. A
    critic (old_value, value), which starts from the policy, or by critic_from=reward_model from the reward model, if that has the
    policy's tokens; and a pass of the reference; four passes over every batch, each a forward and a backward pass of all its
    rows. A reward model scores a completion that was cut off as if it had ended: reward.MissingEnd.penalty takes something off
    that; reward.UnitSpread.on scales the rewards of tokens.
Source:  Ziegler et al. 2019 (arXiv:1909.08593), Ouyang et al. 2022 (arXiv:2203.02155); constants as in TRL's PPOTrainer:
    beta 0.05, lam 0.95, clips 0.2, four passes, lr 3e-6.
Deviations:  TRL adds 0.1 times the critic's loss; here the critic has its own optimizer, for which a factor means nothing
    to Adam. TRL samples at temperature 0.7 with log-probs at 0.7; here both are at 1.
Not this:  the KL is part of the reward and has no gradient of its own; ppo_max adds a running scale of the score.
Claim:  over-optimization of a learned reward: in the study "over_optimization" (5 seeds) the reward model of 568 pairs
    keeps rising while the share of right answers stays at 0.447 [0.388, 0.489].
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.ppo_llm import ppo_llm
from upslope.parts.advantage import whiten
from upslope.parts.kl import KLInReward, token_rewards
from upslope.parts.sampling import Update
from upslope.recipe import Part, Recipe
from upslope.registry import method


@dataclass(frozen=True)
class MissingEnd(Part):
    """Takes `penalty` off the reward [R] of completions that hit the length limit."""

    penalty: float = 0.0

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads `truncated` where there is a penalty."""
        return frozenset({"reward", "truncated"} if self.penalty else {"reward"})

    def describe(self) -> str:
        return f"reward - {self.penalty:g} where truncated" if self.penalty else "reward"

    def __call__(self, batch: Batch) -> Tensor:
        return batch.reward - self.penalty * batch.truncated if self.penalty else batch.reward


@dataclass(frozen=True)
class UnitSpread(Part):
    """Rewards per token [R, T] over their standard deviation among the batch's tokens, the mean kept as it is, where `on`."""

    on: bool = False
    eps: float = 1e-8
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def describe(self) -> str:
        return "rewards of tokens / their deviation, about the same mean" if self.on else "rewards of tokens"

    def __call__(self, batch: Batch) -> Tensor:
        rewards = token_rewards(batch)
        if not self.on:
            return rewards
        mean = batch.masked_mean(rewards)
        return torch.where(batch.mask, whiten(batch, rewards, self.eps) + mean, rewards)


@method(
    paper="2203.02155", title="Training Language Models to Follow Instructions with Human Feedback", parent="ppo_llm"
)
def rlhf_ppo() -> Recipe:
    return ppo_llm().replace(
        reward=(MissingEnd(penalty=0.0), KLInReward(beta=0.05, level="token"), UnitSpread(on=False)),
        update=Update(epochs=4),
    )
