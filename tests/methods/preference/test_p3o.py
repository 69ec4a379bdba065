"""Card: preference_distill_hybrid.md, p3o."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient

LOGP = torch.tensor([[-1.0], [-2.0]]).double()


def pair(ratios):
    return Batch(
        logp=LOGP, old_logp=LOGP - torch.tensor(ratios).double().log().unsqueeze(1), ref_logp=LOGP, reward=[1.0, 0.2], group=[0, 0]
    )  # fmt: skip


@pytest.mark.parametrize(("joint", "gain"), [(True, 0.1872), (False, 0.864 - 0.936)])
def test_card_numbers(joint, gain):
    recipe = make("p3o", reward=None, joint=joint)
    assert float(recipe(pair([1.3, 0.9]))[0]) == pytest.approx(-gain, abs=1e-6)
    assert float(make("p3o", reward=None, clip=0.9)(pair([1.3, 0.9]))[0]) == pytest.approx(-0.344190, abs=1e-6)


def numpy_loss(batch, at, joint):
    """The loss at log-probs, with what is held constant taken at the batch's own."""
    reward, group, mask, old = (getattr(batch, name).numpy() for name in ("reward", "group", "mask", "old_logp"))
    fixed, moved = (((logp - old) * mask).sum(1) for logp in (batch.logp.numpy(), at))
    total = 0.0
    for g in set(group):
        rows = np.flatnonzero(group == g)
        for i in rows:
            for j in rows[rows != i]:
                a = reward[i] - reward[j]
                if joint:
                    c, ell = a * np.exp(fixed[i] + fixed[j]), moved[i] - moved[j]
                    gain = min(c * ell, c * np.clip(ell, -0.2, 0.2)) / 2
                else:
                    w, other = np.exp(moved[i]), np.exp(fixed[j])
                    gain = min(a * other * w, a * np.clip(other, 0.8, 1.2) * np.clip(w, 0.8, 1.2))
                total -= gain / (len(rows) - 1)
    return total / len(set(group))


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_off_policy_against_numpy(joint, seed):
    batch = batch_of([[1, 0.3], [0, 1, 0.5], [0.2, 0.9]], seed=seed)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    recipe = make("p3o", reward=None, joint=joint)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), joint))
    expected = finite_differences(lambda at: numpy_loss(batch, at, joint), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize("joint", [True, False])
def test_at_ratio_one_the_gradient_is_rloo_and_copg(joint):
    batch = batch_of([[1, 0.3], [0.5, 2], [0, 1]], seed=1)
    gradients = {}
    for name, settings in {"p3o": {"joint": joint}, "rloo": {}, "copg": {}}.items():
        recipe = make(name, beta=0.2, **settings)
        gradients[name] = value_and_gradient(recipe, recipe.prepare(batch))[1]
    torch.testing.assert_close(gradients["p3o"], 2 * gradients["rloo"])
    torch.testing.assert_close(gradients["p3o"], gradients["copg"])


@pytest.mark.parametrize("joint", [True, False])
def test_a_shift_of_a_prompts_rewards_changes_nothing(joint):
    batch = batch_of([[1, 0.3], [0.5, 2]], seed=1)
    batch = batch.replace(old_logp=batch.logp + 0.3)
    shifted = batch.replace(reward=batch.reward + 5.0 * batch.group - 3)
    recipe = make("p3o", joint=joint)
    torch.testing.assert_close(recipe(batch)[0], recipe(shifted)[0])


def test_the_joint_clip_ends_a_pair_that_has_moved_far_the_right_way():
    recipe = make("p3o", reward=None)
    moved, back = (pair(ratios) for ratios in ([1.3, 0.9], [0.9, 1.3]))
    assert not value_and_gradient(recipe, recipe.prepare(moved))[1].any()
    assert value_and_gradient(recipe, recipe.prepare(back))[1].all()
    assert float(recipe(moved)[1]["pairs/beyond_clip"]) == 1


def test_wrong_clip():
    with pytest.raises(UsageError, match=r"clip=1"):
        make("p3o", clip=1.0)
