"""Card: preference_distill_hybrid.md, rl-plus, and line 9 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.batch import SOURCES
from upslope.testing import batch_of, check_method, finite_differences, value_and_gradient

TEACHER = SOURCES.index("teacher")
SOURCE = torch.tensor([0, 0, 0, TEACHER, 0, 0, TEACHER])
CONTRACT = torch.tensor([0, 0, 0, TEACHER, 0, 0, TEACHER, 0, 0, 0, 0, TEACHER, 0, TEACHER])


def off_policy(seed=5):
    batch = batch_of([[0, 1, 0, 1], [0, 0, 1]], seed=seed, source=SOURCE)
    return batch.replace(old_logp=(batch.logp + 0.3 * (batch.entropy - 0.8)).clamp(max=-0.01))


def expert_token(p, old, **settings):
    """Loss and gradient of an expert's token with advantage 1, beside one of the policy's with -1."""
    batch = Batch(
        logp=torch.tensor([[p], [0.5]]).double().log(), old_logp=torch.tensor([[old], [0.5]]).double().log(),
        reward=[2.0, 0.0], group=[0, 0], source=[TEACHER, 0], entropy=torch.zeros(2, 1).double(),
    )  # fmt: skip
    recipe = make("rl_plus", **{"aggregate.scale": 1.0}, **settings)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    return float(loss) - 1, float(gradient[0])  # the policy's ratio is 1


def test_contract_with_expert_rows():
    check_method("rl_plus", source=CONTRACT)


def test_card_numbers():
    loss, gradient = expert_token(0.3, 0.2)
    assert loss == pytest.approx(-0.627495, abs=5e-7)
    assert gradient == pytest.approx(-0.627495, abs=5e-7), "q is linear in p, and C has no gradient"
    assert expert_token(0.3, 0.2, exploration=0.0)[0] == pytest.approx(-0.75)


@pytest.mark.parametrize("p", [1.0, 0.3, 1e-6])
def test_where_the_policy_has_not_moved(p):
    assert expert_token(p, p, exploration=0.0)[0] == pytest.approx(-2 * p / (1.5 * p + 0.5))


@pytest.mark.parametrize(("exploration", "uniform"), [(0.5, 1.0), (2.0, 0.01)])
def test_value_and_gradient(exploration, uniform):
    batch = off_policy()
    recipe = make("rl_plus", exploration=exploration, uniform=uniform, **{"aggregate.scale": 0.25})
    mask, old, reward = batch.mask.numpy(), batch.old_logp.numpy(), batch.reward.numpy()
    group, expert = batch.group.numpy(), (batch.source == TEACHER).numpy()[:, None]
    a = np.array([r - reward[group == g].mean() for r, g in zip(reward, group, strict=True)])[:, None]
    explore = (1 - np.exp(batch.logp.numpy())) ** exploration

    def numpy_loss(logp):
        omega = 0.5 * (np.exp(old) + uniform)
        q = 2 * np.exp(logp) / (np.exp(old) + omega)
        per = -a * np.where(expert, q * explore, np.exp(logp - old))
        return 0.25 * per[mask].sum() - 0.001 * batch.entropy.numpy()[mask].mean()

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    expected = finite_differences(numpy_loss, batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * mask, atol=1e-8)


def test_the_policys_tokens_are_those_of_luffy_and_swapping_the_experts_part_is_luffy():
    batch, (ours, parent) = off_policy(), (make("rl_plus"), make("luffy"))
    one, other = (value_and_gradient(r, r.prepare(batch)) for r in (ours, parent))
    own = batch.source == 0
    torch.testing.assert_close(one[1][own], other[1][own])
    swapped = ours.replace(surrogate=parent.surrogate)
    torch.testing.assert_close(value_and_gradient(swapped, swapped.prepare(batch)), other)


def test_the_papers_deviation_is_a_setting():
    batch = batch_of([[0, 1, 1]], source=torch.tensor([0, 0, TEACHER]))
    advantage = make("rl_plus", **{"advantage.scale": "sample_std"}).prepare(batch).advantage[:, 0]
    np.testing.assert_allclose(advantage, (np.array([0, 1, 1]) - 2 / 3) / np.std([0, 1, 1], ddof=1), rtol=1e-5)


def test_wrong_settings():
    with pytest.raises(UsageError, match=r"MixtureRatio\(exploration=0.5, uniform=0\)"):
        make("rl_plus", uniform=0.0)
