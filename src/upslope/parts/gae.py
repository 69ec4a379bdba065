"""Credit over time: rewards per token or step become returns and advantages, [R, T], scanned from the last one back.

Tool and observation text (mask False) lies between the policy's tokens but is none of its actions: the scan steps over it
without discount, and a reward that falls on it belongs to the policy's last token before it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import check_within
from upslope.parts.advantage import whiten
from upslope.parts.kl import token_rewards
from upslope.recipe import Part


def gae(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    *,
    ended: Tensor | None = None,
    next_value: Tensor | None = None,
) -> Tensor:
    """Generalized advantages [R, T] (Schulman et al. 2016, arXiv:1506.02438, eq. 16): with delta = r + gamma V' - V,

        A_t = delta_t + gamma lam A_{t+1},   V and A being 0 after the last token.

    0 where `mask` is False. With V = 0 and lam = 1 it is the discounted return. `ended` [R, T] bool: an episode ends with this
    step, so no A flows back over it. `next_value` [R, T]: V' where it is not the V of the next step, such as after the last
    step of an episode that a time limit cut off; 0 where nothing comes after.
    """
    earned = _carried_back(reward, mask) if not bool(mask.all()) else reward
    delta = earned - value + gamma * (_following(value, mask) if next_value is None else next_value)
    kept = torch.full(mask.shape, gamma * lam, dtype=torch.float64, device=mask.device)
    kept = kept.masked_fill(~mask, 1.0)  # the scan steps over what the policy did not write
    if ended is not None:
        kept = kept.masked_fill(ended, 0.0)
    return torch.where(mask, discounted_sum(torch.where(mask, delta, 0.0), kept), 0.0)


def discounted_sum(term: Tensor, kept: Tensor) -> Tensor:
    """S_t = term_t + kept_t S_{t+1} along the last axis, S = 0 after the last: [..., T], in about log2(T) passes.

    Each pass joins every run of terms with the run behind it, as in Hillis and Steele's parallel scan (1986), in float64.
    """
    total, factor = term.double(), kept.double()
    width, reach = term.shape[-1], 1
    while reach < width:
        near = factor[..., :-reach]
        total = torch.cat([total[..., :-reach] + near * total[..., reach:], total[..., -reach:]], -1)
        factor = torch.cat([near * factor[..., reach:], torch.zeros_like(factor[..., -reach:])], -1)
        reach *= 2
    return total.to(term.dtype)


def _carried_back(reward: Tensor, mask: Tensor) -> Tensor:
    """Rewards [R, T], each at the policy's last token at or before it; those before its first are nobody's."""
    place = mask.to(torch.int64).cumsum(1)  # of the written tokens: 1, 2, ...; 0 before the first
    sums = reward.new_zeros(len(reward), reward.shape[1] + 1).scatter_add_(1, place, reward)
    return torch.where(mask, sums.gather(1, place), 0.0)


def _following(value: Tensor, mask: Tensor) -> Tensor:
    """V at the policy's next token [R, T], 0 after its last."""
    width = value.shape[1]
    positions = torch.arange(width, device=value.device).expand_as(mask)
    onward = torch.where(mask, positions, width).flip(1).cummin(1).values.flip(1)  # the first written at or after
    padded = torch.nn.functional.pad(value, (0, 1))
    return padded.gather(1, torch.nn.functional.pad(onward, (0, 1), value=width)[:, 1:])


def return_to_go(batch: Batch, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each token on, [R, T], 0 where nothing is trained."""
    rewards = token_rewards(batch)
    return gae(rewards, torch.zeros_like(rewards), batch.mask, gamma, 1.0)


@dataclass(frozen=True)
class GAE(Part):
    """Advantage and returns [R, T] from the critic's values: returns = A + V, then A whitened over the batch's tokens.

    `lam` trades the critic's bias (0) against the variance of the whole return (1). `whiten` False leaves A as it is.
    The steps of an environment have the columns `ended` and `next_value`, which are read where they are there.
    """

    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    eps: float = 1e-8
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "old_value"})

    def __post_init__(self) -> None:
        check_within(self, 0, 1, "gamma", "lam")

    def describe(self) -> str:
        advantage = f"GAE(reward, old_value; gamma={self.gamma:g}, lam={self.lam:g})"
        return f"{advantage}, whitened over the batch's tokens" if self.whiten else advantage

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        steps = {name: getattr(batch, name) for name in ("ended", "next_value") if name in batch}
        advantage = gae(token_rewards(batch), batch.old_value, batch.mask, self.gamma, self.lam, **steps)
        returns = advantage + batch.old_value
        return {"advantage": whiten(batch, advantage, self.eps) if self.whiten else advantage, "returns": returns}
