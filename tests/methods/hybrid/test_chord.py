"""Card: preference_distill_hybrid.md, chord, and lines 4 and 9 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.batch import SOURCES
from upslope.methods.hybrid.chord import ExpertShare
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.testing import batch_of, check_method, finite_differences, value_and_gradient

TEACHER = SOURCES.index("teacher")
SOURCE = torch.tensor([0, 0, 0, TEACHER, 0, 0, TEACHER])
CONTRACT = torch.tensor([0, 0, 0, TEACHER, 0, 0, TEACHER, 0, 0, 0, 0, TEACHER, 0, TEACHER])
OWN = SOURCE == 0


def off_policy(seed=5):
    batch = batch_of([[0, 1, 0, 1], [0, 0.5, 1]], seed=seed, source=SOURCE)
    return batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))


def gradient_of(recipe, batch):
    return value_and_gradient(recipe, recipe.prepare(batch))[1]


@pytest.mark.parametrize("name", ["chord", "chord@phi"])
def test_contract_with_expert_rows(name):
    check_method("chord", source=CONTRACT)
    batch = off_policy()
    recipe = make(name)
    order = torch.tensor([3, 1, 0, 2, 6, 5, 4])
    torch.testing.assert_close(gradient_of(recipe, batch.select(order)), gradient_of(recipe, batch)[order])


def mu(done, **settings):
    return float(ExpertShare(**settings).share(torch.tensor([done + 1])))


def test_card_schedule():
    assert [mu(s) for s in (0, 100, 200, 1000)] == pytest.approx([0.9, 0.475, 0.05, 0.05])
    warm = {"warmup": 10, "decay": 20}
    assert [mu(s, **warm) for s in (0, 5, 10, 20, 30)] == pytest.approx([0, 0.45, 0.9, 0.475, 0.05])
    assert mu(0, decay=0) == pytest.approx(0.05)


def test_card_phi():
    logp = torch.log(torch.tensor([[0.05, 0.5, 0.95]], dtype=torch.float64))
    loss = NegativeLogLikelihood(weighting="uncertainty")(batch_of([[1]], lengths=[3]).replace(logp=logp))
    np.testing.assert_allclose(loss[0], [0.142297, 0.173287, 0.002436], atol=1e-6)
    assert float(loss.mean()) == pytest.approx(0.106007, abs=1e-6)


@pytest.mark.parametrize("name", ["chord", "chord@phi"])
@pytest.mark.parametrize("step", [1, 60])
def test_value_and_gradient(name, step):
    batch = off_policy().replace(step=torch.full((7,), step))
    recipe = make(name)
    share = 0.1 if name == "chord@phi" else 0.05 + 0.85 * (1 + np.cos(np.pi * (step - 1) / 200)) / 2
    mask, old, reward = batch.mask.numpy(), batch.old_logp.numpy(), batch.reward.numpy()
    own, p = OWN.numpy(), np.exp(batch.logp.numpy())
    w = p * (1 - p) if name == "chord@phi" else np.ones_like(p)
    a = np.zeros((7, 1))
    for rows in ([0, 1, 2], [4, 5]):
        a[rows, 0] = (reward[rows] - reward[rows].mean()) / (reward[rows].std(ddof=1) + 1e-6)

    def numpy_loss(logp):
        ratio = np.exp(logp - old)
        clipped = np.maximum(-a * ratio, -a * ratio.clip(0.8, 1.2))
        policy = clipped[own][mask[own]].mean()
        return (1 - share) * policy + share * (-w * logp)[~own][mask[~own]].mean()

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, batch.logp.numpy()) * mask, atol=1e-8)


def test_share_zero_is_grpo_and_share_one_is_sft():
    batch = off_policy()
    policy, expert = (gradient_of(make("chord", peak=mu, valley=mu), batch) for mu in (0.0, 1.0))
    grpo = make("grpo", regularizer=None, aggregate=make("sft").aggregate)
    torch.testing.assert_close(policy[OWN], gradient_of(grpo, batch.select(OWN)))
    torch.testing.assert_close(expert[~OWN], gradient_of(make("sft"), batch.select(~OWN)))
    assert not policy[~OWN].any()
    assert not expert[OWN].any()


def test_with_the_probability_as_weight_the_experts_part_is_dft():
    batch = off_policy()
    recipe = make("chord@phi", weighting="probability", peak=1.0, valley=1.0)
    torch.testing.assert_close(gradient_of(recipe, batch)[~OWN], gradient_of(make("dft"), batch.select(~OWN)))


def test_the_experts_reward_does_not_matter():
    batch = off_policy()
    other = batch.replace(reward=torch.where(OWN, batch.reward, -7.0))
    torch.testing.assert_close(gradient_of(make("chord"), batch), gradient_of(make("chord"), other))


def test_share_is_logged_and_checked():
    batch = off_policy().replace(step=torch.full((7,), 101))
    recipe = make("chord")
    _, stats = recipe.loss(recipe.prepare(batch))
    assert float(stats["chord/mu"]) == pytest.approx(0.475)
    with pytest.raises(UsageError, match=r"ExpertShare\(peak=1.2"):
        make("chord", peak=1.2)
