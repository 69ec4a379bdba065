"""%BC: behaviour cloning of the log's best episodes alone.

    R_i      sum over t of gamma^t r_t of episode i;  gamma = 0.99                                             [episodes]
    kept     the floor(share N) episodes with the largest R, at least one;  share = 0.1
    loss     mean over B and A of (mu(s) - a)^2, transitions of the kept ones alone                                [B, A]

Differs from bc:  the transitions, and with them the mean and variance that standardize observations.
Limits:  share = 1 is bc. A share that keeps one episode is harness_tw's limit alpha -> 0 on bc.
Expects:  a log (--data) with episodes that differ in return. Equal returns: those that come first are kept.
Source:  corl-team/CORL, algorithms/offline/any_percent_bc.py, keep_best_trajectories; the name is that of Chen et al. 2021.
Deviations:  CORL ends episodes where they terminate or are of the greatest length; here where the log says so. As bc, standardized
    over sqrt(variance + 1e-8).
Not this:  the best share of transitions; and as a choice for other methods it is selection=percent_bc.
Claim:  above bc: reproduced in the study "offline" (medium-replay; normalized score, difference paired by seed): pendulum 15
    (+24.9 [+22.5, +26.1], 4 seeds); pointmaze 49 (+50.9 [+46.3, +57.4], 4 seeds).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from upslope.actor_critic.log import Log
from upslope.actor_critic.recipe import ActorCritic
from upslope.errors import UsageError
from upslope.methods.offline.bc import bc
from upslope.recipe import Part
from upslope.registry import method


@dataclass(frozen=True)
class BestEpisodes(Part):
    """Weight 1 for the `share` of episodes with the largest discounted returns, 0 for the others; [episodes]."""

    share: float = 0.1
    discount: float = 0.99
    formula: ClassVar[str] = "the {share:.0%} of episodes with the largest returns, discount {discount:g}"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(
                f"selection.share is {self.share}; it must be above 0 and at most 1, which is all episodes."
            )

    def __call__(self, log: Log) -> np.ndarray:
        returns = log.return_to_go(self.discount)[log.first]
        # a product such as 0.7 * 10 is 6.999...: it means 7
        count = max(1, int(np.floor(self.share * len(returns) + 1e-9)))
        weight = np.zeros(len(returns))
        weight[np.argsort(-returns, kind="stable")[:count]] = 1.0
        return weight


@method(paper="2106.01345", title="Decision Transformer: Reinforcement Learning via Sequence Modeling", parent="bc")
def percent_bc() -> ActorCritic:
    return bc().replace(selection=BestEpisodes())
