"""One token per row from its logits, with randomness that depends on (seed, step, row) and on nothing else."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.rollout import Sampling

BLOCK = 256  # tokens per block of the two-level search: one pass over the vocabulary, two short cumulative sums
BELOW_ONE = 1 - 1e-12  # keeps a target strictly under its total, so that a token of probability 0 is never drawn


def check_sampling(sampling: Sampling) -> None:
    """Raise UsageError where a setting is outside its range."""
    limits = (
        ("max_tokens", sampling.max_tokens, sampling.max_tokens >= 1, "at least 1"),
        ("temperature", sampling.temperature, 0 <= sampling.temperature < float("inf"), "0 (greedy) or positive"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "in (0, 1]; 1 means no truncation"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "0 (no truncation) or positive"),
    )
    for name, value, valid, wanted in limits:
        if not valid:
            raise UsageError(f"Sampling.{name} is {value}, but has to be {wanted}.")
    if isinstance(sampling.stop, str):
        raise UsageError(f"Sampling.stop is the string {sampling.stop!r}; write stop=({sampling.stop!r},).")
    if "" in sampling.stop:
        raise UsageError("Sampling.stop has an empty string, which would end every completion at once. Leave it out.")


class Uniforms:
    """Uniform numbers in [0, 1) for every step of `rows` rows, from a seed; float64, on the CPU.

    Each step draws for all rows of a call, in their original numbering, whether they are in the batch or not: so retiring
    finished rows, or splitting the rows into waves that each start anew, changes no draw.
    """

    STEPS = 32  # drawn at once, since most of the cost is per call

    def __init__(self, seed: int, rows: int) -> None:
        self.generator = np.random.Generator(np.random.Philox(key=seed))
        self.rows = rows
        self.drawn: Iterator[Tensor] = iter(())

    def next(self) -> Tensor:
        """Those of the next step, [rows]."""
        found = next(self.drawn, None)
        if found is None:
            self.drawn = iter(torch.from_numpy(self.generator.random((self.STEPS, self.rows))))
            found = next(self.drawn)
        return found


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Sample by inverting the cumulative distribution.

    Temperature comes first, then top-k, then top-p over what top-k left: the smallest set of most likely tokens that
    reaches the mass. Ties go to the token that sorts first, so that top-k keeps exactly k.

    Args:
        logits: [r, V], any float type.
        uniform: [r] float64 in [0, 1).
        sampling: temperature 0 is greedy.

    Returns:
        tokens [r] int64; logp [r] float32 under softmax(logits); behavior_logp [r] float32 under the distribution that
        was sampled from (0 when greedy). A row with NaN or +inf among its logits has a NaN logp.
    """
    logits = logits.float()
    shifted = logits - logits.amax(-1, keepdim=True)
    weights = shifted.exp()
    log_norm = weights.sum(-1).log()
    temperature: float | Tensor = sampling.temperature
    if sampling.adapt is not None:
        log_probs = shifted - log_norm[:, None]
        temperature = sampling.adapt(-(log_probs.exp() * log_probs).sum(-1))[:, None]
    plain = sampling.adapt is None and temperature == 1 and sampling.top_k == 0 and sampling.top_p == 1
    if sampling.adapt is None and temperature == 0:
        tokens = shifted.argmax(-1)
        behavior = None
    elif plain:
        tokens = invert_cdf(weights, uniform)
        behavior = None
    else:
        tokens, behavior = _draw_truncated(shifted / temperature, uniform, sampling)
    logp = shifted.gather(-1, tokens[:, None])[:, 0] - log_norm
    if behavior is None:
        behavior = logp if plain else torch.zeros_like(logp)
    return tokens, logp, behavior


def invert_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """The index at which the cumulative sum of `weights` [r, V] >= 0 first exceeds uniform * total; [r] int64.

    The sums are taken in blocks (float32 within, float64 across), so that a large vocabulary costs one pass in float32.
    """
    width = weights.shape[-1]
    if width <= 4 * BLOCK:
        cumulative = weights.cumsum(-1, dtype=torch.float64)
        return _first_above(cumulative, uniform[:, None] * cumulative[:, -1:])
    blocks = torch.nn.functional.pad(weights, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    mass = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * mass[:, -1:]
    block = _first_above(mass, target)[:, None]
    before = torch.where(block > 0, mass.gather(-1, (block - 1).clamp(min=0)), 0.0)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    return block[:, 0] * BLOCK + _first_above(within, target - before)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    target = torch.minimum(target, cumulative[:, -1:] * BELOW_ONE)
    last = cumulative.shape[-1] - 1  # only a row of NaNs gets past it, and its logp says so
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=last)


def _draw_truncated(scaled: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens [r] and their log-probs [r] under softmax(scaled [r, V]) cut to top-k and top-p and renormalized."""
    order = None
    if 0 < sampling.top_k < scaled.shape[-1]:
        scaled, order = scaled.topk(sampling.top_k, dim=-1)
    elif sampling.top_p < 1:
        scaled, order = scaled.sort(dim=-1, descending=True, stable=True)
    weights = scaled.exp()
    if sampling.top_p < 1:
        cumulative = weights.cumsum(-1, dtype=torch.float64)
        reached = cumulative - weights >= sampling.top_p * cumulative[:, -1:]
        weights = weights.masked_fill(reached, 0.0)
    chosen = invert_cdf(weights, uniform)[:, None]
    logp = scaled.gather(-1, chosen)[:, 0] - weights.sum(-1).log()
    tokens = chosen if order is None else order.gather(-1, chosen)
    return tokens[:, 0], logp
