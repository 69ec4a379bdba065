"""Settings of learning from an environment: how much is played between updates, how it is used, and the optimizer."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from upslope.errors import UsageError
from upslope.parts.optimizing import Optimizing
from upslope.parts.sampling import Update
from upslope.recipe import Part


class Playing(Part):
    """A `rollout` part that plays in an environment."""

    environments: int
    observation_noise: float = 0.0

    def trainer(self) -> Any:
        """The loop that plays."""
        from upslope.control.trainer import OnPolicyTrainer

        return OnPolicyTrainer

    def player(self, environments: Any, policy: Any, critic: Any) -> Any:
        """Who plays for it: a `Player`, or one of its subclasses that chooses actions otherwise or keeps what was played."""
        from upslope.control.playing import Player

        return Player(environments, policy, critic, self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Steps(Playing):
    """`steps` steps in each of `environments` copies, between two updates: rows of the batch are copies, [N, S].

    Episodes go on from one update to the next. What a time limit cuts off, and what the last step led to, is worth V.
    `observation_noise`: standard deviation of fresh Gaussian noise on each number of every observation, in the environment's
    units, in training and in evaluation; the environment's state has none.
    """

    environments: int = 8
    steps: int = 128
    observation_noise: float = 0.0
    formula: ClassVar[str] = "{steps} steps of {environments} copies"

    def __post_init__(self) -> None:
        _at_least_one(self, "environments", "steps")
        check_noise(self.observation_noise)


@dataclass(frozen=True)
class Episodes(Playing):
    """`episodes` whole episodes between two updates, played in `environments` copies: rows are episodes, [R, T].

    An episode that a time limit cuts off is taken as it is: without a critic nothing is known of what it would have earned.
    `observation_noise`: as in Steps.
    """

    episodes: int = 16
    environments: int = 16
    observation_noise: float = 0.0
    formula: ClassVar[str] = "{episodes} whole episodes"

    def __post_init__(self) -> None:
        _at_least_one(self, "environments", "episodes")
        check_noise(self.observation_noise)


@dataclass(frozen=True)
class StepUpdate(Update):
    """How often what was played is used: `epochs` passes, each in `minibatches` optimizer steps.

    transitions        mini-batches are drawn over single transitions, in a new order each epoch; False: over whole rows
    value_coefficient  of the critic's loss beside the policy's, in one optimizer step with one gradient norm; None: the critic
                       has an optimizer and a norm of its own, at `critic_lr`
    target_kl          ends the epochs after the first whose mean estimated KL(old || new) is above it; None: never
    critic_epochs      passes of a critic with an optimizer of its own, once the policy's are done, each in `critic_minibatches`
                       steps; None: one step of its with each of the policy's
    """

    transitions: bool = True
    value_coefficient: float | None = 0.5
    target_kl: float | None = None
    critic_epochs: int | None = None
    critic_minibatches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_epochs is not None:
            _at_least_one(self, "critic_epochs")
            if self.value_coefficient is not None:
                raise UsageError(
                    "StepUpdate.critic_epochs is of a critic with an optimizer of its own. Set value_coefficient to null."
                )
        _at_least_one(self, "critic_minibatches")
        if self.target_kl is not None and not self.target_kl > 0:
            raise UsageError(f"StepUpdate.target_kl is {self.target_kl:g}; it must be above 0, or None.")


@dataclass(frozen=True)
class Optimizer(Optimizing):
    """Adam, or RMSprop or SGD. `lr` falls to 0 at the last step of the run with schedule "linear"; `eps` as in the formula.

    Gradients are clipped to norm `grad_clip`. `critic_lr` None: the same, where the critic has an optimizer of its own.
    """

    lr: float = 3e-4
    critic_lr: float | None = None
    kind: Literal["adam", "rmsprop", "sgd"] = "adam"
    eps: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0
    grad_clip: float = 0.5

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "eps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(
                    f"Optimizer.{name} is {getattr(self, name)}; it must be a finite number of at least 0."
                )
        if not self.grad_clip > 0:
            raise UsageError(f"Optimizer.grad_clip is {self.grad_clip}; it must be above 0, .inf for no clipping.")

    def for_critic(self) -> "Optimizer":
        return self if self.critic_lr is None else replace(self, lr=self.critic_lr)


def check_noise(std: float) -> None:
    """Raises UsageError for a standard deviation that is none."""
    if not 0 <= std < float("inf"):
        raise UsageError(
            f"observation_noise is {std}; it is a standard deviation, in the units of the observations: at least 0."
        )


def _at_least_one(part: Part, *names: str) -> None:
    for name in names:
        if getattr(part, name) < 1:
            raise UsageError(f"{type(part).__name__}.{name} is {getattr(part, name)}; it must be at least 1.")
