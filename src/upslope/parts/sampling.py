"""Settings that the trainer reads: how many rollouts, how often they are used, which groups are kept."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.recipe import Part


@dataclass(frozen=True)
class Sample(Part):
    """`group_size` completions per prompt, at `temperature`, drawn from the current policy."""

    group_size: int = 8
    temperature: float = 1.0


@dataclass(frozen=True)
class Update(Part):
    """How often a step's rollouts are used: `epochs` passes, each in `minibatches` optimizer steps.

    Mini-batches keep groups whole and have their own denominators; advantages are those of the whole batch.
    """

    minibatches: int = 1
    epochs: int = 1


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

    def keep(self, batch: Batch) -> Tensor:
        """Groups with at least two different valid rewards, or of size one, [G] bool."""
        mean, count = batch.group_mean(batch.reward)
        spread, _ = batch.group_mean((batch.reward - mean[batch.group]) ** 2)
        return (spread > 1e-12) | (count == 1)
