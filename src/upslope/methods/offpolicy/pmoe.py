"""PMOE: SAC with a mixture of Gaussians, of which in each state only the component with the best action learns.

    w, mu, sigma  softmax of K weights, K means and deviations of the network                     [B, K], [B, K, A], [B, K, A]
    a_k           tanh(mu_k + sigma_k noise) of every component, log pi_k its log-prob under that one alone       [B, K, A], [B, K]
    k*            argmax_k min_j Q_j(s, a_k), without gradient                                                             [B]
    actor         mean of alpha log pi_k*(a_k*|s) - min_j Q_j(s, a_k*)  +  mean over B and K of (w_k - 1[k = k*])^2
    y             r + gamma (1 - d) (min_j Q'_j(s', a'_k) - alpha log pi_k(a'_k|s')),  k ~ w(s')                           [B]
    played        a_k, k ~ w(s); in evaluation tanh(mu_k) of the largest w_k

Differs from sac:  the mixture; the actor's and the target's action and log-prob, which the temperature follows, are a component's;
    the last summand, the frequency loss, whose gradient reaches w alone.
Limits:  one component is sac: w = 1, and the frequency loss is 0.
Expects:  as sac. Several ways to act that are as good: a mixture has no use where one is best. A component that is nowhere the
    best learns nothing. An update asks the critics for K more actions.
Source:  Ren et al. 2021 (arXiv:2104.09122); quantumiracle/Popular-RL-Algorithms, pmoe_sac.py (a co-author's), whose networks and
    rates are pmoe@released.
Deviations:  the weights are of the last hidden layer, as the paper's; the code's are of the observation alone. The code divides
    rewards by their spread in the batch, times 10; here they are as they are. Components start apart: their means between -1
    and 1.
Not this:  the mixture's own entropy and gradient, which the components=K of any policy has: sac with policy.components=4.
Claim:  distinguishable components, of two goals that are as good one each, where SAC goes for one: not reproduced. On TwoGoals-v0
    all four go for the same goal in each of five seeds, as SAC does. docs/results/two_goals.md
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from upslope.actor_critic.actors import MaximizeQ
from upslope.actor_critic.critics import Critics, SoftTarget
from upslope.actor_critic.data import Average, Transitions
from upslope.actor_critic.minibatch import Minibatch
from upslope.actor_critic.policies import ACTOR
from upslope.actor_critic.recipe import ActorCritic
from upslope.errors import check_within
from upslope.methods.offpolicy.sac import sac
from upslope.parts.routing import best_component, frequency_loss, pick
from upslope.policies.distributions import Categorical, Mixture
from upslope.registry import method, preset


@dataclass(frozen=True)
class BestComponent(MaximizeQ):
    """alpha log pi_k* - Q of the best component's action, and `router` times the frequency loss."""

    router: float = 1.0

    def __post_init__(self) -> None:
        check_within(self, 0, float("inf"), "router")

    def __call__(self, m: Minibatch) -> Tensor:
        mixture = Mixture.of(m.networks.policy.distribution(m.observation))
        action, logp = mixture.draw_each(m.generator)
        best = self.best(m, action)
        m.settle(pick(action, best), pick(logp, best))
        frequency = frequency_loss(mixture.logits.softmax(-1), best).mean()
        return super().__call__(m) + self.router * frequency

    @torch.no_grad()
    def best(self, m: Minibatch, action: Tensor) -> Tensor:
        """k* [B] of actions [B, K, A]."""
        rows, count, size = action.shape
        if count == 1:
            return torch.zeros(rows, dtype=torch.int64)
        value = self.value(m, m.observation.repeat_interleave(count, 0), action.reshape(-1, size))
        return best_component(value.view(rows, count))

    def describe(self) -> str:
        text = super().describe().replace("pi(a|s)", "pi_k(a|s)").replace("a ~ pi(.|s)", "a ~ pi_k(.|s) of the best k")
        return f"{text}  + {self.router:g} mean (w_k - 1[k best])^2"


@dataclass(frozen=True)
class ComponentTarget(SoftTarget):
    """As SoftTarget, a' and its log-prob of a component that is drawn by its weight."""

    def next_action(self, m: Minibatch) -> tuple[Tensor, Tensor]:
        mixture = Mixture.of(m.networks.policy.distribution(m.next_observation))
        action, logp = mixture.draw_each(m.generator)
        if action.shape[-2] == 1:
            return action[:, 0], logp[:, 0]
        choice = Categorical(mixture.logits)
        chosen = choice.draw(choice.noise(m.generator))
        return pick(action, chosen), pick(logp, chosen)

    def describe(self) -> str:
        return super().describe().replace("pi(a'|s')", "pi_k(a'|s')").replace("~ pi(.|s')", "~ pi_k(.|s'), k ~ w(s')")


@method(
    paper="2104.09122",
    title="Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning",
    parent="sac",
)
def pmoe() -> ActorCritic:
    return sac().replace(policy=replace(ACTOR, components=4), target=ComponentTarget(), actor=BestComponent())


@preset("released", version="quantumiracle/Popular-RL-Algorithms pmoe_sac.py, 56f0160")
def pmoe_released() -> ActorCritic:
    return pmoe().replace(
        data=Transitions(batch_size=300),
        policy=replace(ACTOR, components=2, hidden=(512,) * 4),
        critic=Critics(hidden=(512,) * 3),
        targets=Average(rate=0.01),
    )
