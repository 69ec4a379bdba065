"""AWR: the likelihood of logged actions, weighted by how much more than expected followed them; no critic of actions.

    R_t      r_t + gamma ((1 - lambda) V(s_t+1) + lambda R_t+1);  after an episode's last step V alone, 0 if it ended for good  [n]
    A        R - V(s);  less its mean over the whole log, over its standard deviation + 1e-5                           [n]
    V        mean (V(s) - R)^2                                                                                         [B]
    actor    - mean of w log pi(a|s),  w = min(exp(A / T), 20);  T = 1, lambda = 0.95                                  [B]
    pi       N(tanh(mu(s)), 0.2^2)

Differs from awac:  R in place of Q, so no critic and no target networks; A is standardized; the largest weight.
Limits:  T -> infinity (weight.beta -> 0) is bc by likelihood. lambda = 1: R is Monte Carlo. relabel.normalize=false is the
    paper's A.
Expects:  a log (--data) of whole episodes in the order of their steps.
Source:  Peng et al. 2019 (arXiv:1910.00177); xbpeng/awr, learning/awr_agent.py, which standardizes A; the paper's equation
    does not.
Deviations:  learns from a log alone. R and A are made anew every 200 updates, in which V and the actor learn side by side
    (theirs: 500 of V, then 1000 of the actor). Adam in place of SGD with momentum, V is not normalized; the mean is bounded
    by tanh and not by a loss on what lies outside.
Not this:  marwil, whose scale of A is a running average.
Claim:  above bc: reproduced in the study "offline" (medium-replay; normalized score, difference paired by seed): pendulum 26
    (+38.0 [+35.7, +40.3], 4 seeds); pointmaze 46 (+55.2 [+36.7, +66.6], 4 seeds).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from upslope.actor_critic.actors import Exponential
from upslope.actor_critic.minibatch import Minibatch
from upslope.actor_critic.networks import EnsembleNetwork
from upslope.actor_critic.policies import BOUNDED
from upslope.actor_critic.recipe import ActorCritic
from upslope.actor_critic.relabel import LambdaReturns
from upslope.methods.offline.awac import awac
from upslope.recipe import Part
from upslope.registry import method


@dataclass(frozen=True)
class ReturnRegression(Part):
    """V's loss: mean (V(s) - R)^2, R from the stage `relabel`. `hidden` are the layers of V's network."""

    hidden: tuple[int, ...] = (256, 256)
    needs: ClassVar[frozenset[str]] = frozenset({"lambda_return"})
    formula: ClassVar[str] = "mean (V(s) - R)^2"

    def build(self, inputs: int) -> EnsembleNetwork:
        """V's network."""
        return EnsembleNetwork(inputs, 1, self.hidden)

    def __call__(self, m: Minibatch) -> Tensor:
        return (m.value(m.observation) - m.column("lambda_return")).square().mean()


@dataclass(frozen=True)
class LoggedAdvantage(Part):
    """A [B], from the stage `relabel`."""

    needs: ClassVar[frozenset[str]] = frozenset({"advantage"})
    formula: ClassVar[str] = "R - V(s), of the whole log"

    def __call__(self, m: Minibatch) -> Tensor:
        return m.column("advantage")


@method(
    paper="1910.00177",
    title="Advantage-Weighted Regression: Simple and Scalable Off-Policy Reinforcement Learning",
    parent="awac",
)
def awr() -> ActorCritic:
    fixed = math.log(0.2)
    return awac().replace(
        policy=replace(BOUNDED, log_std_init=fixed, log_std_low=fixed - 1e-6, log_std_high=fixed + 1e-6),
        critic=None,
        ensemble=None,
        target=None,
        regression=None,
        targets=None,
        value=ReturnRegression(),
        relabel=LambdaReturns(),
        advantage=LoggedAdvantage(),
        weight=Exponential(beta=1.0, largest=20.0),
    )
