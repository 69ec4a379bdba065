"""Prefix trees over token sequences: every distinct prefix once, laid out depth first in one packed sequence.

Depth-first order makes two things cheap. A token's descendants are a contiguous range behind it, so "sees its ancestors
only" is `key <= query < end[key]`; and a segment's keys are read by one contiguous range of queries.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# A shared prefix becomes a segment of its own when that saves this many token passes. A segment costs one more
# attention call per layer, about what 8 to 16 tokens cost in a 1M-parameter model.
MIN_SAVING = 16


@dataclass(frozen=True)
class PackedTrees:
    """A forest of prefix trees over R sequences, packed into N tokens of S segments in depth-first order.

    ids        token ids                                                               [N]
    position   position of each token in the sequences that run through it             [N]
    end        one past the last packed token that sees this one                       [N]
    start      first packed token of each segment, N at the end                        [S+1]
    reach      one past the last packed token below each segment                       [S]
    roots      the segments that start a tree (position 0), S at the end               [number of trees + 1]
    where      packed index of each sequence's tokens; undefined beyond its length     [R, L]
    """

    ids: Ints
    position: Ints
    end: Ints
    start: Ints
    reach: Ints
    roots: Ints
    where: Ints

    @property
    def size(self) -> int:
        """N, the tokens that pass through the model."""
        return len(self.ids)


@dataclass(slots=True)
class _Prefix:
    """`depth` tokens shared by the sorted sequences [low, high), which continue in `children` different ways."""

    low: int
    depth: int
    high: int = 0
    children: int = 0


def pack(tokens: Ints, length: Ints, min_saving: int = MIN_SAVING) -> PackedTrees:
    """Pack sequences `tokens` [R, L], of `length` [R] >= 1 each, into prefix trees.

    Sequences that share a prefix share its tokens where that saves at least `min_saving` of them; 1 shares all.
    """
    tokens = np.ascontiguousarray(tokens)
    keys = [row[:n].tobytes() for row, n in zip(tokens, length.tolist(), strict=True)]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    ordered, lengths = tokens[order], length[order]
    kept = _worthwhile(_shared_prefixes(_common_prefix(ordered, lengths), len(order)), min_saving)

    # Segments as (first row, one past the last row, from position, to position): shared prefixes, then leaves.
    above = np.zeros(len(order), dtype=np.int64)  # tokens of each row that lie in shared segments so far
    spans = []
    for prefix in kept:
        spans.append((prefix.low, prefix.high, int(above[prefix.low]), prefix.depth))
        above[prefix.low : prefix.high] = prefix.depth
    leaf = np.flatnonzero(above < lengths)
    leaves = np.stack([leaf, leaf + 1, above[leaf], lengths[leaf]], axis=1)
    segments = np.concatenate([np.array(spans, dtype=np.int64).reshape(-1, 4), leaves])
    segments = segments[np.lexsort((segments[:, 2], segments[:, 0]))]
    return _lay_out(ordered, order, segments)


def _lay_out(ordered: Ints, order: Ints, segments: Ints) -> PackedTrees:
    low, high, begin, stop = segments.T
    size = stop - begin
    start = np.concatenate([[0], size.cumsum()])
    reach = start[np.searchsorted(low, high, side="left")]
    segment = np.repeat(np.arange(len(size)), size)
    packed = np.arange(start[-1])
    position = packed - start[segment] + begin[segment]
    where = np.zeros(ordered.shape, dtype=np.int64)
    for first, last, a, b, offset in np.column_stack([segments, start[:-1]])[high - low > 1].tolist():
        where[order[first:last], a:b] = np.arange(offset, offset + b - a)
    alone = (high - low == 1)[segment]
    where[order[low[segment[alone]]], position[alone]] = packed[alone]
    return PackedTrees(
        ids=ordered[low[segment], position],
        position=position,
        end=reach[segment],
        start=start,
        reach=reach,
        roots=np.append(np.flatnonzero(begin == 0), len(size)),
        where=where,
    )


def _common_prefix(ordered: Ints, lengths: Ints) -> list[int]:
    """Tokens that each sorted sequence shares with the one before it; the first shares none.  [R]"""
    if len(ordered) < 2:
        return [0] * len(ordered)
    differs = ordered[1:] != ordered[:-1]
    first = np.where(differs.any(axis=1), differs.argmax(axis=1), ordered.shape[1])
    return [0, *np.minimum(first, np.minimum(lengths[1:], lengths[:-1])).tolist()]


def _shared_prefixes(common: list[int], rows: int) -> list[_Prefix]:
    """All maximal shared prefixes, each before those that extend it (the intervals of the common-prefix array)."""
    found: list[_Prefix] = []
    open_ = [_Prefix(low=0, depth=0)]
    for row in range(1, rows + 1):
        depth = common[row] if row < rows else 0
        # The row before hangs under the deepest open prefix, or under one that starts with it.
        low = row - 1
        attached = False
        if depth > open_[-1].depth:
            open_.append(_Prefix(low=low, depth=depth, children=1))
            attached = True
        if not attached:
            open_[-1].children += 1
        while open_[-1].depth > depth:
            closed = open_.pop()
            closed.high = row
            found.append(closed)
            if open_[-1].depth < depth:
                open_.append(_Prefix(low=closed.low, depth=depth, children=1))
            else:
                open_[-1].children += 1
    return sorted(found, key=lambda prefix: (prefix.low, prefix.depth))


def _worthwhile(prefixes: list[_Prefix], min_saving: int) -> list[_Prefix]:
    """Those whose own segment saves enough; what a dropped one shared is repeated in its children."""
    kept: list[_Prefix] = []
    above: list[_Prefix] = []
    for prefix in prefixes:
        while above and above[-1].high <= prefix.low:
            above.pop()
        own = prefix.depth - (above[-1].depth if above else 0)
        if (prefix.children - 1) * own >= min_saving:
            kept.append(prefix)
            above.append(prefix)
    return kept
