"""Packed trees equal the padded, repeated batch, in value and gradient, for many architectures and shapes."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.policies import logprobs
from upslope.policies.heads import LogitFinish
from upslope.policies.language import LanguagePolicy, packing_gap

from .models import VOCABULARY, rollouts_of

ARCHITECTURES = ["Llama", "Qwen2", "Qwen3", "GPTNeoX", "Gemma", "Mistral", "GPT2", "Mixtral", "Cohere", "OPT"]
ALL = frozenset({"logp", "entropy", "log_distribution", "top_logp", "top_ids", "hidden"})


def gradient(policy, columns):
    """Of a loss with a random weight per element of the columns, as one vector."""
    draw = torch.Generator().manual_seed(5)
    loss = sum((column * torch.randn(column.shape, generator=draw)).sum() for column in columns)
    parameters = list(policy.parameters())
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).ravel() if g is None else g.ravel() for p, g in zip(parameters, grads, strict=True)]
    )


def both(model, **settings):
    """The same model on trees and on padded rows."""
    return LanguagePolicy(model, None, packing="tree", **settings), LanguagePolicy(model, None, packing="padded")


def check_equal(one, other, rollouts, needs=frozenset({"logp", "entropy"}), temperature=1.0, tolerance=1e-5):
    columns, expected = (p.score(rollouts, needs, temperature=temperature) for p in (one, other))
    assert columns.keys() == needs
    torch.testing.assert_close(columns, expected, rtol=tolerance, atol=tolerance)
    trained = sorted(needs - {"top_ids"})
    grads, wanted = (gradient(p, [c[n] for n in trained]) for p, c in ((one, columns), (other, expected)))
    assert (grads - wanted).norm() <= tolerance * wanted.norm()
    assert wanted.norm() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trees_equal_padded_rows(architecture, make_model, make_rollouts):
    check_equal(*both(make_model(architecture)), make_rollouts(), temperature=0.7)


@pytest.mark.parametrize("attention", ["segments", "mask"])
def test_both_back_ends_on_cpu(attention, llama, make_rollouts):
    policy = LanguagePolicy(llama, None, packing="tree", attention=attention)
    check_equal(policy, LanguagePolicy(llama, None, packing="padded"), make_rollouts())


def test_bit_identical_when_repeated(llama, make_rollouts):
    policy, rollouts = LanguagePolicy(llama, None), make_rollouts()
    once, again = (gradient(policy, [policy.score(rollouts)["logp"]]) for _ in range(2))
    assert torch.equal(once, again)


def test_every_column_equals_that_of_padded_rows(llama, make_rollouts):
    check_equal(*both(llama, top_k=5), make_rollouts(), needs=ALL - {"top_logp", "top_ids"})
    packed, padded = both(llama, top_k=5)
    padded.top_k = 5
    check_equal(packed, padded, make_rollouts(), needs=ALL)


# Responses over two tokens share prefixes at every depth; prompts share starts, and one may continue another.
IDS = st.lists(st.integers(3, 4), min_size=1, max_size=24)


@settings(deadline=None, max_examples=60)
@given(prompts=st.lists(IDS, min_size=1, max_size=3), data=st.data())
def test_any_forest_equals_padded_rows(prompts, data):
    response = st.tuples(st.integers(0, len(prompts) - 1), st.lists(st.integers(3, 5), min_size=0, max_size=20))
    rollouts = rollouts_of(prompts, data.draw(st.lists(response, min_size=1, max_size=8)))
    scored = st.lists(st.booleans(), min_size=rollouts.mask.numel(), max_size=rollouts.mask.numel())
    mask = rollouts.mask & torch.tensor(data.draw(scored)).view_as(rollouts.mask)
    rollouts = dataclasses.replace(rollouts, mask=mask)
    packed, padded = POLICIES
    columns, expected = packed.score(rollouts), padded.score(rollouts)
    torch.testing.assert_close(columns, expected, rtol=1e-5, atol=1e-5)
    assert (columns["logp"][~mask] == 0).all()
    assert (columns["logp"][mask] < 0).all()
    if mask.any():
        grads, wanted = (gradient(p, [c["logp"]]) for p, c in ((packed, columns), (padded, expected)))
        assert (grads - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.fixture(scope="module", autouse=True)
def policies(make_model):
    global POLICIES
    POLICIES = both(make_model("Llama"))


def test_dialogue_turns_and_branches(make_model):
    """A system prompt, two users, answers that branch again after a masked tool result."""
    system, users = list(range(3, 33)), [[40, 41, 42], [43, 44]]
    first, tool = [[50, 51], [52]], [55] * 18
    responses = [(u, answer + tool + [end, 9, 8][: 2 + end % 2]) for u in (0, 1) for answer in first for end in (6, 7)]
    rollouts = rollouts_of([system + user for user in users], responses)
    rollouts = dataclasses.replace(rollouts, mask=rollouts.mask & (rollouts.tokens != 55))
    policy, padded = both(make_model("Qwen3"))
    check_equal(policy, padded, rollouts)
    packed = policy.network.prepare(rollouts, None)
    assert len(packed.tree.trees) == 1
    assert packed.ids.numel() < 30 + 2 * (3 + 2 * (2 + 18 + 2 * 3))


def test_columns_are_those_of_transformers(llama):
    """One row, by hand: log-softmax of the model's own logits."""
    rollouts = rollouts_of([[5, 6, 7]], [(0, [8, 9])])
    policy = LanguagePolicy(llama, None)
    columns = policy.score(rollouts, ALL, temperature=0.5)
    output = llama(torch.tensor([[5, 6, 7, 8, 9]]), output_hidden_states=True)
    logp = (output.logits[:, 2:4] / 0.5).log_softmax(-1)
    torch.testing.assert_close(columns["log_distribution"], logp)
    torch.testing.assert_close(columns["logp"], torch.stack([logp[:, 0, 8], logp[:, 1, 9]], -1))
    torch.testing.assert_close(columns["entropy"], torch.distributions.Categorical(logits=logp).entropy())
    top, ids = logp.topk(32)
    torch.testing.assert_close((columns["top_logp"], columns["top_ids"]), (top, ids))
    torch.testing.assert_close(columns["hidden"], output.hidden_states[-1][:, 2:4])


