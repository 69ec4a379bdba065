"""The critic reads the state before each token, on trees as on padded rows."""

import pytest
import torch

from upslope.errors import UsageError
from upslope.policies.critic import LanguageCritic
from upslope.policies.language import LanguagePolicy
from upslope.policies.lora import LoraSettings, add_adapters


def critic_of(model, packing="tree", **settings):
    critic = LanguageCritic.from_policy(LanguagePolicy(model, None, packing=packing, **settings))
    with torch.no_grad():
        critic.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    return critic


def test_starts_at_zero(llama, make_rollouts):
    rollouts = make_rollouts()
    value = LanguageCritic.from_policy(LanguagePolicy(llama, None)).score(rollouts)["value"]
    assert value.shape == rollouts.tokens.shape
    assert (value == 0).all()


@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX", "Gemma"])
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}])
def test_trees_equal_padded_rows(architecture, settings, make_model, make_rollouts):
    rollouts = make_rollouts()
    packed, padded = critic_of(make_model(architecture), **settings), critic_of(make_model(architecture), "padded")
    value, expected = (critic.score(rollouts)["value"] for critic in (packed, padded))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert (value[~rollouts.mask] == 0).all()
    grads = [
        torch.cat([g.ravel() for g in torch.autograd.grad((v**2).sum(), list(c.parameters()))])
        for c, v in ((packed, value), (padded, expected))
    ]
    assert (grads[0] - grads[1]).norm() <= 1e-5 * grads[1].norm()


def test_value_of_the_state_before_the_token(llama, make_rollouts):
    """The token itself and what follows do not matter; what precedes does."""
    critic, rollouts = critic_of(llama), make_rollouts()
    value = critic.score(rollouts)["value"]
    rollouts.tokens[0, 1] = (rollouts.tokens[0, 1] + 1) % 50
    changed = critic.score(rollouts)["value"]
    torch.testing.assert_close(changed[0, :2], value[0, :2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(changed[0, 2:], value[0, 2:])


def test_shares_nothing_with_the_policy(llama, make_rollouts):
    policy = LanguagePolicy(llama, None)
    critic = LanguageCritic.from_policy(policy)
    before = policy.score(make_rollouts())["logp"]
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(1.0)
    assert torch.equal(policy.score(make_rollouts())["logp"], before)
    count = sum(p.numel() for p in critic.parameters())
    assert count == sum(p.numel() for p in llama.parameters()) - llama.lm_head.weight.numel() + 33


def test_adapters_of_the_policy(llama):
    critic = LanguageCritic.from_policy(LanguagePolicy(add_adapters(llama, LoraSettings(rank=2, alpha=4)), None))
    assert all("lora_" in name or name.startswith("head.") for name in critic.state_dict())
    assert len(critic.state_dict()) > 2


def test_state_round_trip(make_model, make_rollouts):
    one, other = critic_of(make_model("Llama")), LanguageCritic.from_policy(LanguagePolicy(make_model("Llama"), None))
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    assert torch.equal(one.score(make_rollouts())["value"], other.score(make_rollouts())["value"])
    with pytest.raises(UsageError, match=r"such as head\.bias"):
        other.load_state_dict({name: v for name, v in one.state_dict().items() if name != "head.bias"})


def test_nothing_to_score(llama, make_rollouts):
    critic, rollouts = critic_of(llama), make_rollouts()
    rollouts.mask[:] = False
    assert critic.score(rollouts, rows=torch.tensor([0, 1]))["value"].shape == (2, rollouts.tokens.shape[1])
