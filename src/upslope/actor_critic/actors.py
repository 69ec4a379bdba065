"""Parts of the actor: what it maximises, what weighs its likelihood, and what keeps it near the data."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.actor_critic.losses import advantage_weight, cloning_scale, lowest
from upslope.actor_critic.minibatch import Minibatch
from upslope.errors import UsageError, check_within
from upslope.recipe import Part

Reduce = Literal["mean", "sum"]


@dataclass(frozen=True)
class MaximizeQ(Part):
    """mean_B of alpha log pi(a|s) - Q(s, a), a ~ pi(.|s) reparametrised; Q of the critics' lowest, mean or first value.

    With a deterministic policy log pi is 0 and a = pi(s).
    """

    critics: Literal["lowest", "mean", "first"] = "lowest"
    reads_critic: ClassVar[bool] = True

    def __call__(self, m: Minibatch) -> Tensor:
        action, logp = m.sample()
        m.policy_q = self.value(m, m.observation, action)
        if m.alpha == 0.0:
            return -m.policy_q.mean()
        return torch.sub(logp * m.alpha, m.policy_q).mean()

    def value(self, m: Minibatch, observation: Tensor, action: Tensor) -> Tensor:
        """Q(s, a) [B] as the critics say together."""
        q = m.q(observation, action, members=(0,) if self.critics == "first" else None)
        return q[0] if self.critics == "first" else q.mean(0) if self.critics == "mean" else lowest(q)

    def describe(self) -> str:
        which = {"lowest": "min_j Q_j", "mean": "mean_j Q_j", "first": "Q_1"}[self.critics]
        return f"mean [ {{entropy}}- {which}(s, a) ],  a ~ pi(.|s)"


@dataclass(frozen=True)
class Likelihood(Part):
    """-mean_B w log pi(a|s) of the stored actions; w from the stage `weight`, else 1."""

    weighted: ClassVar[bool] = True
    reads_log: ClassVar[bool] = True
    reads_density: ClassVar[bool] = True
    formula: ClassVar[str] = "- mean [ w log pi(a|s) ],  a as stored"

    def __call__(self, m: Minibatch, weight: Tensor | None = None) -> Tensor:
        logp: Tensor = m.networks.policy.logp(m.observation, m.action)
        return -(logp if weight is None else weight * logp).mean()


@dataclass(frozen=True)
class Imitation(Part):
    """mean_B of w times the mean (or sum) over A of (mode of pi(.|s) - a)^2, a as stored; w from the stage `weight`, else 1."""

    reduce_actions: Reduce = "mean"
    weighted: ClassVar[bool] = True
    reads_log: ClassVar[bool] = True
    formula: ClassVar[str] = "mean [ w {reduce_actions} over A of (pi(s) - a)^2 ],  a as stored"

    def __call__(self, m: Minibatch, weight: Tensor | None = None) -> Tensor:
        apart = _apart(m.networks.policy.mode(m.observation), m.action, self.reduce_actions)
        return (apart if weight is None else weight * apart).mean()


@dataclass(frozen=True)
class OverValue(Part):
    """A = ensemble of Q'(s, a) - V(s), [B], without gradient."""

    reads_value: ClassVar[bool] = True
    reads_critic: ClassVar[bool] = True
    formula: ClassVar[str] = "{{ensemble}} Q'_j(s, a) - V(s)"

    def __call__(self, m: Minibatch) -> Tensor:
        return m.target_value(m.observation, m.action) - m.value(m.observation)


@dataclass(frozen=True)
class OverPolicy(Part):
    """A = min_j Q_j(s, a) - min_j Q_j(s, a_pi), a_pi one sample of pi(.|s); [B], without gradient."""

    reads_critic: ClassVar[bool] = True
    formula: ClassVar[str] = "min_j Q_j(s, a) - min_j Q_j(s, a_pi),  a_pi ~ pi(.|s)"

    def __call__(self, m: Minibatch) -> Tensor:
        action, _ = m.networks.policy.sample(m.observation, m.generator)
        return lowest(m.q(m.observation, m.action)) - lowest(m.q(m.observation, action))


@dataclass(frozen=True)
class Exponential(Part):
    """w = min(exp(beta A), largest), [B]."""

    beta: float = 3.0
    largest: float = 100.0
    formula: ClassVar[str] = "min(exp({beta:g} A), {largest:g})"

    def __post_init__(self) -> None:
        check_within(self, 0, float("inf"), "beta")
        if not self.largest > 0:
            raise UsageError(f"weight.largest is {self.largest}; it must be above 0.")

    def __call__(self, advantage: Tensor) -> Tensor:
        return advantage_weight(advantage, self.beta, self.largest)


@dataclass(frozen=True)
class ScaledCloning(Part):
    """lambda * objective + mean over B and A of (pi(s) - a)^2, lambda = alpha / mean |Q(s, pi(s))| without gradient.

    Q is the objective's own. alpha -> 0: cloning alone; alpha -> infinity: the objective alone, after division by alpha.
    """

    alpha: float = 2.5
    reduce_actions: Reduce = "mean"
    reads_policy_q: ClassVar[bool] = True
    reads_log: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_within(self, 0, float("inf"), "alpha")

    def __call__(self, m: Minibatch, objective: Tensor) -> Tensor:
        assert m.policy_q is not None
        action, kept = self.toward(m)
        apart = _apart(m.sample()[0], action, self.reduce_actions)
        return cloning_scale(m.policy_q, self.alpha) * objective + (apart if kept is None else kept * apart).mean()

    def toward(self, m: Minibatch) -> tuple[Tensor, Tensor | None]:
        """The actions [B, A] that the policy is kept near, and how much each transition counts, [B]; None: all alike."""
        return m.action, None

    def describe(self) -> str:
        return f"{self.alpha:g} / mean|Q| * objective + {self.reduce_actions} (pi(s) - a)^2"


@dataclass(frozen=True)
class Cloning(Part):
    """lambda * objective + coefficient * mean_B of the sum (or mean) over A of (pi(s) - a)^2.

    lambda = 1 / mean |Q(s, pi(s))| without gradient where `normalize`, else 1.
    """

    coefficient: float = 0.01
    normalize: bool = True
    reduce_actions: Reduce = "sum"
    reads_policy_q: ClassVar[bool] = True
    reads_log: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_within(self, 0, float("inf"), "coefficient")

    def __call__(self, m: Minibatch, objective: Tensor) -> Tensor:
        assert m.policy_q is not None
        apart = _apart(m.sample()[0], m.action, self.reduce_actions).mean()
        scale = cloning_scale(m.policy_q, 1.0) if self.normalize else 1.0
        return scale * objective + self.coefficient * apart

    def describe(self) -> str:
        scale = "1 / mean|Q| * " if self.normalize else ""
        return f"{scale}objective + {self.coefficient:g} {self.reduce_actions} (pi(s) - a)^2"


def _apart(one: Tensor, other: Tensor, reduce: Reduce) -> Tensor:
    squared = (one - other).square()
    return squared.mean(-1) if reduce == "mean" else squared.sum(-1)