def test_rows_select_and_order(llama, make_rollouts):
    policy, rollouts = LanguagePolicy(llama, None), make_rollouts()
    everything = policy.score(rollouts)["logp"]
    rows = torch.tensor([7, 0, 3])
    torch.testing.assert_close(policy.score(rollouts, rows=rows)["logp"], everything[rows])
    assert policy.score(rollouts, rows=rows[:0])["logp"].shape == (0, rollouts.tokens.shape[1])


def test_the_gradient_does_not_depend_on_the_micro_batches(llama, make_rollouts):
    policy, rollouts = LanguagePolicy(llama, None), make_rollouts(prompts=4)
    whole = gradient(policy, [policy.score(rollouts)["logp"].sum()])
    plan = policy.plan(rollouts, tokens_per_pass=60)
    assert len(plan) > 2
    parts = sum(gradient(policy, [policy.score(rollouts, rows=rows)["logp"].sum()]) for rows in plan)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item())


def test_without_gradient(llama, make_rollouts):
    policy = LanguagePolicy(llama, None)
    expected = policy.score(make_rollouts())["logp"].detach()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            logp = policy.score(make_rollouts())["logp"]
            assert not logp.requires_grad
            assert torch.equal(logp, expected)


@pytest.mark.parametrize("chunk", [1, 7, VOCABULARY, 1000])
@pytest.mark.parametrize("architecture", ["Llama", "Cohere", "GPTNeoX", "Phi"])  # Cohere scales logits, Phi has a bias
def test_vocabulary_chunks_change_nothing(architecture, chunk, make_model, make_rollouts):
    whole = LanguagePolicy(make_model(architecture), None, top_k=5)
    chunked = LanguagePolicy(whole.model, None, vocab_chunk=chunk, top_k=5)
    check_equal(chunked, whole, make_rollouts(), needs=ALL - {"log_distribution"}, temperature=1.3)


@pytest.mark.parametrize("architecture", ["Llama", "Cohere", "GPTNeoX", "Phi"])
def test_many_logits_are_made_a_few_positions_at_a_time(architecture, make_model, make_rollouts, monkeypatch):
    """Without any setting: beyond WHOLE of them, at most ENTRIES at once, and what is computed is the same."""
    whole = LanguagePolicy(make_model(architecture), None, top_k=5)
    parts, sizes = LanguagePolicy(whole.model, None, top_k=5), []

    def watched(logits, *others):
        sizes.append(logits.numel())
        return made(logits, *others)

    made = logprobs.columns_from_logits
    monkeypatch.setattr(logprobs, "columns_from_logits", watched)
    monkeypatch.setattr(logprobs, "ENTRIES", 3 * VOCABULARY)
    check_equal(parts, whole, make_rollouts(), needs=ALL - {"log_distribution"}, temperature=1.3)
    assert not sizes
    monkeypatch.setattr(logprobs, "WHOLE", 0)
    kept = LanguagePolicy(whole.model, None, top_k=5)
    kept._parts_agree = False
    check_equal(parts, kept, make_rollouts(), needs=ALL - {"log_distribution"}, temperature=1.3)
    assert max(sizes) == 3 * VOCABULARY
    assert len(sizes) > 2


