"""The engine as a whole, against plain forward passes and enumerated distributions."""

import gc
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from upslope.engines import prefix
from upslope.engines.local import LocalEngine
from upslope.errors import UsageError
from upslope.rollout import Rollouts, Sampling

from .models import OWN_CACHE, SHARED, VOCABULARY, Policy, build, chain, markov, plain_logits, plain_logp, tokenizer_of

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18, 19], [20, 21]]
COUNTS = [3, 1, 4, 2]
TWELVE = Sampling(max_tokens=12)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(policy: Policy, sampling: Sampling = TWELVE, *, max_rows=None, seed=0, **call) -> Rollouts:
    engine = LocalEngine(policy, max_rows=max_rows)
    return engine.generate(call.get("prompts", PROMPTS), call.get("counts", COUNTS), sampling, seeded(seed))


@pytest.mark.parametrize("architecture", SHARED + OWN_CACHE)
def test_logp_is_that_of_a_plain_forward_pass(architecture):
    model = build(architecture)
    rollouts = sample(Policy(model))
    assert rollouts.prompt.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 3, 3]
    assert rollouts.length.max() == 12
    torch.testing.assert_close(rollouts.logp, plain_logp(model, rollouts), atol=2e-5, rtol=0)
    torch.testing.assert_close(rollouts.behavior_logp, rollouts.logp, atol=0, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 7, "top_p": 0.8}],
    ids=str,
)
def test_behavior_logp_is_of_the_tempered_truncated_distribution(settings):
    model = build("Llama")
    sampling = Sampling(max_tokens=10, **settings)
    rollouts = sample(Policy(model), sampling)
    torch.testing.assert_close(rollouts.logp, plain_logp(model, rollouts), atol=2e-5, rtol=0)
    for row in range(len(rollouts)):
        length = int(rollouts.length[row])
        for logits, token, logp in zip(
            plain_logits(model, rollouts, row).double().numpy(),
            rollouts.tokens[row, :length].tolist(),
            rollouts.behavior_logp[row, :length].tolist(),
            strict=True,
        ):
            order = np.argsort(-logits)[: sampling.top_k or None]
            p = np.exp(logits[order] / sampling.temperature)
            p /= p.sum()
            kept = np.cumsum(p) - p < sampling.top_p
            (place,) = np.flatnonzero(order == token)
            assert kept[place]
            assert logp == pytest.approx(np.log(p[place] / p[kept].sum()), abs=5e-5)


def test_sequences_have_the_probability_that_the_model_gives_them():
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(6, 6, generator=generator)
    policy = Policy(markov(table), tokenizer_of(["a", "b", "c"]))
    policy.model.generation_config.eos_token_id = policy.tokenizer.eos_token = None
    rollouts = sample(policy, Sampling(max_tokens=2), prompts=[[3], [4, 5]], counts=[6000, 6000], max_rows=5000)
    p = table.double().softmax(-1)
    for prompt, last in ((0, 3), (1, 5)):
        pairs = rollouts.tokens[rollouts.prompt == prompt]
        seen = torch.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36)
        expected = (p[last][:, None] * p).flatten() * len(pairs)
        assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX", "Mistral", "Mamba"])
@pytest.mark.parametrize("max_rows", [1, 3, 6])
def test_batching_changes_rounding_only(architecture, max_rows):
    policy = Policy(build(architecture))
    together, apart = sample(policy), sample(policy, max_rows=max_rows)
    assert torch.equal(together.tokens, apart.tokens)
    assert together.text == apart.text
    torch.testing.assert_close(together.logp, apart.logp, atol=2e-5, rtol=0)


def test_draws_depend_on_the_generator_alone():
    policy = Policy(build("Llama"))
    engine, generator = LocalEngine(policy), seeded()
    first, second = (engine.generate(PROMPTS, COUNTS, Sampling(max_tokens=12), generator) for _ in range(2))
    torch.rand(7)
    again = sample(policy)
    for name in ("tokens", "logp", "behavior_logp", "length"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.tokens[:, :5], second.tokens[:, :5])
    rows = first.tokens[4:8, :6].tolist()
    assert len({tuple(row) for row in rows}) == 4, "rows of one prompt draw different tokens"


