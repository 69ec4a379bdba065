"""A2PR: TD3+BC that keeps near the better of the logged action and one that a generator of good actions proposes.

    y        as td3's, at a' = pi'(s') + noise;  y2 = r + gamma (1 - d) min_j Q_j(s', a') of the critics just updated         [B]
    V        mean (V(s) - min(y, y2))^2
    VAE      (rec, m, sd) of (s, a);  mean over B and A of 1[Q_1(s, a) > V(s)] (rec - a)^2
             - 1/4 mean over B and latent dimensions of (1 + log sd^2 - m^2 - sd^2)
    rec      the VAE's output for (s, pi(s));  A_rec = Q_1(s, rec) - V(s),  A_log = Q_1(s, a) - V(s)
    e, k     rec where A_rec >= A_log, else a;  1 where A_rec >= 0 or A_log > 0, else 0                                      [B]
    actor    - lambda mean Q_1(s, pi(s)) + mean over B and A of k (pi(s) - e)^2,  lambda = 2.5 / mean |Q_1(s, pi(s))|

Differs from td3_bc:  e in place of the logged action, and k; V and the VAE beside it.
Limits:  rec = a and k = 1 is td3_bc.
Expects:  a log (--data) of mixed quality: k = 0 where both actions are worse than V. The VAE's two layers of 750 are most of the
    time that an update takes; proposer.hidden=[256,256] is several times faster.
Source:  Liu et al. 2024 (arXiv:2405.19909); ltlhuuu/A2PR, A2PR.py.
Deviations:  V is asked after its step; theirs before it. Standardized as td3_bc's. The authors set alpha = 40 on halfcheetah,
    behavior.mask = 0.4 on hopper-medium, proposer.weight = 1.5 on walker2d-medium.
Not this:  bcq, whose generator proposes the actions that are played. The gradient of (pi - e)^2 also goes through rec into pi.
Claim:  above td3_bc: reproduced in the study "offline" (medium-replay; normalized score, difference paired by seed): pendulum
    94 (+101.7 [+98.5, +104.1], 4 seeds); pointmaze 64 (+20.0 [+12.3, +27.8], 4 seeds).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from upslope.actor_critic.actors import ScaledCloning
from upslope.actor_critic.losses import bootstrap, lowest
from upslope.actor_critic.minibatch import Minibatch
from upslope.actor_critic.networks import EnsembleNetwork
from upslope.actor_critic.recipe import ActorCritic
from upslope.errors import UsageError, check_within
from upslope.methods.offline.td3_bc import td3_bc
from upslope.recipe import Part
from upslope.registry import method


@dataclass(frozen=True)
class LowerTarget(Part):
    """V's loss: mean (V(s) - min(y, y2))^2, after the critics' step. `hidden` are the layers of V's network."""

    hidden: tuple[int, ...] = (256, 256)
    after_critic: ClassVar[bool] = True
    reads_critic: ClassVar[bool] = True
    reads_target_policy: ClassVar[bool] = True
    formula: ClassVar[str] = "mean (V(s) - min(y, r + gamma (1 - d) min_j Q_j(s', a')))^2"

    def build(self, inputs: int) -> EnsembleNetwork:
        """V's network."""
        return EnsembleNetwork(inputs, 1, self.hidden)

    def __call__(self, m: Minibatch) -> Tensor:
        if m.target is None or m.target_action is None:
            raise UsageError(
                "LowerTarget asks the critics about the target's a', which only SmoothedTarget keeps. Take it as target."
            )
        with torch.no_grad():
            following = lowest(m.q(m.next_observation, m.target_action))
            target = torch.minimum(m.target, bootstrap(m.reward, m.terminated, following, m.discount))
        return (m.value(m.observation) - target).square().mean()


class ActionVAE(nn.Module):
    """Conditional variational autoencoder of actions in [-1, 1] (Kingma and Welling 2014); relu, two layers each way."""

    def __init__(self, observation: int, action: int, latent: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = _layers(observation + action, hidden, 2 * latent)
        self.decoder = _layers(observation + latent, hidden, action)

    def forward(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(rec [B, A], mean [B, L], log deviation [B, L]) with one draw of the latent."""
        mean, log_std = self.encoder(torch.cat([observation, action], -1)).chunk(2, -1)
        log_std = log_std.clamp(-4.0, 15.0)
        latent = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
        return self.decoder(torch.cat([observation, latent], -1)).tanh(), mean, log_std


def _layers(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


@dataclass(frozen=True)
class GoodActions(Part):
    """The VAE's loss, over actions that Q_1 finds better than V. `latent` dimensions per entry of an action; `lr` is Adam's."""

    weight: float = 1.0
    latent: int = 2
    hidden: tuple[int, ...] = (750, 750)
    lr: float = 1e-3
    reads_critic: ClassVar[bool] = True
    reads_value: ClassVar[bool] = True
    reads_log: ClassVar[bool] = True
    formula: ClassVar[str] = "{weight:g} mean 1[Q_1(s, a) > V(s)] (rec - a)^2 - 1/4 mean (1 + log sd^2 - m^2 - sd^2)"

    def __post_init__(self) -> None:
        check_within(self, 0, float("inf"), "weight")
        if self.latent < 1 or not self.hidden or min(self.hidden) < 1 or not self.lr > 0:
            raise UsageError(
                f"proposer.latent={self.latent}, hidden={list(self.hidden)} and lr={self.lr:g} must all be above 0."
            )

    def build(self, observation: int, action: int) -> ActionVAE:
        """The network."""
        return ActionVAE(observation, action, self.latent * action, self.hidden)

    def __call__(self, m: Minibatch) -> Tensor:
        found, mean, log_std = m.networks.proposer(m.observation, m.action, m.generator)
        with torch.no_grad():
            good = m.q(m.observation, m.action, members=(0,))[0] > m.value(m.observation)
        apart = (self.weight * good.to(found.dtype).unsqueeze(-1) * (found - m.action).square()).mean()
        return apart - 0.25 * (1.0 + 2.0 * log_std - mean.square() - (2.0 * log_std).exp()).mean()


@dataclass(frozen=True)
class GuidedCloning(ScaledCloning):
    """lambda * objective + mask * mean over B and A of k (pi(s) - e)^2, as above."""

    mask: float = 1.0
    reads_critic: ClassVar[bool] = True
    reads_value: ClassVar[bool] = True
    reads_proposer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(self, 0, float("inf"), "mask")

    def toward(self, m: Minibatch) -> tuple[Tensor, Tensor]:
        proposed, _, _ = m.networks.proposer(m.observation, m.sample()[0], m.generator)
        with torch.no_grad():
            value = m.value(m.observation)
            by_proposal = m.q(m.observation, proposed, members=(0,))[0] - value
            by_log = m.q(m.observation, m.action, members=(0,))[0] - value
        kept = self.mask * ((by_proposal >= 0) | (by_log > 0)).to(proposed.dtype)
        return torch.where((by_proposal >= by_log).unsqueeze(-1), proposed, m.action), kept

    def describe(self) -> str:
        return super().describe() + f", times {self.mask:g} k, a the better of the log's and the proposed"


@method(
    paper="2405.19909",
    title="Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning",
    parent="td3_bc",
)
def a2pr() -> ActorCritic:
    return td3_bc().replace(value=LowerTarget(), proposer=GoodActions(), behavior=GuidedCloning())
