"""Scales: advantages of a mini-batch, rewards by the running spread of the discounted return."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.parts.gae import discounted_sum
from upslope.policies.moments import Moments
from upslope.recipe import Part, State


@dataclass(frozen=True)
class NormalizedAdvantage(Part):
    """Each mini-batch's advantages less their mean, over (std + eps), std with n - 1: (A - mean) / (std + eps).

    A mini-batch of one transition is left as it is. Source: Engstrom et al. 2020 (arXiv:2005.12729); baselines' ppo2.
    """

    eps: float = 1e-8
    formula: ClassVar[str] = "A <- (A - mean) / (std + {eps})"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage"})
    makes: ClassVar[frozenset[str]] = frozenset({"advantage"})

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        if (batch.mask.numel() if batch.complete else int(batch.mask.sum())) < 2:
            return {"advantage": batch.advantage}
        if batch.complete:
            std, mean = torch.std_mean(batch.advantage)
            return {"advantage": (batch.advantage - mean) / (std + self.eps)}
        centered = batch.advantage - batch.masked_mean(batch.advantage)
        return {"advantage": torch.where(batch.mask, centered / (batch.masked_std(batch.advantage) + self.eps), 0.0)}


@dataclass(frozen=True)
class ScaledReward(Part):
    """Rewards [N, S] over the running std of the discounted return of their copy, cut to +- `clip`.

        G_t = gamma G_{t-1} + r_t, anew in every episode;   r <- clip(r / sqrt(var(G) + eps))

    var is over all G so far, those of this step included. Not centred: that would change what is optimal. Where there is a
    column `fresh`, rows that are not were counted when they were: they are divided by the std of now, as all are.
    Source: Engstrom et al. 2020 (arXiv:2005.12729), section 3; baselines' VecNormalize.
    """

    gamma: float = 0.99
    clip: float = 10.0
    eps: float = 1e-8
    formula: ClassVar[str] = "reward / std of the discounted return, within -+{clip}"
    needs: ClassVar[frozenset[str]] = frozenset({"token_reward", "ended"})
    stateful: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UsageError(f"ScaledReward.gamma is {self.gamma:g}; it must be from 0 to 1.")

    def init(self) -> State:
        return {"moments": Moments(1).state_dict(), "running": []}

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        every, last = batch.token_reward.double(), batch.ended
        fresh = batch.fresh if "fresh" in batch else torch.ones(len(every), dtype=torch.bool)
        reward, ended = every[fresh], last[fresh]
        running = torch.tensor(state["running"] or [0.0] * len(reward), dtype=torch.float64)
        anew = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)  # the step before was an episode's last
        kept = torch.full_like(reward, self.gamma).masked_fill(anew, 0.0)
        first = reward.clone()
        first[:, 0] += self.gamma * running
        found = discounted_sum(first.flip(1), kept.flip(1)).flip(1)
        moments = Moments(1)
        moments.load_state_dict(state["moments"])
        moments.update(found[batch.mask[fresh]].unsqueeze(1))
        following: dict[str, Any] = {"moments": moments.state_dict()}
        following["running"] = torch.where(ended[:, -1], 0.0, found[:, -1]).tolist()
        scaled = (every / (moments.variance + self.eps).sqrt()).clamp(-self.clip, self.clip)
        return scaled.to(batch.token_reward.dtype), following
