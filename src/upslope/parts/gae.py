"""Credit over time: rewards per token become returns and advantages per token, [R, T], scanned from the last token back.

Tool and observation text (mask False) lies between the policy's tokens but is none of its actions: the scan steps over it
without discount, and a reward that falls on it belongs to the policy's last token before it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.parts.advantage import whiten
from upslope.parts.kl import token_rewards
from upslope.recipe import Part


def gae(reward: Tensor, value: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantages [R, T] (Schulman et al. 2016, arXiv:1506.02438, eq. 16): with delta = r + gamma V' - V,

        A_t = delta_t + gamma lam A_{t+1},   V and A being 0 after the last token.

    0 where `mask` is False. With V = 0 and lam = 1 it is the discounted return.
    """
    next_value, next_advantage, pending = (torch.zeros_like(value[:, 0]) for _ in range(3))
    found = torch.zeros_like(value)
    for t in reversed(range(value.shape[1])):
        written, earned = mask[:, t], reward[:, t] + pending
        delta = earned + gamma * next_value - value[:, t]
        next_advantage = torch.where(written, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(written, value[:, t], next_value)
        pending = torch.where(written, 0.0, earned)
        found[:, t] = torch.where(written, next_advantage, 0.0)
    return found


def return_to_go(batch: Batch, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each token on, [R, T], 0 where nothing is trained."""
    rewards = token_rewards(batch)
    return gae(rewards, torch.zeros_like(rewards), batch.mask, gamma, 1.0)


@dataclass(frozen=True)
class GAE(Part):
    """Advantage and returns [R, T] from the critic's values: returns = A + V, then A whitened over the batch's tokens.

    `lam` trades the critic's bias (0) against the variance of the whole return (1). `whiten` False leaves A as it is.
    """

    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    eps: float = 1e-8
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "old_value"})

    def describe(self) -> str:
        advantage = f"GAE(reward, old_value; gamma={self.gamma:g}, lam={self.lam:g})"
        return f"{advantage}, whitened over the batch's tokens" if self.whiten else advantage

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        advantage = gae(token_rewards(batch), batch.old_value, batch.mask, self.gamma, self.lam)
        returns = advantage + batch.old_value
        return {"advantage": whiten(batch, advantage, self.eps) if self.whiten else advantage, "returns": returns}
