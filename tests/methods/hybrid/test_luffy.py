"""Card: preference_distill_hybrid.md, luffy, and line 9 of its cross-identities. Reference rows: tests/test_collect_parts.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.batch import SOURCES
from upslope.testing import REWARDS, batch_of, check_method, finite_differences, value_and_gradient

TEACHER = SOURCES.index("teacher")
SOURCE = torch.tensor([0, 0, 0, TEACHER, 0, 0, TEACHER])
CONTRACT = torch.tensor([0, 0, 0, TEACHER, 0, 0, TEACHER, 0, 0, 0, 0, TEACHER, 0, TEACHER])


def off_policy(seed=5):
    batch = batch_of([[0, 1, 0, 1], [0, 0, 1]], seed=seed, source=SOURCE)
    return batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))


def advantages(batch):
    reward, group = batch.reward.numpy(), batch.group.numpy()
    return np.array([r - reward[group == g].mean() for r, g in zip(reward, group, strict=True)])[:, None]


def test_contract_with_expert_rows():
    assert len(CONTRACT) == sum(map(len, REWARDS))
    check_method("luffy", source=CONTRACT)


@pytest.mark.parametrize(("p", "slope"), [(0.01, 0.082645), (0.1, 0.25), (0.5, 0.138889), (0.9, 0.09)])
def test_card_weight_of_an_experts_token(p, slope):
    column = torch.full((2, 1), p).double().log()
    batch = Batch(logp=column, old_logp=column, reward=[1.0, 0.0], group=[0, 0], source=[TEACHER, 0], entropy=column)
    recipe = make("luffy", **{"aggregate.scale": 1.0})
    gradient = value_and_gradient(recipe, recipe.prepare(batch))[1]
    assert float(gradient[0]) == pytest.approx(-0.5 * slope, abs=5e-7)
    assert float(gradient[1]) == pytest.approx(0.5)


def test_card_advantages():
    batch = batch_of([[0] * 7 + [1]], source=torch.tensor([0] * 7 + [TEACHER]))
    advantage = make("luffy").prepare(batch).advantage[:, 0]
    np.testing.assert_allclose(advantage, [-0.125] * 7 + [0.875])
    split = make("luffy", among="policy").prepare(batch).advantage[:, 0]
    np.testing.assert_allclose(split, [0] * 7 + [1])


@pytest.mark.parametrize("gamma", [0.1, 0.5, None])
def test_value_and_gradient(gamma):
    batch, recipe = off_policy(), make("luffy", gamma=gamma, **{"aggregate.scale": 0.25})
    mask, old, a = batch.mask.numpy(), batch.old_logp.numpy(), advantages(batch)
    expert = (batch.source == TEACHER).numpy()[:, None]

    def numpy_loss(logp):
        p = np.exp(logp)
        f = p if gamma is None else p / (p + gamma)
        per = -a * np.where(expert, f, np.exp(logp - old))
        return 0.25 * per[mask].sum() - 0.001 * batch.entropy.numpy()[mask].mean()

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    expected = finite_differences(numpy_loss, batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * mask, atol=1e-8)


def test_with_plain_probabilities_it_is_the_policy_gradient_with_behavior_probability_one():
    """Expert tokens as if drawn by a policy with old_logp = 0."""
    batch = off_policy()
    certain = torch.where((batch.source == TEACHER).unsqueeze(1), 0.0, batch.old_logp)
    ours = make("luffy", gamma=None, **{"aggregate.scale": 1.0})
    plain = make("dr_grpo", advantage=ours.advantage, aggregate=ours.aggregate, ratio_low=0.0, ratio_high=1e9)
    one = value_and_gradient(ours, ours.prepare(batch))[1]
    torch.testing.assert_close(one, value_and_gradient(plain, plain.prepare(batch.replace(old_logp=certain)))[1])


def test_without_expert_rows_it_is_dr_grpo_without_clip():
    batch = off_policy().replace(source=torch.zeros(7))
    ours, parent = make("luffy"), make("dr_grpo", ratio_low=0.0, ratio_high=1e9)
    one = value_and_gradient(ours, ours.prepare(batch))[1] * 8192
    torch.testing.assert_close(one, value_and_gradient(parent, parent.prepare(batch))[1] * 7 * 1024)


def test_defaults():
    recipe = make("luffy")
    assert (recipe.rollout.group_size, recipe.rollout.reference_rows) == (8, 1)
    assert (recipe.surrogate.gamma, recipe.aggregate.scale, recipe.advantage.scale) == (0.1, 1 / 8192, None)
    assert recipe.terms[0].surrogate.coefficient == 0.001
    assert recipe.regularizer is None


def test_an_unsolved_prompt_lifts_the_expert():
    batch = batch_of([[0, 0, 0, 1]], source=torch.tensor([0, 0, 0, TEACHER]))
    recipe = make("luffy")
    _, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert (gradient[3][batch.mask[3]] < 0).all()
    assert (gradient[:3][batch.mask[:3]] > 0).all()


def test_wrong_settings():
    with pytest.raises(UsageError, match=r"ShapedExpert\(gamma=0\): it must be positive"):
        make("luffy", gamma=0.0)
