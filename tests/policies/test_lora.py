"""Adapters: only they are trained, the reference is the model without them, and a saved folder has them merged."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from upslope.errors import UsageError
from upslope.policies.language import LanguagePolicy
from upslope.policies.lora import LoraSettings
from upslope.policies.scorer import AdapterlessScorer, FrozenScorer, reference_of


@pytest.fixture
def base(make_model, tokenizer, tmp_path):
    LanguagePolicy(make_model("Llama"), tokenizer).save(tmp_path / "base")
    return tmp_path / "base"


def train(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_only_adapters_are_trained(base, make_rollouts, gradient_checkpointing):
    lora = LoraSettings(rank=2, alpha=4)
    policy = LanguagePolicy.load(base, lora=lora, gradient_checkpointing=gradient_checkpointing)
    assert policy.packing == "tree"
    names = set(policy.state_dict())
    assert names
    assert all("lora_" in name for name in names)
    assert sum(p.numel() for p in policy.parameters()) < sum(p.numel() for p in policy.model.parameters()) / 4
    policy.score(make_rollouts())["logp"].sum().backward()
    with_gradient = {name for name, p in policy.model.named_parameters() if p.grad is not None}
    assert with_gradient == names


def test_the_reference_is_the_model_without_adapters(base, make_rollouts):
    plain, policy = LanguagePolicy.load(base), LanguagePolicy.load(base, lora=LoraSettings(rank=2, alpha=4))
    expected = plain.score(make_rollouts())["logp"]
    torch.testing.assert_close(policy.score(make_rollouts())["logp"], expected)
    train(policy)
    trained = policy.score(make_rollouts())["logp"]
    assert (trained - expected).abs().max() > 0.1
    torch.testing.assert_close(policy.score(make_rollouts(), adapter=False)["logp"], expected)
    with policy.reference():
        torch.testing.assert_close(policy.score(make_rollouts())["logp"], expected)
    torch.testing.assert_close(policy.score(make_rollouts())["logp"], trained)
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_saved_merged_with_adapters_beside(base, make_rollouts, tmp_path):
    policy = LanguagePolicy.load(base, lora=LoraSettings(rank=2, alpha=4))
    train(policy)
    policy.save(tmp_path / "out")
    expected = policy.score(make_rollouts())["logp"]
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), type(policy.model.get_base_model()))
    merged = LanguagePolicy.load(tmp_path / "out")
    torch.testing.assert_close(merged.score(make_rollouts())["logp"], expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    torch.testing.assert_close(policy.score(make_rollouts())["logp"], expected)


def test_chosen_targets(base):
    policy = LanguagePolicy.load(base, lora=LoraSettings(rank=2, alpha=4, targets=("q_proj",)))
    assert {name.split(".")[-4] for name in policy.state_dict()} == {"q_proj"}


def test_the_choice_of_reference(base, llama, make_rollouts):
    with_adapters = LanguagePolicy.load(base, lora=LoraSettings(rank=2, alpha=4))
    policy = LanguagePolicy(llama, None)
    assert isinstance(reference_of(with_adapters), AdapterlessScorer)
    assert isinstance(reference_of(policy), FrozenScorer)
    for one in (with_adapters, policy):
        reference = reference_of(one)
        before = reference.score(make_rollouts(), frozenset({"logp", "entropy"}), temperature=2.0)
        train(one)
        after = reference.score(make_rollouts(), frozenset({"logp", "entropy"}), temperature=2.0)
        torch.testing.assert_close(after, before)
        assert not after["logp"].requires_grad


def test_a_teacher_need_not_be_copied(llama, make_rollouts):
    policy = LanguagePolicy(llama, None)
    teacher = FrozenScorer(policy, copy=False)
    assert teacher.policy is policy
    assert not teacher.score(make_rollouts())["logp"].requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base: LoraSettings(rank=0), "rank is 0"),
        (lambda base: LoraSettings(dropout=0.1), "without dropout"),
        (lambda base: LanguagePolicy.load(base, lora=LoraSettings(targets=("nothing",))), "LoRA cannot adapt"),
        (lambda base: AdapterlessScorer(LanguagePolicy.load(base)), "no adapters to switch off"),
    ],
)
def test_errors(make, message, base):
    with pytest.raises(UsageError, match=message):
        make(base)
