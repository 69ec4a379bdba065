"""PRDC: TD3+BC that keeps to the logged action nearest to the policy's own, in a state like this one, not to this state's.

    z_i      (beta s_i, a_i) of every logged transition, s standardized;  beta = 2                                [n, O + A]
    i*       argmin over i of | (beta s, pi(s)) - z_i |, exactly                                                         [B]
    lambda   alpha / mean |Q_1(s, pi(s))|, without gradient;  alpha = 2.5
    actor    - lambda mean Q_1(s, pi(s)) + mean over B and A of (pi(s) - a_i*)^2, a_i* without gradient

Differs from td3_bc:  the action that the actor is kept near.
Limits:  beta -> infinity is td3_bc, where logged states are distinct. beta -> 0: the nearest action of the whole log.
Expects:  a log (--data). A search tree of all of it is built once: of 200,000 transitions with 23 numbers in a quarter of a
    second; above about 20 numbers a search reads a growing part of it.
Source:  Ran et al. 2023 (arXiv:2306.06569); LAMDA-RL/PRDC, prdc.py and main.py.
Deviations:  the settings are those of most tasks: alpha = 40 on halfcheetah, 7.5 with beta = 7.5 and rewards times 10,000 less 1
    on antmaze. Once it plays on, the tree stays the log's. Standardized as td3_bc's.
Not this:  a2pr, which asks the critic which action is the better one.
Claim:  above td3_bc: reproduced in the study "offline" (medium-replay; normalized score, difference paired by seed): pendulum
    100 (+106.7 [+102.9, +110.1], 4 seeds); pointmaze 62 (+13.2 [+6.8, +19.3], 4 seeds).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from upslope.actor_critic.actors import ScaledCloning
from upslope.actor_critic.minibatch import Minibatch
from upslope.actor_critic.recipe import ActorCritic
from upslope.errors import check_within
from upslope.methods.offline.td3_bc import td3_bc
from upslope.registry import method


@dataclass(frozen=True)
class NearestCloning(ScaledCloning):
    """As ScaledCloning, with the nearest logged action in place of the stored one."""

    beta: float = 2.0
    reads_index: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(self, 0, float("inf"), "beta")

    def index(self, observation: Tensor, action: Tensor) -> tuple[Any, Tensor]:
        """The search tree of all logged (beta s, a), and the actions [n, A]."""
        return cKDTree(self.keys(observation, action)), action.clone()

    def keys(self, observation: Tensor, action: Tensor) -> np.ndarray:
        """(beta s, a), [B, O + A]."""
        return torch.cat([self.beta * observation, action], -1).numpy()

    def toward(self, m: Minibatch) -> tuple[Tensor, None]:
        tree, actions = m.networks.index
        # a policy that has diverged is named by the loop, not by the search
        keys = np.nan_to_num(self.keys(m.observation, m.sample()[0].detach()))
        _, nearest = tree.query(keys, workers=1)
        return actions[torch.from_numpy(np.asarray(nearest, dtype=np.int64))], None

    def describe(self) -> str:
        return super().describe() + f", a the nearest of the log by ({self.beta:g} s, a)"


@method(
    paper="2306.06569",
    title="Policy Regularization with Dataset Constraint for Offline Reinforcement Learning",
    parent="td3_bc",
)
def prdc() -> ActorCritic:
    return td3_bc().replace(behavior=NearestCloning())
