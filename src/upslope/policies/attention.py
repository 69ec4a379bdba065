"""Attention over packed prefix trees: each token sees its ancestors and itself, nothing else.

Three back ends compute the same thing.

- `segments` (CPU): causal attention inside each segment, then one unmasked call per shared segment from everything
  below it. The pieces are merged by their log-sum-exp, forward and backward, so neither a mask nor a score matrix is
  held, no key is repeated, and no score is computed that the softmax would drop.
- `mask`: one scaled-dot-product call per tree under a boolean mask.
- `flex`: FlexAttention with a block mask over the whole pass (CUDA).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from upslope.policies.tree import PackedTrees

Backend = Literal["segments", "mask", "flex"]

# Segments up to this length share one causal call, padded to the longest; longer ones are grouped by powers of two.
SHORT = 32


@dataclass(frozen=True)
class CausalBlock:
    """Segments of similar length, attended to causally in one call of shape [count, width].

    `gather` [count * width] reads them from the packed tokens, repeating the last token as padding at `padding`. It is
    None where the segments are equally long and contiguous from `start`: then a view serves.
    """

    start: int
    count: int
    width: int
    gather: Tensor | None
    padding: Tensor | None

    def read(self, packed: Tensor) -> Tensor:
        """[N, ...] to [count, width, ...]."""
        if self.gather is None:
            rows = packed[self.start : self.start + self.count * self.width]
        else:
            rows = packed.index_select(0, self.gather)
        return rows.unflatten(0, (self.count, self.width))


@dataclass(frozen=True)
class TreeAttention:
    """What attention has to know about a pass of N packed tokens.

    blocks      the causal part, segment by segment
    take        where each packed token lies in the concatenated blocks [N]; None where in place
    shared      (first, last, reach): queries [last, reach) see all of the keys [first, last)
    trees       (first, last) packed token of each tree
    end         one past the last packed token that sees each one [N]
    """

    blocks: tuple[CausalBlock, ...]
    take: Tensor | None
    shared: tuple[tuple[int, int, int], ...]
    trees: tuple[tuple[int, int], ...]
    end: Tensor
    _masks: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, trees: PackedTrees, device: torch.device) -> "TreeAttention":
        start, reach = trees.start[:-1], trees.reach
        size = np.diff(trees.start)
        level = np.where(size <= SHORT, 0, np.ceil(np.log2(np.maximum(size, 1))))
        groups = [np.flatnonzero(level == value) for value in np.unique(level)]
        blocks = tuple(_causal_block(start[group], size[group], device) for group in groups)
        written = np.concatenate([_token_order(start[group], size[group]) for group in groups])
        take = None
        if not np.array_equal(written, np.arange(trees.size)):
            place = np.full(trees.size, -1, dtype=np.int64)
            place[written[written >= 0]] = np.flatnonzero(written >= 0)
            take = torch.from_numpy(place).to(device)
        last = start + size
        below = reach > last
        bounds = trees.start[trees.roots]
        return cls(
            blocks=blocks,
            take=take,
            shared=tuple(zip(*(x[below].tolist() for x in (start, last, reach)), strict=True)),
            trees=tuple(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)),
            end=torch.from_numpy(trees.end).to(device),
        )

    def mask(self, first: int, last: int) -> Tensor:
        """True where the query (row) sees the key (column), for the packed tokens [first, last)."""
        index = torch.arange(first, last, device=self.end.device)
        return sees(index[:, None], index[None, :], self.end[first:last][None, :])

    def tree_masks(self) -> list[Tensor]:
        """One mask per tree, made once per pass."""
        if "dense" not in self._masks:
            self._masks["dense"] = [self.mask(first, last) for first, last in self.trees]
        masks: list[Tensor] = self._masks["dense"]
        return masks

    def block_mask(self) -> Any:
        """FlexAttention's block mask over the whole pass, made once per pass."""
        if "flex" not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            end, size = self.end, len(self.end)

            def sees_packed(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return sees(query, key, end[key])

            self._masks["flex"] = create_block_mask(sees_packed, None, None, size, size, device=str(end.device))
        return self._masks["flex"]


def sees(query: Tensor, key: Tensor, end: Tensor) -> Tensor:
    """Whether packed token `query` has `key`, whose descendants stop before `end`, as an ancestor or is it."""
    return (query >= key) & (query < end)


def _token_order(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The packed token in each slot of a block, -1 in its padding.  [count * width]"""
    step = np.arange(size.max())
    return np.where(step < size[:, None], start[:, None] + step, -1).ravel()


def _causal_block(start: np.ndarray, size: np.ndarray, device: torch.device) -> CausalBlock:
    count, width = len(size), int(size.max())
    if (size == width).all() and (np.diff(start) == width).all():
        return CausalBlock(int(start[0]), count, width, None, None)
    step = np.arange(width)
    gather = (start[:, None] + np.minimum(step, size[:, None] - 1)).ravel()
    padding = np.flatnonzero((step >= size[:, None]).ravel())
    return CausalBlock(
        start=int(start[0]),
        count=count,
        width=width,
        gather=torch.from_numpy(gather).to(device),
        padding=torch.from_numpy(padding).to(device) if len(padding) else None,
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeAttention, scale: float | None, backend: Backend
) -> Tensor:
    """Tree attention of one pass: query, key, value [1, heads, N, head_dim] to the output [1, N, heads, head_dim]."""
    if backend == "segments" and query.shape[-1] == value.shape[-1]:
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]
        packed: Tensor = _SegmentAttention.apply(*rows, tree, scale)
        return packed[None]
    if backend == "flex":
        return _flex()(query, key, value, block_mask=tree.block_mask(), scale=scale).transpose(1, 2)
    pieces = []
    for (first, last), mask in zip(tree.trees, tree.tree_masks(), strict=True):
        q, k, v = (x[:, :, first:last] for x in (query, key, value))
        pieces.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))
    return torch.cat(pieces, dim=2).transpose(1, 2)


@cache
def _flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


# The kernel behind scaled_dot_product_attention on CPU. Called by name, because the public function does not return
# the log-sum-exp by which pieces are merged. Its backward takes the *merged* output and log-sum-exp and then yields
# each piece's share of the true gradient: weights are exp(score - logsumexp), whatever keys the call is given.
def _forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """[count, length, heads, head_dim] to the output, likewise, and its log-sum-exp [count, length, heads]."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    output, logsumexp = kernel(*heads_first, 0.0, causal, scale=scale)
    return output.transpose(1, 2), logsumexp.transpose(1, 2)


def _backward(rows: tuple[Tensor, ...], causal: bool, scale: float | None) -> list[Tensor]:
    """Gradients of query, key, value from (grad, query, key, value, output, logsumexp) [count, length, heads, ...]."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    heads_first = (x.transpose(1, 2) for x in rows)
    return [x.transpose(1, 2) for x in kernel(*heads_first, 0.0, causal, scale=scale)]


class _SegmentAttention(torch.autograd.Function):
    """query, key, value [N, heads, head_dim] to the output, likewise."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TreeAttention, scale: float | None
    ) -> Tensor:
        pieces = [_forward(block.read(query), block.read(key), block.read(value), True, scale) for block in tree.blocks]
        output, logsumexp = (_join(list(parts), tree) for parts in zip(*pieces, strict=True))
        for first, last, reach in tree.shared:
            above, above_lse = _forward(
                query[None, last:reach], key[None, first:last], value[None, first:last], False, scale
            )
            own, own_lse = output[last:reach], logsumexp[last:reach]
            merged = torch.logaddexp(own_lse, above_lse[0])
            own.mul_((own_lse - merged).exp_().unsqueeze(-1).to(own.dtype))
            own.addcmul_(above[0], (above_lse[0] - merged).exp_().unsqueeze(-1).to(own.dtype))
            own_lse.copy_(merged)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.tree, ctx.scale = tree, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, logsumexp = ctx.saved_tensors
        tree, scale = ctx.tree, ctx.scale
        pieces = []
        for block in tree.blocks:
            upstream = block.read(grad)
            if block.padding is not None:
                upstream = upstream.flatten(0, 1).index_fill(0, block.padding, 0.0).view_as(upstream)
            rows = tuple(block.read(x) for x in (query, key, value, output, logsumexp))
            pieces.append(_backward((upstream, *rows), True, scale))
        grads = [_join(list(parts), tree) for parts in zip(*pieces, strict=True)]
        for first, last, reach in tree.shared:
            upper, lower = slice(first, last), slice(last, reach)
            rows = (grad[lower], query[lower], key[upper], value[upper], output[lower], logsumexp[lower])
            shares = _backward(tuple(x[None] for x in rows), False, scale)
            for total, share, where in zip(grads, shares, (lower, upper, upper), strict=True):
                total[where] += share[0]
        return *grads, None, None


def _join(parts: list[Tensor], tree: TreeAttention) -> Tensor:
    """The causal blocks' [count, width, ...], back in packed order [N, ...]; a fresh tensor."""
    flat = [part.flatten(0, 1) for part in parts]
    joined = flat[0] if len(flat) == 1 else torch.cat(flat)
    return joined if tree.take is None else joined.index_select(0, tree.take)
