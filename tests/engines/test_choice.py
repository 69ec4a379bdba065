"""The decoder is chosen by what the model computes, not by what it is called."""

import logging

import pytest
import torch

from upslope.engines.choice import choose_decoder, gaps
from upslope.engines.decoders import PREFILL_TOKENS, CacheDecoder, SharedPrefixDecoder, _prefill_passes
from upslope.engines.llama import MODEL_TYPES
from upslope.errors import UsageError

from .models import OWN_CACHE, SHARED, build


def chosen(model):
    with torch.inference_mode():
        return choose_decoder(model.eval(), 96)()


@pytest.mark.parametrize("architecture", SHARED)
def test_full_attention_shares_prompts(architecture):
    decoder = chosen(build(architecture))
    assert isinstance(decoder, SharedPrefixDecoder)
    assert (decoder.direct is not None) == (decoder.model.config.model_type in MODEL_TYPES)


@pytest.mark.parametrize("architecture", OWN_CACHE)
def test_other_models_keep_their_own_cache(architecture):
    assert isinstance(chosen(build(architecture)), CacheDecoder)


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 16},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    ],
    ids=str,
)
def test_direct_steps_equal_the_forward_pass(settings):
    model = build("Llama", **settings)
    decoder = chosen(model)
    assert decoder.direct is not None
    with torch.inference_mode():
        assert max(gaps(decoder, model)) < 1e-5


def test_a_model_that_computes_something_else_is_noticed(caplog):
    caplog.set_level(logging.WARNING, logger="upslope")
    model = build("Llama")
    model.model.layers[1].mlp.register_forward_hook(lambda _module, _inputs, output: output * 2)
    decoder = chosen(model)
    assert isinstance(decoder, SharedPrefixDecoder)
    assert decoder.direct is None
    assert "log-probs were off by" in caplog.text


def test_a_model_that_cannot_be_decoded_is_refused():
    model = build("Llama")
    # Its logits depend on how many tokens it sees at once, so no cache can reproduce them.
    model.register_forward_hook(
        lambda _m, _a, kw, out: setattr(out, "logits", out.logits * kw["input_ids"].shape[1]), with_kwargs=True
    )
    with pytest.raises(UsageError, match="Cannot generate with LlamaForCausalLM"):
        chosen(model)


@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX"])
def test_prompts_of_several_passes(architecture, monkeypatch):
    monkeypatch.setattr("upslope.engines.decoders.PREFILL_TOKENS", 8)
    decoder = chosen(build(architecture))
    prompts = [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16, 17, 18], [19, 20]]
    with torch.inference_mode():
        logits = decoder.start(prompts, torch.tensor([0, 0, 1, 2, 3]), 1)
        for row, prompt in enumerate([prompts[0], *prompts]):
            plain = decoder.model(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(logits[row], plain, atol=1e-5, rtol=1e-5)


def test_prefill_passes_stay_in_budget():
    prompts = [[1] * length for length in (3000, 10, 2000, 9000, 700, 20, 1500)]
    passes = _prefill_passes(prompts)
    assert sorted(index for members in passes for index in members) == list(range(7))
    assert all(
        len(members) * max(len(prompts[i]) for i in members) <= PREFILL_TOKENS or len(members) == 1
        for members in passes
    )
    assert len(passes) == 6