@pytest.mark.parametrize("architecture", ["Llama", "Gemma", "Mistral"])
def test_greedy_equals_transformers_generate(architecture):
    model = build(architecture)
    rollouts = sample(Policy(model), Sampling(max_tokens=15, temperature=0.0))
    assert not rollouts.behavior_logp.any()
    for row in range(len(rollouts)):
        prompt = torch.tensor([rollouts.prompts[rollouts.prompt[row]]])
        theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=15)
        assert rollouts.tokens[row, : rollouts.length[row]].tolist() == theirs[0, prompt.shape[1] :].tolist()


def computed_tokens(model) -> list[int]:
    """A list that gets the number of tokens of every forward pass from now on."""
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].numel()))
    return seen


@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX"])
def test_a_prompt_is_read_once(architecture):
    policy = Policy(build(architecture, eos_token_id=None))
    policy.tokenizer.eos_token = None
    engine = LocalEngine(policy)
    call = [[5] * 8, [6] * 8, [7] * 8], [4, 4, 4], Sampling(max_tokens=5), seeded()
    engine.generate(*call)
    seen = computed_tokens(policy.model)
    engine.generate(*call)
    assert seen == [3 * 8, 12, 12, 12, 12]


def test_a_straggler_is_decoded_alone():
    table = torch.zeros(VOCABULARY, VOCABULARY)
    table[5, 2] = table[6, 6] = 30.0
    policy = Policy(markov(table))
    engine = LocalEngine(policy)
    call = [[5], [6]], [7, 1], Sampling(max_tokens=30, temperature=0.0), seeded()
    engine.generate(*call)
    seen = computed_tokens(policy.model)
    assert engine.generate(*call).length.tolist() == [1] * 7 + [30]
    assert seen == [2] + [1] * 29


def test_rows_end_at_their_own_time():
    """Stragglers, end tokens of tokenizer and generation config, and what lies beyond an end."""
    table = torch.zeros(VOCABULARY, VOCABULARY)
    table[:, 2], table[:, 30] = 1.5, 1.5
    policy = Policy(markov(table))
    policy.model.generation_config.eos_token_id = [30]
    rollouts = sample(policy, Sampling(max_tokens=40), prompts=[[5], [6, 7], [8]], counts=[30, 20, 14])
    assert len(set(rollouts.length.tolist())) > 5
    ends = (rollouts.tokens == 2) | (rollouts.tokens == 30)
    for row in range(len(rollouts)):
        length = int(rollouts.length[row])
        assert not ends[row, : length - 1].any()
        assert (rollouts.finish[row] == "stop") == bool(ends[row, length - 1])
        assert bool(ends[row, length - 1]) or length == 40
        assert rollouts.mask[row].tolist() == [position < length for position in range(rollouts.tokens.shape[1])]
    assert not (rollouts.tokens * ~rollouts.mask).any()
    assert not (rollouts.logp * ~rollouts.mask).any()
    torch.testing.assert_close(rollouts.logp, plain_logp(policy.model, rollouts), atol=2e-5, rtol=0)


def test_the_context_is_a_limit_of_each_row():
    policy = replace(Policy(build("GPT2", eos_token_id=None)), context_length=12)
    policy.tokenizer.eos_token = None
    rollouts = sample(policy, Sampling(max_tokens=10), prompts=[[5] * 11, [6] * 4, [7]], counts=[2, 2, 1])
    assert rollouts.length.tolist() == [1, 1, 8, 8, 10]
    assert set(rollouts.finish) == {"length"}
    torch.testing.assert_close(rollouts.logp, plain_logp(policy.model, rollouts), atol=2e-5, rtol=0)


