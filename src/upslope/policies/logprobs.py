"""Log-probs, entropies and distributions of scored tokens: from whole logits, or from the logits of a few positions at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from upslope.policies.passes import Pass
from upslope.recipe import Observation

ENTRIES = (
    1 << 20
)  # of logits at once, where they are made a few positions at a time: what a CPU's cache still helps with
WHOLE = 1 << 24  # entries up to which all logits of a pass are held at once
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
    def columns(self) -> list[str]:
        """Those that are made of logits."""
        return [name for name in LOGIT_COLUMNS if name in self.needs]


def positions_at_once(positions: int, vocabulary: int, vocab_chunk: int | None) -> int | None:
    """Of how many positions logits are made at once; None for all.

    Without `vocab_chunk` that is so up to WHOLE logits. With it, at most as many are held as would be of `vocab_chunk` words of
    all positions.
    """
    if vocab_chunk is None:
        return None if positions * vocabulary <= WHOLE else max(ENTRIES // vocabulary, 1)
    return max(min(positions * vocab_chunk, ENTRIES) // vocabulary, 1)


def columns_from_logits(logits: Tensor, state: Tensor, target: Tensor, wanted: Wanted) -> dict[str, Tensor]:
    """Values [M, ...] of the wanted columns, from logits [n, V], of which the tokens `target` [M] are predicted by `state` [M].

    Computed in float32 or wider.
    """
    scores = _scaled(logits, wanted)
    logp = scores.log_softmax(-1)
    values = {}
    if "logp" in wanted.needs:
        values["logp"] = logp[state, target]
    if "entropy" in wanted.needs:
        # softmax() again rather than exp(): on CPU it is several times faster, forward and backward
        values["entropy"] = -(scores.softmax(-1) * logp).sum(-1)[state]
    if "log_distribution" in wanted.needs:
        values["log_distribution"] = logp[state]
    if wanted.needs & {"top_logp", "top_ids"}:
        top, ids = logp.topk(min(wanted.top_k, logp.shape[-1]), dim=-1)
        both = {"top_logp": top, "top_ids": ids}
        values |= {name: both[name][state] for name in both if name in wanted.needs}
    return values


def columns_in_parts(
    hidden: Tensor, head: nn.Linear, finish: Callable[[Tensor], Tensor], positions: int, scored: Pass, wanted: Wanted
) -> dict[str, Tensor]:
    """The same from hidden states [n, H], `positions` of the M at a time, whose logits are made again in backward.

    `finish` is what the model does to logits after `head` (a soft cap, a scale), word by word.
    """

    def few(raw: Tensor, part: slice, names: Sequence[str]) -> list[Tensor]:
        target = scored.target[part]
        here = replace(wanted, needs=frozenset(names))
        found = columns_from_logits(finish(raw), torch.arange(len(target), device=target.device), target, here)
        return [found[name] for name in names]

    return in_parts(hidden.index_select(0, scored.state), head, few, wanted.columns, positions)


@torch.no_grad()
def observed_columns(
    logits_of: Callable[[Tensor], Tensor], scored: Pass, wanted: Wanted, vocabulary: int
) -> dict[str, Tensor]:
    """Values [M] of the observed functions, without gradient; `logits_of(states [m])` gives logits [m, V], a few at a time."""
    if not wanted.observe:
        return {}

    def observed(part: slice) -> list[Tensor]:
        log_probs = _scaled(logits_of(scored.state[part]), wanted).log_softmax(-1)
        return [function(log_probs, scored.target[part]) for function in wanted.observe.values()]

    count = len(scored.target)
    columns = _joined(((part, observed(part)) for part in _slices(count, max(ENTRIES // vocabulary, 1))), count)
    return dict(zip(wanted.observe, columns, strict=True))


def compared_columns(
    hidden: Tensor,
    head: nn.Linear,
    finish: Callable[[Tensor], Tensor],
    other_hidden: Tensor,
    other_logits_of: Callable[[Tensor], Tensor],
    target: Tensor,
    compare: Mapping[str, Comparison],
    columns: Sequence[str],
) -> dict[str, Tensor]:
    """Values [M] of functions of two next-token distributions, from hidden states [M, H] and [M, H'] and what makes logits of them.

    A few positions at a time, so that no more than ENTRIES log-probs of both are held. The gradient is that of the first. Where
    one vocabulary is padded further than the other, `compare` gets both cut to the smaller. Among the `columns` may be "logp" and
    "teacher_logp" beside those of `compare`: the log-probs of the tokens `target` [M] under the first and the other.
    """
    plain = Wanted(frozenset(), 1.0, 0)

    def few(raw: Tensor, part: slice, names: Sequence[str]) -> list[Tensor]:
        with torch.no_grad():
            theirs = _scaled(other_logits_of(other_hidden[part]), plain).log_softmax(-1)
        own, tokens = _scaled(finish(raw), plain).log_softmax(-1), target[part].unsqueeze(1)
        size = min(own.shape[-1], theirs.shape[-1])
        pair = [x if x.shape[-1] == size else x[:, :size].log_softmax(-1) for x in (own, theirs)]
        said = {"logp": own, "teacher_logp": theirs}
        return [said[n].gather(-1, tokens).squeeze(1) if n in said else compare[n](*pair) for n in names]

    return in_parts(hidden, head, few, columns, max(ENTRIES // (2 * head.weight.shape[0]), 1))


Few = Callable[[Tensor, slice, Sequence[str]], list[Tensor]]
"""What the output layer gives for some positions [m, V], which of all M those are, and names; to the columns [m, ...] so named."""


def in_parts(hidden: Tensor, head: nn.Linear, few: Few, names: Sequence[str], positions: int) -> dict[str, Tensor]:
    """The columns [M, ...] of these names that `few` makes of hidden states [M, H], `positions` of them at a time.

    No more of the output is ever held; backward makes it again. Functions of the states alone: `few` has no parameters.
    """
    if not len(hidden):
        empty = few(nn.functional.linear(hidden, head.weight, head.bias), slice(0, 0), names)
        return dict(zip(names, empty, strict=True))
    values = _InParts.apply(hidden, head.weight, head.bias, few, tuple(names), positions)
    return dict(zip(names, values, strict=True))


class _InParts(torch.autograd.Function):
    """hidden [M, H], weight [V, H] and bias [V] to the columns, as `in_parts`.

    All parts add to one gradient of the weight. Left to autograd, each part would make one, as large as the weight, of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, few: Few, names: tuple[str, ...], positions: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.few, ctx.names, ctx.parts = few, names, _slices(len(hidden), positions)
        ctx.set_materialize_grads(False)
        parts = ((part, few(nn.functional.linear(hidden[part], weight, bias), part, names)) for part in ctx.parts)
        columns = tuple(_joined(parts, len(hidden)))
        ctx.mark_non_differentiable(*(column for column in columns if not column.is_floating_point()))
        return columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        given = {name: grad for name, grad in zip(ctx.names, upstream, strict=True) if grad is not None}
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(x) if wanted else None
            for x, wanted in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        for part in ctx.parts:
            of_raw = _gradient(ctx.few, nn.functional.linear(hidden[part], weight, bias), part, given)
            if of_raw is None:
                continue
            if of_hidden is not None:
                of_hidden[part] = of_raw @ weight
            if of_weight is not None:
                of_weight.addmm_(of_raw.T, hidden[part])
            if of_bias is not None:
                of_bias += of_raw.sum(0)
        return of_hidden, of_weight, of_bias, None, None, None


def _joined(parts: Iterable[tuple[slice, Sequence[Tensor]]], count: int) -> list[Tensor]:
    """Columns [count, ...] of which the parts come one by one.

    Their small results go to one place at once: left lying between the parts' large intermediate ones, they would keep malloc
    from using that space again, and memory would grow with every part.
    """
    columns: list[Tensor] = []
    for part, found in parts:
        columns = columns or [values.new_empty((count, *values.shape[1:])) for values in found]
        for column, values in zip(columns, found, strict=True):
            column[part] = values
    return columns


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _gradient(few: Few, raw: Tensor, part: slice, given: Mapping[str, Tensor]) -> Tensor | None:
    """Of a part's columns with respect to `raw`, weighted by the gradients `given` of all positions; None where there is none."""
    with torch.enable_grad():
        columns = few(raw.requires_grad_(), part, list(given))
    moved = [(c, grad[part]) for c, grad in zip(columns, given.values(), strict=True) if c.requires_grad]
    if not moved:
        return None
    return torch.autograd.grad([c for c, _ in moved], raw, [grad for _, grad in moved])[0]


def _scaled(logits: Tensor, wanted: Wanted) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide if wanted.temperature == 1.0 else wide / wanted.temperature