def test_logits_that_only_the_models_own_forward_makes_stay_whole(llama, make_rollouts, monkeypatch):
    policy = LanguagePolicy(llama, None)
    expected = policy.score(make_rollouts())["logp"]
    policy._finish = LogitFinish(scale=2.0)  # as if the model did something to its logits that its settings do not tell
    monkeypatch.setattr(logprobs, "WHOLE", 0)
    assert torch.equal(policy.score(make_rollouts())["logp"], expected)
    assert policy._parts_agree is False


def test_chunks_never_hold_all_logits(llama, make_rollouts):
    policy, rollouts = LanguagePolicy(llama, None, vocab_chunk=8), make_rollouts()
    logits = (policy.network.prepare(rollouts, None).states.numel(), VOCABULARY)

    def kept_for_backward(policy):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
            policy.score(rollouts, frozenset({"logp", "entropy"}))
        return kept

    assert logits in kept_for_backward(LanguagePolicy(llama, None))
    assert logits not in kept_for_backward(policy)


def test_the_logit_cap_is_applied(make_model, make_rollouts):
    """Gemma 2 caps its logits after the output layer, and its attention scores: padded rows, and chunks as well."""
    settings = {"layer_types": ["full_attention"] * 2, "head_dim": 8, "final_logit_softcapping": 2.0}
    whole = LanguagePolicy(make_model("Gemma2", **settings), None)
    assert "caps its attention scores" in whole.why_padded
    check_equal(LanguagePolicy(whole.model, None, vocab_chunk=9), whole, make_rollouts())


@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX", "OPT"])
@pytest.mark.parametrize("packing", ["tree", "padded"])
def test_gradient_checkpointing_sees_the_same_trees(architecture, packing, make_model, make_rollouts):
    rollouts = make_rollouts()
    plain = LanguagePolicy(make_model(architecture), None)
    policy = LanguagePolicy(make_model(architecture), None, packing=packing, gradient_checkpointing=True)
    calls = []
    layer = policy.network.checkpointed[0]
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    attention = next(m for m in layer.modules() if type(m).__name__.endswith("Attention"))
    recomputed = []
    attention.register_forward_hook(lambda *_: recomputed.append(1))
    check_equal(policy, plain, rollouts)
    assert len(recomputed) == 2 * len(calls)
    assert not any(module.training for module in policy.model.modules())


def test_scoring_leaves_generation_alone(llama, make_rollouts):
    policy = LanguagePolicy(llama, None)
    prompt = torch.tensor([[5, 6, 7]])
    before = llama.generate(prompt, max_new_tokens=8, do_sample=False)
    columns = policy.score(make_rollouts())
    assert llama.config._attn_implementation == "sdpa"
    torch.testing.assert_close(llama.generate(prompt, max_new_tokens=8, do_sample=False), before)
    columns["logp"].sum().backward()
    assert llama.config._attn_implementation == "sdpa"


def test_a_failing_pass_leaves_the_model_as_it_was(llama, make_rollouts):
    policy = LanguagePolicy(llama, None)

    def fail(*_):
        raise KeyboardInterrupt

    handle = llama.model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        policy.score(make_rollouts())
    handle.remove()
    assert llama.config._attn_implementation == "sdpa"
    assert not llama.lm_head._forward_pre_hooks


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("Mamba", {}, "recurrent state"),
        ("Mistral", {"sliding_window": 4}, "slides over a window of 4 tokens"),
        ("Gemma3Text", {"head_dim": 8, "sliding_window": 4}, "layers of type sliding_attention"),
        ("Bloom", {"n_head": 4, "n_layer": 2}, "attention interface"),
        ("GptOss", {"layer_types": ["full_attention"] * 2, "head_dim": 8}, "its attention asks for s_aux"),
        ("Falcon", {"alibi": True, "new_decoder_architecture": False}, "position biases"),
    ],
)
def test_what_cannot_be_packed_is_padded_and_says_so(architecture, changes, reason, make_model, make_rollouts, caplog):
    model = make_model(architecture, **changes)
    policy = LanguagePolicy(model, None)
    assert policy.packing == "padded"
    assert reason in policy.why_padded
    assert [record for record in caplog.records if record.name == "upslope" and reason in record.getMessage()]
    with pytest.raises(UsageError, match="cannot be computed on prefix trees"):
        LanguagePolicy(model, None, packing="tree")
    rollouts = make_rollouts(prompts=2, group=2)
    alone = torch.cat([policy.score(rollouts, rows=torch.tensor([row]))["logp"] for row in range(4)])
    torch.testing.assert_close(policy.score(rollouts)["logp"], alone, rtol=1e-4, atol=1e-4)


