"""Parts that say where transitions come from, how actions are explored, and how often what is updated."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.errors import UsageError, check_within
from upslope.parts.steps import check_noise
from upslope.recipe import Part

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Transitions(Part):
    """Uniform draws of `batch_size` from the last `capacity` transitions, whether played or from a log.

    log_share     share of every batch that comes from the log, where there is one beside what is played; None: one pool of both
    standardize   observations less the log's mean, over its sqrt(variance + 1e-8), where there is a log; the same numbers serve
                  in evaluation, and are saved with the policy
    """

    batch_size: int = 256
    capacity: int = 1_000_000
    log_share: float | None = None
    standardize: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"data.batch_size is {self.batch_size}; at least 1 transition is needed.")
        if self.log_share is not None and not 0 <= self.log_share <= 1:
            raise UsageError(f"data.log_share is {self.log_share}; it is a share, from 0 to 1.")

    def describe(self) -> str:
        share = "" if self.log_share is None else f", {self.log_share:.0%} of them from the log"
        return f"{self.batch_size} transitions, uniformly{share}"


@dataclass(frozen=True)
class Interact(Part):
    """A step of the run: `steps` actions in each of `environments` copies. Without an environment to learn in: as many updates.

    warmup          actions per run that are drawn uniformly, before the first update; none after steps that learned from a log
    offline_steps   steps of the run that only learn from the log, where there is a log; None: all of them
    observation_noise   standard deviation of fresh Gaussian noise on each number of every observation that is played, stored or
                    evaluated on, in the environment's units; its state has none
    """

    environments: int = 1
    steps: int = 1000
    warmup: int = 5000
    offline_steps: int | None = None
    observation_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("environments", 1), ("steps", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"rollout.{name} is {getattr(self, name)}; it must be at least {least}.")
        check_noise(self.observation_noise)
        if self.offline_steps is not None:
            check_within(self, 0, float("inf"), "offline_steps")

    def uniform(self, logged: bool) -> int:
        """How many actions come before the first update: none where a log has been learned from before."""
        return self.warmup if not logged or self.offline_steps == 0 else 0

    def describe(self) -> str:
        return f"{self.environments} x {self.steps} actions a step, the first {self.warmup} uniform"


@dataclass(frozen=True)
class Noise(Part):
    """Actions of the policy plus N(0, std^2), cut to [-1, 1]."""

    std: float = 0.1
    formula: ClassVar[str] = "clip(pi(s) + {std:g} N(0, 1), -1, 1)"

    def __post_init__(self) -> None:
        check_within(self, 0, float("inf"), "std")

    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(action.shape, generator=generator).mul_(self.std)
        return noise.add_(action).clamp_(-1.0, 1.0)


@dataclass(frozen=True)
class ReturnRange(Part):
    """Rewards times `scale` / (largest - smallest return of the log's episodes). Without a log: as they are."""

    scale: float = 1000.0
    formula: ClassVar[str] = "r {scale:g} / (highest - lowest return in the log)"

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise UsageError(f"ReturnRange.scale is {self.scale:g}; it must be above 0 and finite.")

    def factor(self, returns: Tensor) -> float:
        """What rewards are multiplied by, of the returns [n] of the log's episodes."""
        spread = float(returns.max() - returns.min()) if len(returns) else 0.0
        return self.scale / spread if spread > 0 else 1.0


@dataclass(frozen=True)
class Affine(Part):
    """scale * r + shift."""

    scale: float = 1.0
    shift: float = 0.0
    formula: ClassVar[str] = "{scale:g} r + {shift:g}"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.shift)):
            raise UsageError(f"Affine.scale={self.scale:g} and shift={self.shift:g} must be finite.")


@dataclass(frozen=True)
class Average(Part):
    """Target networks: Q' <- (1 - rate) Q' + rate Q after every `every` critic updates; of the policy, too, where it has one."""

    rate: float = 0.005
    every: int = 1
    formula: ClassVar[str] = "Q' <- Q' + {rate:g} (Q - Q'), every {every} critic updates"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UsageError(f"targets.rate is {self.rate}; it must be above 0 and at most 1.")
        check_within(self, 1, float("inf"), "every")


@dataclass(frozen=True)
class Updates(Part):
    """How often and how far.

    per_step         critic updates per step of the environments (all copies together)
    actor_every      critic updates per update of the actor and the temperature
    first            which of the two goes first within an update; V goes before both
    actor_lr, critic_lr (V's too)       Adam's
    actor_schedule   of actor_lr, and of the temperature's rate: "linear" or "cosine" down to 0 over the run, by its planned
                     actions, or updates on a log
    critic_schedule  the same of critic_lr, and of a proposer's rate
    """

    per_step: int = 1
    actor_every: int = 1
    first: Literal["critic", "actor"] = "critic"
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    actor_schedule: Schedule = "constant"
    critic_schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        for name in ("per_step", "actor_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"update.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("actor_lr", "critic_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"update.{name} is {getattr(self, name)}; it must be above 0 and finite.")

    def describe(self) -> str:
        text = f"{self.per_step} critic updates per environment step, the actor every {self.actor_every}"
        named = (("actor_lr", self.actor_schedule), ("critic_lr", self.critic_schedule))
        return "".join([text, *(f", {name} {kind} to 0" for name, kind in named if kind != "constant")])

    def factor(self, which: Literal["actor", "critic"], progress: float) -> float:
        """What a rate is multiplied by when this share of the run is behind, 0 to 1."""
        schedule = self.actor_schedule if which == "actor" else self.critic_schedule
        if schedule == "linear":
            return 1.0 - progress
        return 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0
