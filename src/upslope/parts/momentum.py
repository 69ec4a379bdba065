"""Momentum for policy gradients, and how an old gradient is carried over to where the policy is now, as settings."""

from dataclasses import dataclass
from typing import Any, ClassVar

from upslope.errors import UsageError
from upslope.parts.optimizing import Optimizing
from upslope.parts.steps import Optimizer


@dataclass(frozen=True)
class GradientMomentum(Optimizing):
    """d_t = (1 - eta_t) d_{t-1} + eta_t g_t,   theta_{t+1} = theta_t + lr_t d_t / |d_t|,   t = 0, 1, ...

        eta_t = min(1, eta (2 / (t + 2))^eta_decay),   lr_t = lr (2 / (t + 2))^lr_decay,   d_0 = g_0

    g is the gradient of the objective, from what is played for this one step; there is no clipping. eta = 1 with eta_decay = 0
    forgets the past: the policy gradient. `normalized` False leaves the norm of d in the step.
    """

    lr: float = 0.1
    lr_decay: float = 1.0
    eta: float = 1.0
    eta_decay: float = 0.8
    normalized: bool = True
    formula: ClassVar[str] = "momentum, eta {eta} (2 / (t + 2))^{eta_decay}"

    def __post_init__(self) -> None:
        who = type(self).__name__
        for name in ("lr", "lr_decay", "eta_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{who}.{name} is {getattr(self, name):g}; it must be a finite number of at least 0.")
        if not 0 < self.eta < float("inf"):
            raise UsageError(f"{who}.eta is {self.eta:g}; it must be a finite number above 0, such as 1.")

    def eta_at(self, t: int) -> float:
        """The share of the new gradient in step t, from 0."""
        return min(1.0, self.eta * (2 / (t + 2)) ** self.eta_decay) if t else 1.0

    def lr_at(self, t: int) -> float:
        """The length of step t, or what d is multiplied by."""
        return self.lr * float((2 / (t + 2)) ** self.lr_decay)

    def updater(self) -> Any:
        from upslope.control.momentum import MomentumUpdater

        return MomentumUpdater

    def learner(self) -> Any:
        """The class that takes the steps, made of (parameters, this part)."""
        from upslope.control.momentum import MomentumLearner

        return MomentumLearner

    def for_critic(self) -> Optimizer:
        return Optimizer(lr=1e-3, eps=1e-8, grad_clip=float("inf"))


@dataclass(frozen=True)
class LookAhead(GradientMomentum):
    """The same with implicit gradient transport: g_t is that at, and from episodes played at, the look-ahead parameters

        theta~_t = theta_t + min((1 - eta_t) / eta_t, look_ahead) (theta_t - theta_{t-1})

    so that the old d, on average the gradient where it was made, is that of theta_t together with it, where the gradient
    changes linearly. Source: Cutkosky and Mehta 2020 (arXiv:2002.03305).
    """

    look_ahead: float = 1000.0
    formula: ClassVar[str] = "momentum with look-ahead, eta {eta} (2 / (t + 2))^{eta_decay}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.look_ahead >= 0:
            raise UsageError(f"LookAhead.look_ahead is {self.look_ahead:g}; it must be at least 0, e.g. 1000.")

    def learner(self) -> Any:
        from upslope.control.momentum import LookAheadLearner

        return LookAheadLearner


@dataclass(frozen=True)
class HessianMomentum(GradientMomentum):
    """The same with the change of the gradient estimated, from a second batch of episodes each step:

        theta^ = q theta_t + (1 - q) theta_{t-1},  q uniform in [0, 1];   d_t = (1 - eta_t)(d_{t-1} + v_t) + eta_t g_t
        v_t = B (theta_t - theta_{t-1}),   B = mean over episodes played at theta^ of
              grad Phi (sum over steps of grad logp)^T + Hessian of Phi,   Phi the objective's share of the episode

    B's expectation is the Hessian of the expected return; products with it are made by differentiating twice, no matrix is
    formed. As many episodes are played at theta^ as the rollout says for theta_t.
    """

    formula: ClassVar[str] = "momentum with Hessian products, eta {eta} (2 / (t + 2))^{eta_decay}"

    def learner(self) -> Any:
        from upslope.control.momentum import HessianLearner

        return HessianLearner