def test_a_window_that_is_off_does_not_matter(make_model):
    assert LanguagePolicy(make_model("Qwen2", sliding_window=4, use_sliding_window=False), None).packing == "tree"


def test_an_unforeseen_attention_is_found_by_the_numbers(llama, make_rollouts):
    """A layer that mixes neighbours outside of attention: nothing in the configuration tells."""
    layer = llama.model.layers[0]
    layer.register_forward_hook(lambda _m, _a, out: out + torch.nn.functional.pad(out, (0, 0, 1, 0))[:, :-1])
    policy = LanguagePolicy(llama, None)
    assert policy.packing == "padded"
    assert "differ by" in policy.why_padded
    assert packing_gap(policy, make_rollouts()) > 0.1


def test_packing_gap_is_rounding(llama, make_rollouts):
    assert packing_gap(LanguagePolicy(llama, None), make_rollouts()) < 1e-5


def test_a_short_context_suffices_for_the_check(make_model):
    assert LanguagePolicy(make_model("GPT2", n_positions=6), None).packing == "tree"


def test_bfloat16_scores_in_float32(make_model, make_rollouts):
    exact = LanguagePolicy(make_model("Llama"), None).score(make_rollouts())["logp"]
    policy = LanguagePolicy(make_model("Llama").bfloat16(), None)
    assert policy.dtype == torch.bfloat16
    assert policy.packing == "tree"
    logp = policy.score(make_rollouts())["logp"]
    assert logp.dtype == torch.float32
    assert (logp - exact).abs().mean() < 0.1


def test_frozen_shares_nothing(llama, make_rollouts):
    policy = LanguagePolicy(llama, None, gradient_checkpointing=True)
    frozen = policy.frozen()
    before = frozen.score(make_rollouts())["logp"]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(frozen.score(make_rollouts())["logp"], before)
    assert not before.requires_grad
    assert not list(frozen.parameters())


def test_state_dict_round_trip(make_model, make_rollouts):
    policy, other = (LanguagePolicy(make_model("Llama"), None) for _ in range(2))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    other.load_state_dict({name: value.clone() for name, value in policy.state_dict().items()})
    assert torch.equal(policy.score(make_rollouts())["logp"], other.score(make_rollouts())["logp"])
    with pytest.raises(UsageError, match="differ in 1 parameters"):
        other.load_state_dict(dict(list(policy.state_dict().items())[1:]))
    name, value = next(iter(policy.state_dict().items()))
    with pytest.raises(UsageError, match="is saved as"):
        other.load_state_dict(policy.state_dict() | {name: value[:1]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, r: p.score(r, frozenset({"logp", "logits"})), "no column logits. It has: logp, entropy"),
        (lambda p, r: p.score(r, temperature=0.0), "must be positive"),
        (lambda p, r: p.score(r, adapter=False), "no adapters"),
        (lambda p, r: p.plan(r, tokens_per_pass=0), "tokens_per_pass is 0"),
        (lambda p, r: LanguagePolicy(p.model, None, vocab_chunk=0), "vocab_chunk is 0"),
        (lambda p, r: LanguagePolicy(p.model, None, attention="flex"), "does not run on cpu"),
        (lambda p, r: LanguagePolicy(p.model.model, None), "LlamaModel has no output layer"),
        (lambda p, r: p.score(rollouts_of([[3], []], [(0, [4]), (1, [5])])), "prompt 1 is empty"),
        (
            lambda p, r: p.score(rollouts_of([[3], [4] * 90], [(0, [4]), (1, [5] * 7)])),
            r"row 1 \(prompt 1\) has 90 prompt and 7 response tokens, but the model's context is 96; 1 of 2 rows",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, message, llama, make_rollouts):
    with pytest.raises(UsageError, match=message):
        call(LanguagePolicy(llama, None), make_rollouts())
