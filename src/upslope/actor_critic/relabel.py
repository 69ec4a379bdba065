"""Columns of a whole log that are computed anew as V changes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from upslope.actor_critic.learner import Learner
from upslope.actor_critic.replay import Replay
from upslope.errors import UsageError
from upslope.parts.gae import gae
from upslope.recipe import Part

CHUNK = 8192  # observations whose V is asked for at once


@dataclass(frozen=True)
class LambdaReturns(Part):
    """After every `every` updates, and at the start of each step of the run, for all n transitions of the log in order:

    R_t          r_t + discount ((1 - lam) V(s_t+1) + lam R_t+1); after an episode's last step V alone, 0 where it ended for good
    advantage    R - V(s); where `normalize`, less its mean over the log, over its deviation (n, not n - 1) + 1e-5
    """

    lam: float = 0.95
    discount: float = 0.99
    normalize: bool = True
    every: int = 200
    reads_value: ClassVar[bool] = True
    makes: ClassVar[frozenset[str]] = frozenset({"lambda_return", "advantage"})
    formula: ClassVar[str] = (
        "R = r + {discount:g} ((1 - {lam:g}) V' + {lam:g} R'), A = R - V, anew every {every} updates"
    )

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"relabel.every is {self.every}; it must be at least 1.")
        for name in ("lam", "discount"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"relabel.{name} is {getattr(self, name)}; it must be from 0 to 1.")

    def __call__(self, reward: Tensor, ended: Tensor, value: Tensor, next_value: Tensor) -> dict[str, Tensor]:
        """All [n]: `ended` bool at an episode's last step, `next_value` 0 where nothing comes after. Returns columns [n]."""
        everywhere = torch.ones_like(ended)[None]
        advantage = gae(
            reward[None],
            value[None],
            everywhere,
            self.discount,
            self.lam,
            ended=ended[None],
            next_value=next_value[None],
        )[0]
        returns = advantage + value
        if self.normalize:
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-5)
        return {"lambda_return": returns, "advantage": advantage}


@torch.no_grad()
def relabel_log(part: Any, learner: Learner, log: Replay) -> None:
    """Writes the part's columns to all rows of a log, which stand in the order of their steps."""
    rows, columns = log.rows[: len(log)], learner.columns
    value, following = list[Tensor](), list[Tensor]()
    network = learner.networks.value
    assert network is not None
    for chunk in rows.split(CHUNK):
        seen = learner.scaled(chunk)
        for name, found in (("observation", value), ("next_observation", following)):
            first, last = columns[name]
            found.append(network(seen[:, first:last])[0])
    place = {name: first for name, (first, _) in columns.items()}
    terminated = rows[:, place["terminated"]] > 0
    ended = terminated | (rows[:, place["truncated"]] > 0)
    ended[-1] = True
    reward = rows[:, place["reward"]]
    if learner.scale is not None:
        offset, factor = (column[place["reward"]] for column in learner.scale)
        reward = offset + reward * factor
    made = part(reward, ended, torch.cat(value), torch.cat(following).masked_fill(terminated, 0.0))
    for name, column in made.items():
        if name in place:
            rows[:, place[name]] = column
