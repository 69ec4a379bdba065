"""Settings that the trainer reads: how many rollouts, how often they are used, which groups are kept."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part


@dataclass(frozen=True)
class Sample(Part):
    """`group_size` completions per prompt, at `temperature`, drawn from the current policy."""

    group_size: int = 8
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise UsageError(f"Sample.group_size is {self.group_size}; it must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"Sample.temperature is {self.temperature}; it must be at least 0 (greedy), e.g. 1.")


@dataclass(frozen=True)
class Update(Part):
    """How often a step's rollouts are used: `epochs` passes, each in `minibatches` optimizer steps.

    Mini-batches keep groups whole and have their own denominators; advantages are those of the whole batch.
    """

    minibatches: int = 1
    epochs: int = 1

    def __post_init__(self) -> None:
        for name in ("minibatches", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"Update.{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True)
class Uniform(Part):
    """Prompts in a seeded random order without replacement; every group is kept."""

    max_rounds: ClassVar[int] = 1

    def keep(self, batch: Batch) -> Tensor:
        """Groups to train on, [G] bool."""
        return torch.ones(int(batch.group.max()) + 1, dtype=torch.bool)


@dataclass(frozen=True)
class DynamicSampling(Part):
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
