"""Steps along the natural gradient: where a policy goes for a given change of what it does, as settings."""

from dataclasses import dataclass
from typing import Any, ClassVar

from upslope.errors import UsageError
from upslope.parts.optimizing import Optimizing
from upslope.parts.steps import Optimizer


@dataclass(frozen=True)
class NaturalGradient(Optimizing):
    """theta <- theta + a x,  F x = g by conjugate gradients,  a = sqrt(2 max_kl / (x F x)).

    g is the gradient of the objective; F the Hessian of the mean of KL(old || new) over the states played, which at the old
    parameters is the Fisher matrix, plus `damping` times the identity. Products with F are made by differentiating twice:
    no matrix is ever formed.

    max_kl      of a quadratic model of the mean KL, in nats: what the step's length is chosen by
    damping     keeps F away from singular, and the step off directions that the states played say nothing about
    iterations  of the conjugate gradients at most; they end before where |F x - g|^2 falls below `tolerance`
    critic_lr   of the critic's Adam
    """

    max_kl: float = 0.01
    damping: float = 0.1
    iterations: int = 10
    tolerance: float = 1e-10
    critic_lr: float = 1e-3
    formula: ClassVar[str] = "natural gradient, length by KL {max_kl}"

    def __post_init__(self) -> None:
        who = type(self).__name__
        if not 0 < self.max_kl < float("inf"):
            raise UsageError(f"{who}.max_kl is {self.max_kl:g}; it must be a finite number above 0, e.g. 0.01.")
        for name in ("damping", "tolerance", "critic_lr"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{who}.{name} is {getattr(self, name):g}; it must be a finite number of at least 0.")
        if self.iterations < 1:
            raise UsageError(f"{who}.iterations is {self.iterations}; it must be at least 1.")

    def updater(self) -> Any:
        from upslope.control.natural import NaturalUpdater

        return NaturalUpdater

    def learner(self) -> Any:
        """The class that takes the steps, made of (parameters, this part)."""
        from upslope.control.natural import NaturalLearner

        return NaturalLearner

    def for_critic(self) -> Optimizer:
        return Optimizer(lr=self.critic_lr, eps=1e-8, grad_clip=float("inf"))


@dataclass(frozen=True)
class TrustRegion(NaturalGradient):
    """The same step, shortened until the policy itself keeps within `max_kl` and the objective is better.

    Lengths a, a backtrack, a backtrack^2, ... are tried, `tries` of them; the first is taken whose mean KL(old || new) is at
    most `max_kl` and whose objective gains at least `improvement` times what the gradient foretells, and none if there is none.
    """

    backtrack: float = 0.8
    tries: int = 10
    improvement: float = 0.0
    formula: ClassVar[str] = "natural gradient, line search within KL {max_kl}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.backtrack < 1:
            raise UsageError(f"TrustRegion.backtrack is {self.backtrack:g}; it must be between 0 and 1, e.g. 0.8.")
        if self.tries < 1:
            raise UsageError(f"TrustRegion.tries is {self.tries}; it must be at least 1.")
        if not 0 <= self.improvement < 1:
            raise UsageError(f"TrustRegion.improvement is {self.improvement:g}; it must be from 0 to below 1.")

    def learner(self) -> Any:
        from upslope.control.natural import TrustRegionLearner

        return TrustRegionLearner
