"""A packed forest holds every sequence, each distinct prefix once, and a token sees its own ancestors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.policies.attention import sees
from upslope.policies.tree import pack

# Few distinct tokens, so that prefixes are shared at all depths; whole duplicates and prefixes of others included.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=12)
SAVINGS = st.sampled_from([1, 3, 16, 1000])


def packed(rows, min_saving=1):
    length = np.array([len(row) for row in rows])
    tokens = np.full((len(rows), length.max()), 9)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return pack(tokens, length, min_saving)


@settings(deadline=None)
@given(SEQUENCES, SAVINGS)
def test_every_sequence_is_in_the_forest(rows, min_saving):
    trees = packed(rows, min_saving)
    for i, row in enumerate(rows):
        path = trees.where[i, : len(row)]
        np.testing.assert_array_equal(trees.ids[path], row)
        np.testing.assert_array_equal(trees.position[path], np.arange(len(row)))


@settings(deadline=None)
@given(SEQUENCES, SAVINGS)
def test_a_token_sees_its_ancestors_only(rows, min_saving):
    trees = packed(rows, min_saving)
    index = np.arange(trees.size)
    mask = sees(index[:, None], index[None, :], trees.end[None, :])
    np.testing.assert_array_equal(mask.sum(axis=1), trees.position + 1)
    for i, row in enumerate(rows):
        path = trees.where[i, : len(row)]
        assert mask[np.ix_(path, path)].sum() == len(row) * (len(row) + 1) // 2


@settings(deadline=None)
@given(SEQUENCES)
def test_each_distinct_prefix_once(rows):
    prefixes = {tuple(row[: n + 1]) for row in rows for n in range(len(row))}
    assert packed(rows).size == len(prefixes)


@settings(deadline=None)
@given(SEQUENCES, SAVINGS)
def test_segments_tile_the_forest_in_depth_first_order(rows, min_saving):
    trees = packed(rows, min_saving)
    assert trees.start[0] == 0
    assert trees.start[-1] == trees.size
    assert (np.diff(trees.start) > 0).all()
    assert (trees.reach >= trees.start[1:]).all()
    np.testing.assert_array_equal(trees.position[trees.start[trees.roots[:-1]]], 0)
    if min_saving == 1:
        assert len(trees.roots) - 1 == len({row[0] for row in rows})


@settings(deadline=None)
@given(SEQUENCES, st.randoms())
def test_row_order_does_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    one, other = packed(rows, 3), packed(shuffled, 3)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.end, other.end)


@pytest.mark.parametrize(("shared", "segments"), [(15, 2), (16, 3)])
def test_a_prefix_is_shared_where_it_saves_enough(shared, segments):
    trees = packed([[1] * shared + [2, 2], [1] * shared + [0]], min_saving=16)
    assert len(trees.start) - 1 == segments
    assert trees.size == 2 * shared + 3 - (shared if segments == 3 else 0)
