"""Tree attention inside transformers' interface: on inside the block, refused where it would be wrong."""

import pytest
import torch

from upslope.errors import UsageError
from upslope.policies.attention import TreeAttention
from upslope.policies.packing import (
    NAME,
    attention_configs,
    checkpoint_contexts,
    choose_backend,
    packed_attention,
)
from upslope.policies.tree import pack


@pytest.fixture
def tree():
    import numpy as np

    tokens = np.array([[3, 4, 5, 6], [3, 4, 7, 0]])
    return TreeAttention.of(pack(tokens, np.array([4, 3]), min_saving=1), torch.device("cpu"))


def test_blocks_nest_and_restore(llama, tree):
    configs = attention_configs(llama)
    with packed_attention(configs, tree, "segments"):
        with packed_attention(configs, tree, "mask"):
            assert llama.config._attn_implementation == NAME
        assert llama.config._attn_implementation == NAME
    assert llama.config._attn_implementation == "sdpa"


def test_recomputation_switches_again_after_the_block(llama, tree):
    with packed_attention(attention_configs(llama), tree, "segments"):
        _, recompute = checkpoint_contexts()
    assert llama.config._attn_implementation == "sdpa"
    with recompute:
        assert llama.config._attn_implementation == NAME
    assert llama.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"sliding_window": 4, "s_aux": 1.0}, "s_aux, sliding_window"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "is_causal=False"),
        ({"attention_mask": torch.ones(1)}, "attention_mask"),
    ],
)
def test_what_would_change_the_result_is_refused(settings, asked, llama, tree):
    from transformers import AttentionInterface

    heads = torch.randn(3, 1, 2, 5, 4)
    given = {"attention_mask": None, "use_cache": False, "position_ids": None} | settings
    with (
        packed_attention(attention_configs(llama), tree, "segments"),
        pytest.raises(NotImplementedError, match=f"asks for {asked}"),
    ):
        AttentionInterface()[NAME](llama, *heads, **given)


def test_back_ends_by_device():
    assert choose_backend("auto", torch.device("cpu")) == "segments"
    assert choose_backend("auto", torch.device("cuda")) == "mask"
    assert choose_backend("flex", torch.device("cuda")) == "flex"
    assert choose_backend("mask", torch.device("cpu")) == "mask"
    with pytest.raises(UsageError, match="'segments' does not run on cuda"):
        choose_backend("segments", torch.device("cuda"))
