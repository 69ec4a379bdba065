"""Which tokens of a mini-batch a control picks: by their covariance, by rank, or at random, whatever the order of rows."""

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.parts.hashing import uniform_of
from upslope.recipe import Part


def check_share(part: Part, share: float) -> None:
    """Raises UsageError unless `share` is a fraction: a per cent must be divided by 100."""
    if not 0 <= share <= 1:
        raise UsageError(
            f"{type(part).__name__}(share={share:g}): it is a fraction of the tokens, e.g. 0.002 for 0.2 %."
        )


def number_of(share: float, among: Tensor) -> int:
    """`share` of the True elements of `among`, rounded down: at least one, and none where the share is 0."""
    there = int(among.sum())
    return min(max(int(share * there), 1), there) if share > 0 else 0


def covariance(batch: Batch) -> Tensor:
    """(A - mean A) (logp - mean logp) per token [R, T], the means over all trained tokens; 0 where nothing is trained."""
    advantage, logp = batch.advantage, batch.logp
    centered = (advantage - batch.masked_mean(advantage)) * (logp - batch.masked_mean(logp))
    return torch.where(batch.mask, centered, 0.0)


def token_uniform(batch: Batch, step: int) -> Tensor:
    """A random number in [0, 1) for each token [R, T], that of its trajectory, position and `step`."""
    position = torch.arange(batch.logp.shape[1], device=batch.logp.device)
    return uniform_of(step, batch.trajectory.unsqueeze(1), position)


def largest(score: Tensor, number: int, among: Tensor, ties: Tensor) -> Tensor:
    """The `number` elements of `among` with the largest score, as a mask [R, T]; equal scores by the smaller of `ties`."""
    order = ties[among].argsort()
    order = order[score[among][order].argsort(descending=True, stable=True)]
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order[:number]] = True
    return torch.zeros_like(among).masked_scatter(among, chosen)
