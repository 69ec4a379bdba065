"""The back ends against a softmax written out, value and gradient, over hypothesis-made trees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from upslope.policies.attention import SHORT, TreeAttention, attend
from upslope.policies.tree import pack

# Long runs too, so that segments fall into several blocks.
RUN = st.tuples(st.integers(0, 1), st.integers(1, 2 * SHORT))
ROWS = st.lists(st.lists(RUN, min_size=1, max_size=3), min_size=1, max_size=6)
HEADS, SIZE = 2, 5


def forest(runs):
    rows = [[token for token, count in row for _ in range(count)] for row in runs]
    length = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), length.max()), dtype=np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return pack(tokens, length, min_saving=4)


def random_heads(size, dtype=torch.float64):
    draw = torch.Generator().manual_seed(size)
    make = [torch.randn(1, HEADS, size, SIZE, generator=draw, dtype=dtype) for _ in range(4)]
    return [x.requires_grad_() for x in make[:3]], make[3].transpose(1, 2)


def written_out(query, key, value, mask, scale):
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("backend", ["segments", "mask"])
@settings(deadline=None, max_examples=40)
@given(runs=ROWS)
def test_equals_the_softmax_over_ancestors(backend, runs):
    trees = forest(runs)
    tree = TreeAttention.of(trees, torch.device("cpu"))
    heads, weight = random_heads(trees.size)
    expected = written_out(*heads, tree.mask(0, trees.size), 0.4)
    output = attend(*heads, tree, 0.4, backend)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad((output * weight).sum(), heads)
    wanted = torch.autograd.grad((expected * weight).sum(), heads)
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-9)


def test_float32_and_bfloat16_round_no_worse_than_one_call():
    trees = forest([[(0, 60), (1, 9)], [(0, 60), (0, 20), (1, 3)], [(1, 40)]])
    tree = TreeAttention.of(trees, torch.device("cpu"))
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        (query, key, value), _ = random_heads(trees.size, dtype)
        exact = written_out(query.double(), key.double(), value.double(), tree.mask(0, trees.size), 0.4)
        torch.testing.assert_close(
            attend(query, key, value, tree, 0.4, "segments").double(), exact, rtol=0, atol=tolerance
        )


def test_values_of_another_size_than_keys():
    trees = forest([[(0, 20), (1, 3)], [(0, 20), (0, 5)]])
    tree = TreeAttention.of(trees, torch.device("cpu"))
    (query, key, value), _ = random_heads(trees.size)
    output = attend(query, key, value[..., :3], tree, None, "segments")
    torch.testing.assert_close(output, attend(query, key, value, tree, None, "segments")[..., :3])


@settings(deadline=None, max_examples=15)
@given(runs=ROWS)
def test_flex_sees_what_the_dense_mask_sees(runs):
    trees = forest(runs)
    tree = TreeAttention.of(trees, torch.device("cpu"))
    index = torch.arange(trees.size)
    dense = tree.mask(0, trees.size)
    zero = torch.zeros((), dtype=torch.int64)
    torch.testing.assert_close(tree.block_mask().mask_mod(zero, zero, index[:, None], index[None, :]), dense)


def test_flex_attention_under_the_block_mask():
    trees = forest([[(0, 20), (1, 3)], [(0, 20), (0, 5)], [(1, 7)]])
    tree = TreeAttention.of(trees, torch.device("cpu"))
    heads, _ = random_heads(trees.size, torch.float32)
    heads = [x.detach() for x in heads]
    output = flex_attention(*heads, block_mask=tree.block_mask(), scale=0.4).transpose(1, 2)
    torch.testing.assert_close(output, attend(*heads, tree, 0.4, "mask"), rtol=1e-5, atol=1e-5)


def test_equal_neighbours_are_read_without_a_copy():
    tree = TreeAttention.of(forest([[(0, 40), (1, 3)], [(0, 40), (0, 3)]]), torch.device("cpu"))
    short = next(block for block in tree.blocks if block.width == 3)
    packed = torch.randn(46, 2)
    assert short.read(packed).data_ptr() == packed[40:].data_ptr()
