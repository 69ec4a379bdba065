"""Settings that the trainer reads: which prompts, how many rollouts and from whom, how often they are used.

A `rollout` or `curriculum` part may remember: its state starts as `init()`, is given to the methods below and replaced by what
they return, and is in the checkpoint. None of them changes the state that it is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part, Recipe, State
from upslope.rollout import Visit


@dataclass(frozen=True)
class Sample(Part):
    """`group_size` completions per prompt, at `temperature`, drawn from the current policy.

    reference_rows   that many of them are the task's reference answer instead, log-probs by the policy (source "teacher")
    reference_column   the data's column that holds it, such as a solution; "": what the task gives, or the column answer
    replay           chance that a step uses the rollouts of an earlier one in place of new ones, rewards and log-probs as they
                     were then (source "replay"); the step samples where there are none to use
    replay_window    how many steps old they may be
    """

    group_size: int = 8
    temperature: float = 1.0
    reference_rows: int = 0
    reference_column: str = ""
    replay: float = 0.0
    replay_window: int = 2

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise UsageError(f"Sample.group_size is {self.group_size}; it must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"Sample.temperature is {self.temperature}; it must be at least 0 (greedy), e.g. 1.")
        if not 0 <= self.reference_rows < self.group_size:
            raise UsageError(
                f"Sample.reference_rows is {self.reference_rows}; it must leave a row of group_size={self.group_size} to the "
                f"policy."
            )
        if not 0 <= self.replay <= 1:
            raise UsageError(f"Sample.replay is {self.replay}; it is a probability, from 0 to 1.")
        if self.replay_window < 1:
            raise UsageError(f"Sample.replay_window is {self.replay_window}; it must be at least 1 step.")

    def adapt(self, state: State) -> Callable[[Tensor], Tensor] | None:
        """Temperatures [r] by the entropies [r] of the distributions that are sampled from; None: `temperature`."""
        return None

    def second(self, state: State) -> tuple[float, float] | None:
        """Share of the step's prompts that are sampled once more, at which temperature; None: no second draw."""
        return None

    def join(self, first: Batch, second: Batch, state: State) -> tuple[Tensor, Tensor]:
        """Which rows of the first [R] and of the second draw [S] are trained on, bool. First rows left out keep their rewards
        in their group; second ones (source "tempered") are groups of their own, behind the first.
        """
        return first.trained, second.trained

    def observe(self, batch: Batch, state: State) -> State:
        """The state after a step that sampled `batch`, whose log-probs and `entropy` are those of the sampling policy."""
        return state


@dataclass(frozen=True)
class Update(Part):
    """How often a step's rollouts are used: `epochs` passes, each in `minibatches` optimizer steps.

    Mini-batches keep groups whole and have their own denominators; advantages are those of the whole batch.
    `fresh_optimizer` makes the optimizer forget its moments before every step of the run. `fresh_reference`: the steps of an
    iteration, after each of which the reference becomes the policy as it is; 0: it stays what it was at first.
    """

    minibatches: int = 1
    epochs: int = 1
    fresh_optimizer: bool = False
    fresh_reference: int = 0

    def __post_init__(self) -> None:
        for name, least in (("minibatches", 1), ("epochs", 1), ("fresh_reference", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"Update.{name} is {getattr(self, name)}; it must be at least {least}.")

    def before_step(self, step: int) -> frozenset[str]:
        """What is done before a step (from 1): "reset_optimizer" forgets its moments, "reset_reference" makes the reference
        the policy as it is.
        """
        begins = self.fresh_reference > 0 and step > 1 and (step - 1) % self.fresh_reference == 0
        asked = {"reset_optimizer": self.fresh_optimizer, "reset_reference": begins}
        return frozenset(name for name, wanted in asked.items() if wanted)

    def recipe_at(self, recipe: Recipe, step: int) -> Recipe:
        """The recipe of a step (from 1): it may differ from the run's in the settings of `rollout` and `update`."""
        return recipe


class Curriculum(Part):
    """What a curriculum may do beside choosing groups: every example is as likely, and nothing is remembered."""

    def weights(self, size: int, state: State) -> Tensor | None:
        """Chances [size] > 0, up to a factor, of the training examples by their place, which a step draws without replacement;
        None: in the seeded order of the epoch.
        """
        return None

    def scout(self, keys: Sequence[str], state: State) -> list[int]:
        """Completions of each prompt of the step that are sampled and judged before, and not trained on."""
        return [0] * len(keys)

    def scouted(self, keys: Sequence[str], rewards: Sequence[Sequence[float]], state: State) -> State:
        """The state after such completions have earned `rewards`, those that failed left out."""
        return state

    def track(self, visit: Visit, state: State) -> tuple[dict[str, Tensor], State]:
        """Columns [R] for the step's new rollouts, from what is known before them, and the state after them."""
        return {}, state


@dataclass(frozen=True)
class Uniform(Curriculum):
    """Prompts in a seeded random order without replacement; every group is kept."""

    max_rounds: ClassVar[int] = 1

    def keep(self, batch: Batch) -> Tensor:
        """Groups to train on, [G] bool."""
        return torch.ones(int(batch.group.max()) + 1, dtype=torch.bool)


@dataclass(frozen=True)
class DynamicSampling(Curriculum):
    """Keeps sampling prompts, up to `max_rounds` times, until enough groups have rewards that differ (DAPO, section 3.2).

    Judged on the task's own reward, before any shaping. A group of one is kept.
    """

    max_rounds: int = 10

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise UsageError(f"DynamicSampling.max_rounds is {self.max_rounds}; it must be at least 1.")

    def keep(self, batch: Batch) -> Tensor:
        """Groups with at least two different valid rewards, or of size one, [G] bool."""
        mean, count = batch.group_mean(batch.reward)
        spread, _ = batch.group_mean((batch.reward - mean[batch.group]) ** 2)
        return (spread > 1e-12) | (count == 1)
