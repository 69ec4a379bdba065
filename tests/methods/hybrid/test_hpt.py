"""Card: preference_distill_hybrid.md, hpt, and line 9 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.batch import SOURCES
from upslope.parts.aggregate import TokenSum
from upslope.testing import batch_of, check_method, finite_differences, value_and_gradient

TEACHER = SOURCES.index("teacher")
REWARDS = [[0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
SOURCE = torch.tensor([0, 0, 0, TEACHER] * 3)
CONTRACT = torch.tensor([0, 0, 0, TEACHER, 0, 0, TEACHER, 0, 0, 0, 0, TEACHER, 0, TEACHER])
OWN = SOURCE == 0


def off_policy(seed=5):
    batch = batch_of(REWARDS, seed=seed, source=SOURCE)
    return batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))


def gradient_of(recipe, batch):
    return value_and_gradient(recipe, recipe.prepare(batch))[1]


@pytest.mark.parametrize("gate", [0, 1, 2])
def test_contract_with_expert_rows(gate):
    check_method("hpt", source=CONTRACT)
    batch = off_policy()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    recipe = make("hpt", gate=gate)
    torch.testing.assert_close(gradient_of(recipe, batch.select(order)), gradient_of(recipe, batch)[order])


def test_one_solved_of_eight_is_the_policys_and_none_the_demonstrations():
    source = torch.tensor(([0] * 8 + [TEACHER]) * 2)
    batch = make("hpt").prepare(batch_of([[1] + [0] * 8, [0] * 8 + [1]], source=source))
    np.testing.assert_allclose(batch.advantage[:8, 0], [0.875] + [-0.125] * 7)
    assert batch.imitates.tolist() == [False] * 9 + [True] * 9
    policy_scale, expert_scale, entropy_scale = batch.scale_0, batch.scale_1, batch.scale_2
    assert (policy_scale[:8][batch.mask[:8]] == 1 / 8192).all()
    assert not policy_scale[8:].any()
    assert not expert_scale[:17].any()
    assert expert_scale[17].sum() == pytest.approx(1)
    assert (entropy_scale.sum(1) > 0).tolist() == [True] * 8 + [False] * 9 + [True]


@pytest.mark.parametrize("gate", [-1, 0, 1, 2, 3])
def test_value_and_gradient(gate):
    batch = off_policy()
    recipe = make("hpt", gate=gate, **{"aggregate.scale": 0.25, "terms[0].coefficient": 0.3})
    mask, old, reward = batch.mask.numpy(), batch.old_logp.numpy(), np.array(REWARDS)
    solved = reward[:, :3].sum(1)
    a = (reward - reward[:, :3].mean(1, keepdims=True)).reshape(-1, 1)
    imitates = np.repeat(solved <= gate, 4)
    own = OWN.numpy() & ~imitates
    demo = ~OWN.numpy() & imitates

    def numpy_loss(logp):
        total = 0.25 * ((-a * np.exp(logp - old) * mask)[own]).sum()
        if demo.any():
            total += 0.3 * -logp[demo][mask[demo]].mean()
        kept = own | demo
        return total - 0.001 * batch.entropy.numpy()[kept][mask[kept]].mean()

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, batch.logp.numpy()) * mask, atol=1e-8)


def test_gate_below_zero_is_dr_grpo_without_clip_on_the_policys_rows():
    batch = off_policy()
    parent = make("dr_grpo", ratio_low=0.0, ratio_high=1e9).replace(aggregate=TokenSum(1 / 8192))
    ours = gradient_of(make("hpt", gate=-1), batch)
    torch.testing.assert_close(ours[OWN], gradient_of(parent, batch.select(OWN)))
    assert not ours[~OWN].any()


def test_gate_of_all_is_sft_on_the_demonstrations():
    batch = off_policy()
    ours = gradient_of(make("hpt", gate=3), batch)
    torch.testing.assert_close(ours[~OWN], gradient_of(make("sft"), batch.select(~OWN)))
    assert not ours[OWN].any()


def test_gate_zero_is_dr_grpo_and_sft_on_the_unsolved_prompts():
    """Prompts without a solved completion have no policy gradient anyway."""
    batch = off_policy()
    policy = gradient_of(make("hpt", gate=-1), batch)
    unsolved = torch.tensor([False] * 7 + [True] + [False] * 4)
    likelihood = torch.zeros_like(policy)
    likelihood[unsolved] = gradient_of(make("sft"), batch.select(unsolved))
    torch.testing.assert_close(gradient_of(make("hpt", gate=0), batch), policy + likelihood)


def test_a_failed_own_reward_is_not_a_solved_one_and_the_share_of_imitation_is_logged():
    batch = off_policy()
    valid = torch.ones(12, dtype=torch.bool)
    valid[1] = False
    recipe = make("hpt")
    prepared = recipe.prepare(batch.replace(valid=valid))
    assert prepared.imitates.tolist() == [True] * 8 + [False] * 4
    _, stats = recipe.loss(recipe.prepare(batch))
    assert float(stats["hpt/imitates"]) == pytest.approx(1 / 3)


def test_defaults():
    recipe = make("hpt")
    assert (recipe.rollout.group_size, recipe.rollout.reference_rows, recipe.advantage.gate) == (9, 1, 0)
    assert [term.surrogate.coefficient for term in recipe.terms] == [1.0, 0.001]