def test_positions_beyond_the_model_are_never_read():
    """GPT-2 has a table of 96 positions: rows that have filled it stay in the batch while one other goes on."""
    policy = Policy(build("GPT2", eos_token_id=None))
    policy.tokenizer.eos_token = None
    rollouts = sample(policy, Sampling(max_tokens=20), prompts=[[5] * 95, [6] * 40], counts=[1, 30])
    assert rollouts.length.tolist() == [1] + [20] * 30


def test_stop_string_across_tokens():
    policy = Policy(chain(7, 3, 4, 5, 6), tokenizer_of(["<", "/a", "ns", "w>", "x"]))
    sampling = Sampling(max_tokens=9, temperature=0.0, stop=("</ans",))
    rollouts = sample(policy, sampling, prompts=[[7, 7], [7, 3]], counts=[2, 1])
    assert rollouts.tokens[:, :4].tolist() == [[3, 4, 5, 0], [3, 4, 5, 0], [4, 5, 6, 6]]
    assert rollouts.length.tolist() == [3, 3, 9], (
        "the start of the string was in the last prompt, not in its completion"
    )
    assert rollouts.finish == ["stop", "stop", "length"]
    assert rollouts.text == ["", "", "/ans" + 7 * "w>"]


def test_text_is_cut_before_the_first_stop_string():
    policy = Policy(chain(3, 4, 5, 6, 7), tokenizer_of(["a", "b", "c", "d;e", "f"]))
    rollouts = sample(policy, Sampling(temperature=0.0, stop=("f", ";")), prompts=[[3]], counts=[1])
    assert rollouts.tokens.tolist() == [[4, 5, 6]]
    assert rollouts.text == ["bcd"]


def test_special_token_as_stop_string():
    policy = Policy(chain(4, 5, 6, 7), tokenizer_of(["a", "b", "c", "<end>", "d"], special=["<end>"]))
    rollouts = sample(policy, Sampling(temperature=0.0, stop=("<end>",)), prompts=[[4]], counts=[1])
    assert rollouts.tokens.tolist() == [[5, 6]]
    assert (rollouts.text, rollouts.finish) == (["c"], ["stop"])


def test_models_that_cannot_share_prompts_are_named_once(caplog):
    caplog.set_level(logging.WARNING, logger="upslope")
    engine = LocalEngine(Policy(build("Mistral")))
    for _ in range(2):
        engine.generate(PROMPTS, COUNTS, Sampling(max_tokens=2), seeded())
    (record,) = caplog.records
    assert "slides" in record.getMessage()
    caplog.clear()
    sample(Policy(build("Llama")))
    assert not caplog.records


def test_leaves_nothing_behind():
    model = build("GPTNeoX")
    model.train()
    model.gpt_neox.layers[0].eval()
    implementation = model.config._attn_implementation
    flags = [module.training for module in model.modules()]
    policy = Policy(model)
    engine = LocalEngine(policy)
    rollouts = engine.generate(PROMPTS, COUNTS, Sampling(max_tokens=3), seeded())
    assert [module.training for module in model.modules()] == flags
    assert model.config._attn_implementation == implementation
    assert not model.get_output_embeddings()._forward_pre_hooks
    gc.collect()
    assert not any(isinstance(thing, prefix.PrefixCache) for thing in gc.get_objects())
    # Inference tensors could not be saved for a backward pass.
    logits = torch.zeros(*rollouts.tokens.shape, VOCABULARY, requires_grad=True)
    (logits.gather(-1, rollouts.tokens[..., None])[..., 0] * rollouts.logp * rollouts.mask).sum().backward()


