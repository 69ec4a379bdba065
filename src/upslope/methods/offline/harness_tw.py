"""Trajectory weighting: any method for logs, on a log that is drawn from by how good its episodes are.

    G_i, T_i  return and length of episode i                                                                   [episodes]
    A_i       G_i - V(s_0^i),  V the linear regression of G on the first observation s_0                       [episodes]
    x_i       (A_i - min A) / (max A - min A)                                                                  [episodes]
    p         of a transition of episode i: exp(x_i / alpha) / sum over k of T_k exp(x_k / alpha);  alpha = 0.1

Differs from td3_bc:  how transitions are drawn, for critic and actor alike. For another method: selection=harness_tw.
Limits:  alpha -> infinity: uniform, td3_bc. alpha -> 0: the best episode alone. by="return" (x of G itself): a constant
    added to all G changes nothing.
Expects:  a log (--data) whose episodes differ in return; for the regression at least two more episodes than an
    observation has numbers. What is gained grows with the mean of max(G - mean G, 0)^2, which `upslope diagnose data` prints
    as PSV. Once it plays on, what is played and the log are drawn from alike; with data.log_share the log's share as before.
Source:  Hong et al. 2023 (arXiv:2306.13085), section 4; Improbable-AI/harness-offline-rl, implicit_q_learning/dataset_utils.py.
Deviations:  their copy for d3rlpy takes a softmax of raw returns and min-max after it; here the order of their iql copy.
    Drawn anew for every update; theirs are indices drawn in advance.
Not this:  a weight in the loss: it has the same mean, but leaves the critic as it is. Long episodes have more of the batch
    here: p is of transitions. Where rewards or dynamics are random, lucky episodes count for more than they should.
Claim:  above uniform draws where few episodes are good: reproduced on pendulum alone in the study "offline" (95 % random, 5 %
    expert; normalized score, difference paired by seed): pendulum 99 (+71.5 [+64.9, +76.7], 4 seeds); pointmaze 91 (+6.4
    [-3.2, +16.0], 4 seeds). Iql with this selection above iql: reproduced on pointmaze alone in the study "offline" (95 %
    random, 5 % expert; normalized score, difference paired by seed): pendulum 76 (-12.9 [-28.6, +3.8], 4 seeds); pointmaze 91
    (+11.2 [+9.2, +13.2], 4 seeds).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from upslope.actor_critic.log import Log
from upslope.actor_critic.recipe import ActorCritic
from upslope.errors import UsageError
from upslope.methods.offline.td3_bc import td3_bc
from upslope.recipe import Part
from upslope.registry import method


@dataclass(frozen=True)
class WeightedEpisodes(Part):
    """Weight exp((x - max x) / alpha) for each transition of an episode, as above; [episodes].

    by   "advantage": x of A; "return": x of G, without the regression
    """

    alpha: float = 0.1
    by: Literal["advantage", "return"] = "advantage"
    formula: ClassVar[str] = "transitions in proportion to exp(x / {alpha:g}), x the episode's {by} scaled to [0, 1]"

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise UsageError(f"selection.alpha is {self.alpha}; it must be above 0, .inf for uniform draws.")

    def __call__(self, log: Log) -> np.ndarray:
        quality = log.returns()
        size = float(np.abs(quality).max())
        if self.by == "advantage":
            quality = quality - self.expected(log.observation[log.first].astype(np.float64), quality)
        x = quality - quality.min()
        spread = float(x.max())
        # differences that are the rounding of rewards are none
        return np.exp((x / spread - 1.0) / self.alpha) if spread > 1e-6 * size else np.ones(len(x))

    def expected(self, first: np.ndarray, returns: np.ndarray) -> np.ndarray:
        """V(s_0) by least squares with an intercept: first [episodes, O], returns [episodes]."""
        if len(returns) < first.shape[1] + 2:
            raise UsageError(
                f"the log has {len(returns)} episodes, and a regression of returns on the {first.shape[1]} numbers of an "
                f"observation needs at least {first.shape[1] + 2}. Set selection.by=return."
            )
        moved = first - first.mean(0)
        slope = np.linalg.lstsq(moved, returns - returns.mean(), rcond=None)[0]
        found: np.ndarray = moved @ slope + returns.mean()
        return found


@method(
    paper="2306.13085",
    title="Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory Weighting",
    parent="td3_bc",
    aliases=("trajectory_weighting",),
)
def harness_tw() -> ActorCritic:
    return td3_bc().replace(selection=WeightedEpisodes())
