"""Which component of a mixture is to act: weights that are moved towards the one that a value function finds best."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from upslope.batch import Batch
from upslope.recipe import Part


def frequency_loss(weights: Tensor, best: Tensor) -> Tensor:
    """Mean over K of (w_k - 1[k = best])^2, [...], of weights [..., K] and the best component's number [...] int64."""
    return (weights - one_hot(best, weights.shape[-1]).to(weights.dtype)).square().mean(-1)


def best_component(values: Tensor) -> Tensor:
    """The number of the highest of values [..., K], [...], without gradient."""
    return values.detach().argmax(-1)


def pick(each: Tensor, chosen: Tensor) -> Tensor:
    """The chosen [...] entries of [..., K] or [..., K, A]: [...] or [..., A]."""
    places = chosen.unsqueeze(-1)
    if each.ndim == chosen.ndim + 1:
        return each.gather(-1, places).squeeze(-1)
    return each.gather(-2, places.unsqueeze(-1).expand(*places.shape, each.shape[-1])).squeeze(-2)


@dataclass(frozen=True)
class Frequency(Part):
    """coefficient * mean over K of (w_k - 1[k = k*])^2, per transition: w the mixture's weights, k* the best component.

    Reads `component_weight` [R, T, K], with gradient, and `best_component` [R, T].
    """

    coefficient: float = 1.0
    formula: ClassVar[str] = "{coefficient:g} mean_k (w_k - 1[k = k*])^2"
    needs: ClassVar[frozenset[str]] = frozenset({"component_weight", "best_component"})

    def __call__(self, batch: Batch) -> Tensor:
        found = frequency_loss(batch.component_weight, batch.best_component)
        return self.coefficient * torch.where(batch.mask, found, 0.0)
