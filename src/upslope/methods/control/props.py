"""PROPS: PPO whose data is played by a policy that makes up for what has been drawn too rarely, so that less of it is needed.

    theta, phi   the policy that is trained; the one that plays
    D            the last b = 2 rollouts, those of older theta included
    rho          pi_phi(a|s) / pi_theta(a|s) of what is in D, theta as it is now                                    [D]
    L(phi)       mean over D of max(rho, clip(rho, 0.7, 1.3)) + lambda KL(pi_theta || pi_phi)

Before every 16 steps: phi <- theta; 16 Adam steps down L, each over all of D, ended early once mean(rho - 1 - log rho) is
above 0.01. What D has already becomes less likely under phi, so that what it lacks is played; the clip holds where rho < 0.7.
After 2048 steps: ppo over all of D, as if theta had played it: old_logp, V and A anew, no correction.

Differs from ppo:  phi plays, and older rollouts are used again.
Limits:  behavior_epochs = 0 is ppo on the last b rollouts, with buffer = 1 ppo itself. One step of plain gradient descent without
    clip and KL is ROS: phi = theta - lr * mean over D of grad log pi_theta(a|s); `props@ros`.
Expects:  an environment, one copy or few: what copies play in the same step does not know of each other. The loss lowers the
    probability of the very actions in D, which a network spreads over states that are alike: small learning rates of theta, so
    that D stays near it.
Source:  Corrado and Hanna 2023 (arXiv:2311.08290); NicholasCorrado/PROPS, ppo_discrete.py and ppo_continuous.py. ROS: Zhong et
    al. 2022 (arXiv:2111.14552).
Deviations:  A is estimated for every rollout in D; the released loop covers the last only where b > 1. phi is set to theta and
    learns before the first step of a rollout, too, where theirs still plays with the phi of the theta before. Theirs divides D
    by max(|D| / minibatches, |D|), which is one mini-batch whatever `minibatches` says: behavior_minibatches = 1. Its defaults
    changed from version to version: update.minibatches = epochs = 4, 256 steps, behavior_epochs = 4, target 0.03 in the last.
Not this:  off-policy PPO, whose ratio has pi_phi below: here the ratio is pi_theta' / pi_theta whoever played.
Claim:  less sampling error than on-policy samples: yes in a table (21 against 33 thousandths of a nat after 512 steps of
    FrozenLake, twenty seeds); with a network, on CartPole, just unresolved for a policy that stays as it is (34 against 40), and
    none while PPO learns, nor a better return. Less than ROS: not in the table, yes where ROS takes large steps while PPO learns.
    docs/results/sampling_error.md
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from upslope.errors import UsageError
from upslope.methods.control.ppo import ppo, ppo_continuous
from upslope.parts.steps import Optimizer, Steps, StepUpdate
from upslope.recipe import Recipe
from upslope.registry import method, preset


@dataclass(frozen=True)
class AdaptiveSampling(Steps):
    """As Steps, played by a policy phi that is moved, from the trained one on, before every `every` steps of the copies.

    buffer                 rollouts that are kept, and used in each update
    behavior_clip          rho has no gradient below 1 - behavior_clip; .inf: no clip
    behavior_kl            lambda, of KL(pi_theta || pi_phi)
    behavior_target_kl     ends phi's epochs after the first whose mean of rho - 1 - log rho is above it; None: never
    behavior_epochs, behavior_minibatches, behavior_lr, behavior_kind, behavior_grad_clip    how phi learns; Adam's moments stay
    """

    environments: int = 1
    steps: int = 2048
    buffer: int = 2
    every: int = 16
    behavior_epochs: int = 16
    behavior_minibatches: int = 1
    behavior_lr: float = 1e-3
    behavior_kind: Literal["adam", "sgd"] = "adam"
    behavior_clip: float = 0.3
    behavior_kl: float = 0.0
    behavior_target_kl: float | None = 0.01
    behavior_grad_clip: float = 0.5
    formula: ClassVar[str] = (
        "{steps} steps of {environments} copies, the last {buffer} times, played by phi: before every {every} steps phi <- theta, "
        "then down mean max(rho, clip(rho, 1 -+ {behavior_clip:g}))"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("buffer", 1), ("every", 1), ("behavior_epochs", 0), ("behavior_minibatches", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"AdaptiveSampling.{name} is {getattr(self, name)}; it must be at least {least}.")
        for name in ("behavior_clip", "behavior_kl"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"AdaptiveSampling.{name} is {getattr(self, name)}; it must be at least 0.")
        if self.behavior_target_kl is not None and not self.behavior_target_kl > 0:
            raise UsageError(
                f"AdaptiveSampling.behavior_target_kl is {self.behavior_target_kl:g}; it must be above 0, or None."
            )

    def player(self, environments: Any, policy: Any, critic: Any) -> Any:
        """The one with phi."""
        from upslope.control.adaptive import AdaptivePlayer

        return AdaptivePlayer(environments, policy, critic, self)

    def behavior_optimizer(self) -> Optimizer:
        """phi's."""
        return Optimizer(lr=self.behavior_lr, kind=self.behavior_kind, grad_clip=self.behavior_grad_clip)

    def loss(self, log_ratio: Tensor) -> Tensor:
        """max(rho, clip(rho, 1 - clip, 1 + clip)), like log rho."""
        rho = log_ratio.exp()
        return rho.maximum(rho.clamp(1 - self.behavior_clip, 1 + self.behavior_clip))


@method(
    paper="2311.08290",
    title="On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling",
    parent="ppo",
)
def props() -> Recipe:
    return ppo().replace(
        rollout=AdaptiveSampling(),
        update=StepUpdate(minibatches=16, epochs=16, value_coefficient=0.5, target_kl=0.03),
        optimizer=Optimizer(lr=1e-3, eps=1e-5, grad_clip=0.5),
    )


@preset("continuous", version="NicholasCorrado/PROPS ppo_continuous.py, 12fa160")
def props_continuous() -> Recipe:
    return ppo_continuous().replace(
        rollout=AdaptiveSampling(buffer=1, every=8, behavior_target_kl=0.1),
        regularizer=ppo().regularizer,
        update=StepUpdate(minibatches=32, epochs=10, value_coefficient=0.5, target_kl=0.03),
        optimizer=Optimizer(lr=1e-3, eps=1e-5, grad_clip=0.5),
    )


@preset("ros", version="Zhong et al. 2022, algorithm 1")
def props_ros() -> Recipe:
    """One step of gradient descent, unclipped."""
    one = AdaptiveSampling(
        every=1,
        behavior_epochs=1,
        behavior_kind="sgd",
        behavior_lr=0.1,
        behavior_clip=math.inf,
        behavior_target_kl=None,
        behavior_grad_clip=math.inf,
    )
    return props().replace(rollout=one)
