"""How sure a held-out loss is: by what each prompt adds to it, drawn anew."""

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Recipe
from upslope.runs.statistics import ratio_interval


def loss_interval(recipe: Recipe, batch: Batch, loss: float, losses: Tensor, prompt: Tensor) -> dict[str, float]:
    """loss_low and loss_high: a bootstrap interval of the batch's loss over its prompts.

    batch    prepared, with the denominators of all its rows
    loss     its loss, which the bounds then hold between them, however float32 adds up
    losses   what each row adds to each term of the loss (`Recipe.row_losses`)      [R, terms]
    prompt   rows of the same number are drawn together                             [R] int64

    A term of the loss is a mean: what a prompt adds, over the prompt's share in the denominator, be that tokens, completions or
    pairs. A resample has its own denominator. Advantages, weights and whatever else was made of the whole batch stay as they are.
    {} with fewer than two prompts, and where the aggregate cannot be taken of one prompt alone.
    """
    number = prompt.unique(return_inverse=True)[1].to(losses.device)
    prompts = int(number.max()) + 1
    if prompts < 2:
        return {}
    added = losses.new_zeros((prompts, losses.shape[1]), dtype=torch.float64).index_add(0, number, losses.double())
    try:
        shares = torch.stack([_shares(recipe, batch, number == one) for one in range(prompts)])
    except UsageError:  # an aggregate over runs of so many rows
        return {}
    shares = shares / shares.sum(0).clamp(min=1e-12)
    found = ratio_interval(added.cpu().numpy(), shares.cpu().numpy())
    return {
        "loss_low": loss + min(found.low - found.value, 0.0),
        "loss_high": loss + max(found.high - found.value, 0.0),
    }


def _shares(recipe: Recipe, batch: Batch, rows: Tensor) -> Tensor:
    """Of some rows, their share in each term's denominator: its multipliers here over those of the rows alone, [terms]."""
    some = batch.select(rows.nonzero().squeeze(1))
    alone = recipe.denominators(some)
    found = []
    for index in range(len(recipe.all_terms())):
        here, there = (getattr(one, f"scale_{index}").double().sum() for one in (some, alone))
        found.append(here / there if there > 0 else torch.zeros_like(here))
    return torch.stack(found)
