"""Log-probs, entropies and distributions of scored tokens, from logits or from hidden states in vocabulary chunks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from upslope.policies.passes import Pass
from upslope.recipe import Observation

POSITIONS = 2048  # at once, where whole distributions are observed
ENTRIES = 1 << 20  # of whole distributions at once, where two are compared
Comparison = Callable[[Tensor, Tensor], Tensor]
"""Log-probs of the whole vocabulary, the policy's [M, V] and another model's [M, V], to a number per position [M]."""

LOGIT_COLUMNS = ("logp", "entropy", "log_distribution", "top_logp", "top_ids")


@dataclass(frozen=True)
class Wanted:
    """Which columns to compute, at which temperature; `top_k` entries where a top-k column is among them; what to observe."""

    needs: frozenset[str]
    temperature: float
    top_k: int
    observe: Mapping[str, Observation] = field(default_factory=dict)

    @property
    def top(self) -> bool:
        return bool(self.needs & {"top_logp", "top_ids"})


def columns_from_logits(logits: Tensor, scored: Pass, wanted: Wanted) -> dict[str, Tensor]:
    """Values [M, ...] of the wanted columns, from logits [n, V] at the states; computed in float32 or wider."""
    scores = _scaled(logits, wanted)
    logp = scores.log_softmax(-1)
    values = {}
    if "logp" in wanted.needs:
        values["logp"] = logp[scored.state, scored.target]
    if "entropy" in wanted.needs:
        # softmax() again rather than exp(): on CPU it is several times faster, forward and backward
        values["entropy"] = -(scores.softmax(-1) * logp).sum(-1)[scored.state]
    if "log_distribution" in wanted.needs:
        values["log_distribution"] = logp[scored.state]
    if wanted.top:
        top, ids = logp.topk(min(wanted.top_k, logp.shape[-1]), dim=-1)
        values |= _top(top, ids, scored, wanted)
    return values


@torch.no_grad()
def observed_columns(logits_of: Callable[[Tensor], Tensor], scored: Pass, wanted: Wanted) -> dict[str, Tensor]:
    """Values [M] of the observed functions, without gradient; `logits_of(states [m])` gives logits [m, V], a few at a time."""
    found: dict[str, list[Tensor]] = {name: [] for name in wanted.observe}
    for states, target in zip(scored.state.split(POSITIONS), scored.target.split(POSITIONS), strict=True):
        if found:
            log_probs = _scaled(logits_of(states), wanted).log_softmax(-1)
            for name, function in wanted.observe.items():
                found[name].append(function(log_probs, target))
    return {name: torch.cat(values) for name, values in found.items()}


def compared_columns(
    hidden: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    other_hidden: Tensor,
    other_logits_of: Callable[[Tensor], Tensor],
    compare: Mapping[str, Comparison],
) -> dict[str, Tensor]:
    """Values [M] of functions of two next-token distributions, from hidden states [M, H] and [M, H'] and what makes logits of them.

    A few positions at a time, each computed again in backward, so that no more than ENTRIES log-probs of either are held.
    The gradient is that of the first. Where one vocabulary is padded further than the other, both are cut to the smaller.
    """

    def few(states: Tensor, other_states: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            other = other_logits_of(other_states)
        logits = logits_of(states)
        size = min(logits.shape[-1], other.shape[-1])
        own, theirs = (_scaled(x[:, :size], plain).log_softmax(-1) for x in (logits, other))
        return tuple(function(own, theirs) for function in compare.values())

    plain = Wanted(frozenset(), 1.0, 0)
    vocabulary = logits_of(hidden[:0]).shape[-1]
    found = [
        checkpoint(few, states, other_states, use_reentrant=False, preserve_rng_state=False)
        for states, other_states in zip(
            *(x.split(max(ENTRIES // vocabulary, 1)) for x in (hidden, other_hidden)), strict=True
        )
    ]
    return {name: torch.cat(values) for name, values in zip(compare, zip(*found, strict=True), strict=True)}


def columns_in_chunks(
    hidden: Tensor,
    head: nn.Linear,
    finish: Callable[[Tensor], Tensor],
    chunk: int,
    scored: Pass,
    wanted: Wanted,
) -> dict[str, Tensor]:
    """The same from hidden states [n, H], `chunk` words of the vocabulary at a time.

    No more than [n, chunk] logits are ever held: each chunk is reduced at once and computed again in backward. `finish`
    is what the model does to logits after `head` (a soft cap, a scale), word by word.
    """
    parts = []
    biases = head.bias.split(chunk) if head.bias is not None else [None] * -(-head.weight.shape[0] // chunk)
    for index, (weight, bias) in enumerate(zip(head.weight.split(chunk), biases, strict=True)):
        reduce = _reducer(finish, index * chunk, scored, wanted)
        parts.append(checkpoint(reduce, hidden, weight, bias, use_reentrant=False, preserve_rng_state=False))
    columns = zip(*parts, strict=True)
    own, lses, means, tops, ids = (torch.stack(x) if x[0].dim() == 1 else torch.cat(x, -1) for x in columns)
    logsumexp = lses.logsumexp(0)
    values = {}
    if "logp" in wanted.needs:
        values["logp"] = own.sum(0) - logsumexp[scored.state]
    if "entropy" in wanted.needs:
        mean = ((lses - logsumexp).exp() * means).sum(0)
        values["entropy"] = (logsumexp - mean)[scored.state]
    if wanted.top:
        top, chosen = tops.topk(min(wanted.top_k, tops.shape[-1]), dim=-1)
        values |= _top(top - logsumexp[:, None], ids.gather(-1, chosen), scored, wanted)
    return values


def _reducer(
    finish: Callable[[Tensor], Tensor], first: int, scored: Pass, wanted: Wanted
) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """What remains of a chunk: its share of each target's score, its logsumexp, its mean score, its largest scores."""

    def reduce(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        scores = _scaled(finish(nn.functional.linear(hidden, weight, bias)), wanted)
        local = scored.target - first
        inside = (local >= 0) & (local < len(weight))
        own = torch.where(inside, scores[scored.state, local.clamp(0, len(weight) - 1)], 0.0)
        logsumexp = scores.logsumexp(-1)
        mean = logsumexp.detach()
        if "entropy" in wanted.needs:
            mean = ((scores - logsumexp[:, None]).exp() * scores).sum(-1)
        top, ids = scores.topk(min(wanted.top_k, len(weight)) if wanted.top else 0, dim=-1)
        return own, logsumexp, mean, top, ids + first

    return reduce


def _scaled(logits: Tensor, wanted: Wanted) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide if wanted.temperature == 1.0 else wide / wanted.temperature


def _top(logp: Tensor, ids: Tensor, scored: Pass, wanted: Wanted) -> dict[str, Tensor]:
    both = {"top_logp": logp, "top_ids": ids}
    return {name: both[name][scored.state] for name in both if name in wanted.needs}
