"""Attention to shared prompts equals attention to prompt and completion written out per row."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from upslope.engines import prefix
from upslope.engines.prefix import PrefixCache, attend, attend_shared_prefix, shared_prefix_attention

HEADS, REPEATS, SIZE = 2, 3, 4


def filled(lengths: list[int], counts: list[int], steps: int, seed: int) -> tuple[PrefixCache, list[torch.Tensor]]:
    """A cache of one layer after `steps` tokens per row, and for each row the keys and values [2, H, n, D] it holds."""
    draw = torch.Generator().manual_seed(seed)
    prefixes = torch.randn(2, len(lengths), HEADS, max(lengths), SIZE, generator=draw)
    prompt = torch.repeat_interleave(torch.tensor(counts))
    cache = PrefixCache([(prefixes[0], prefixes[1])], torch.tensor(lengths), prompt, limit=steps)
    rows = [prefixes[:, p, :, : lengths[p]] for p in prompt.tolist()]
    for step in range(steps):
        assert cache.positions()[:, 0].tolist() == [lengths[p] + step for p in prompt.tolist()]
        new = torch.randn(2, len(prompt), HEADS, 1, SIZE, generator=draw)
        cache.update(new[0], new[1], 0)
        rows = [torch.cat([row, new[:, index]], dim=-2) for index, row in enumerate(rows)]
    return cache, rows


def check(cache: PrefixCache, rows: list[torch.Tensor]) -> None:
    layer = cache.parts[0]
    query = torch.randn(len(rows), HEADS * REPEATS, SIZE, generator=torch.Generator().manual_seed(9))
    own = layer.keys[:, :, : layer.length], layer.values[:, :, : layer.length]
    found = attend(cache, 0, query, *own, 0.4)
    for row, (keys, values) in enumerate(rows):
        expected = scaled_dot_product_attention(
            query[row][:, None], keys.repeat_interleave(REPEATS, 0), values.repeat_interleave(REPEATS, 0), scale=0.4
        )
        torch.testing.assert_close(found[row], expected.flatten(), atol=1e-5, rtol=1e-5)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 9),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_equals_attention_per_row_before_and_after_retiring_rows(groups, steps, seed, data):
    lengths, counts = map(list, zip(*groups, strict=True))
    cache, rows = filled(lengths, counts, steps, seed)
    check(cache, rows)
    kept = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
    cache.keep(torch.tensor(kept))
    check(cache, [rows[row] for row in kept])
    assert len(cache.parts[0].prefix_keys) == len(cache.groups.prompt.unique())


def test_buffers_grow_without_loss_and_a_prompt_is_stored_once():
    cache, rows = filled([3, 5], [8, 8], 3 * prefix.FIRST_CAPACITY, 0)
    assert cache.parts[0].keys.shape == (16, HEADS, 3 * prefix.FIRST_CAPACITY, SIZE)
    assert cache.parts[0].prefix_keys.shape == (2, HEADS, 5, SIZE)
    check(cache, rows)


@pytest.mark.parametrize("request_", [{"sliding_window": 4}, {"softcap": 3.0}, {"dropout": 0.1}])
def test_refuses_what_it_does_not_compute(request_):
    cache, _ = filled([3], [2], 1, 0)
    module = SimpleNamespace(layer_idx=0)
    query, own = torch.zeros(2, HEADS, 1, SIZE), torch.zeros(2, HEADS, 1, SIZE)
    with shared_prefix_attention([], cache):
        output, _ = attend_shared_prefix(module, query, own, own, None, sliding_window=None, use_cache=True)
        assert output.shape == (2, 1, HEADS, SIZE)
        with pytest.raises(NotImplementedError, match=next(iter(request_))):
            attend_shared_prefix(module, query, own, own, None, **request_)