def test_restores_the_model_after_an_error():
    model = build("GPTNeoX").train()
    engine = LocalEngine(Policy(model))
    engine.generate(PROMPTS, COUNTS, Sampling(max_tokens=1), seeded())
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(FloatingPointError):
        engine.generate(PROMPTS, COUNTS, Sampling(max_tokens=3), seeded())
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_new_weights_are_used_at_once():
    model = build("Llama")
    engine = LocalEngine(Policy(model))
    before = engine.generate(PROMPTS, COUNTS, Sampling(max_tokens=8), seeded())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    after = engine.generate(PROMPTS, COUNTS, Sampling(max_tokens=8), seeded())
    assert not torch.equal(before.tokens, after.tokens)
    torch.testing.assert_close(after.logp, plain_logp(model, after), atol=2e-5, rtol=0)


def test_adapters_are_sampled_from():
    import peft

    model = peft.get_peft_model(build("Llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    rollouts = sample(Policy(model))
    torch.testing.assert_close(rollouts.logp, plain_logp(model, rollouts), atol=5e-5, rtol=0)
    with model.disable_adapter():
        assert (plain_logp(model, rollouts) - rollouts.logp).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = build("Llama").to(dtype)
    rollouts = sample(Policy(model, dtype=dtype))
    assert rollouts.logp.dtype == torch.float32
    gap = (rollouts.logp - plain_logp(model, rollouts)).abs().max()
    assert gap < (0.2 if dtype == torch.bfloat16 else 1e-5)


def test_no_rows():
    for prompts, counts in (([], []), ([[5, 6]], [0])):
        rollouts = sample(Policy(build("Llama")), prompts=prompts, counts=counts)
        assert len(rollouts) == 0
        assert rollouts.tokens.shape == (0, 1)
    rollouts = sample(Policy(build("Llama")), prompts=[[5], [6], [7]], counts=[1, 0, 2])
    assert rollouts.prompt.tolist() == [0, 2, 2]


def test_selecting_and_joining_rollouts():
    policy = Policy(build("Llama"))
    rollouts = sample(policy)
    parts = [rollouts.select(torch.tensor([0, 1])), sample(policy, seed=1)]
    assert Rollouts.concatenate(parts).tokens.shape[0] == 2 + len(rollouts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [[5], []]}, r"Prompt 1 is empty"),
        ({"prompts": [[5], [6] * 96]}, r"Prompt 1 has 96 tokens, .* context of 96"),
        ({"prompts": [[5], [6, 40]]}, r"Prompt 1 holds token 40, .* ends at 39"),
        ({"prompts": [[5], [-1]]}, r"Prompt 1 holds token -1"),
        ({"prompts": [[5]]}, r"1 prompts, but 2 counts"),
        ({"counts": [1, -2]}, r"counts\[1\] is -2"),
        ({"sampling": Sampling(max_tokens=0)}, r"max_tokens is 0"),
        ({"sampling": Sampling(temperature=-1.0)}, r"temperature is -1"),
        ({"sampling": Sampling(temperature=float("nan"))}, r"temperature is nan"),
        ({"sampling": Sampling(top_p=0.0)}, r"top_p is 0"),
        ({"sampling": Sampling(top_p=1.1)}, r"top_p is 1.1"),
        ({"sampling": Sampling(top_k=-1)}, r"top_k is -1"),
        ({"sampling": Sampling(stop=("",))}, r"empty string"),
        ({"sampling": Sampling(stop="stop")}, r"write stop=\('stop',\)"),
    ],
)
def test_wrong_input(change, message):
    call = {"prompts": [[5], [6]], "counts": [1, 1], "sampling": Sampling()} | change
    with pytest.raises(UsageError, match=message):
        LocalEngine(Policy(build("Llama"))).generate(generator=seeded(), **call)


def test_wrong_max_rows():
    with pytest.raises(UsageError, match="max_rows is 0"):
        LocalEngine(Policy(build("Llama")), max_rows=0)


def test_logits_that_are_not_finite_are_named_by_row_and_step():
    model = chain(7, 8, 9)
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    engine = LocalEngine(Policy(model))
    with pytest.raises(FloatingPointError, match=r"row 2 .prompt 1. at step 2, and 1 more of 4"):
        engine.generate([[5], [7]], [2, 2], Sampling(temperature=0.0), seeded())
