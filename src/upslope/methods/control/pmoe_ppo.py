"""PMOE on the host of PPO: a mixture of Gaussians, whose weights learn which component's actions a value network finds best.

    w, mu, sigma  softmax of K weights and K means of the network; a deviation for each component     [M, K], [M, K, A], [K, A]
    pi(a|s)       sum over k of w_k N(a; mu_k, sigma_k^2): logp, old_logp and r are the whole mixture's                    [M]
    Q(s, a)       a network with an optimizer of its own, by half the mean of (Q(s, a) - returns)^2, returns as ppo's V has
    k*            argmax_k Q(s, a_k), a_k drawn from every component, without gradient                                     [M]
    loss          ppo's + mean over the mini-batch and K of (w_k - 1[k = k*])^2

Differs from ppo:  the mixture; the frequency loss, whose gradient reaches w alone; Q.
Limits:  one component is ppo: w = 1, and the frequency loss is 0. On the host of SAC: pmoe.
Expects:  continuous actions. The mixture's entropy has no closed form: no entropy bonus. pmoe_ppo@continuous has normalised
    observations, scaled rewards and the numbers of ppo@continuous, which the authors' code has, too.
Source:  Ren et al. 2021 (arXiv:2104.09122); quantumiracle/Popular-RL-Algorithms, pmoe_ppo.py (a co-author's).
Deviations:  the code's log-prob is of every component and not of the mixture, which its own comment questions; this is the paper's.
    It has one optimizer and one gradient norm for policy, critic and Q, which would let Q scale the policy's step; here Q has its
    own, so that one component is ppo itself. Weights are of the last hidden layer; theirs of the observation alone. Components
    start apart: their means between -1 and 1.
Not this:  options: a component is drawn anew at every step. A mixture without the frequency loss: ppo@continuous with
    policy.components=4.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from upslope.methods.control.ppo import ppo, ppo_continuous
from upslope.parts.network import MLP
from upslope.parts.routing import Frequency
from upslope.parts.steps import Optimizer
from upslope.recipe import Recipe
from upslope.registry import method, preset


@dataclass(frozen=True)
class RankingOptimizer(Optimizer):
    """As Optimizer, with Q, which ranks the components' actions, beside policy and critic: as many steps, at the same rate."""

    makes: ClassVar[frozenset[str]] = frozenset({"component_weight", "best_component"})

    def updater(self) -> Any:
        """The one with Q."""
        from upslope.control.ranking import RankingUpdater

        return RankingUpdater


@method(
    paper="2104.09122",
    title="Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning",
    parent="ppo",
)
def pmoe_ppo() -> Recipe:
    return _routed(ppo())


@preset("continuous", version="cleanrl ppo_continuous_action.py, fe8d8a0, with the mixture")
def pmoe_ppo_continuous() -> Recipe:
    return _routed(ppo_continuous())


def _routed(host: Recipe) -> Recipe:
    network, optimizer = host.policy, host.optimizer
    assert isinstance(network, MLP)
    assert isinstance(optimizer, Optimizer)
    return host.replace(
        policy=replace(network, components=5),
        regularizer=Frequency(),
        optimizer=RankingOptimizer(**vars(optimizer)),
    )
