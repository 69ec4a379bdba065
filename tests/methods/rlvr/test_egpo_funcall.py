"""Card: rlvr_core.md, egpo-funcall. The bonus departs from the card's reconstruction, which is kappa times alpha of ours."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient

REWARDS = [[1, 0, 0, 1], [1, 1, 1], [0, 0, 1, 0.3]]


def off_policy():
    batch = batch_of(REWARDS, seed=5)
    return batch.replace(old_logp=batch.logp + 0.3 * (batch.value - 0.2))


def advantage(batch, **settings):
    return make("egpo_funcall", **settings).credit(batch, {})[0].advantage


def test_card_numbers():
    """A = -1, H = 3, alpha = 0.4: at most half of |A|, whichever is capped."""
    batch = batch_of([[0, 2]], lengths=[2, 2], entropy=[[2, 4], [0.1, 0.1]])
    card = advantage(batch, scale=None, kappa=2 * 0.4)
    np.testing.assert_allclose(card[:, 0], [-0.5, 1 + 0.4 * 0.1])
    ours = advantage(batch, scale=None)
    np.testing.assert_allclose(ours[:, 0], [-1 + 0.4 * 0.5, 1 + 0.4 * 0.1])
    part = make("egpo_funcall").advantage
    assert (part.alpha, part.kappa, make("egpo_funcall").regularizer.beta) == (0.4, 2.0, 0.001)


def test_value_and_gradient_off_policy():
    batch = off_policy()
    reward, group, mask, entropy = (getattr(batch, name).numpy() for name in ("reward", "group", "mask", "entropy"))
    expected = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        expected.append(a + 0.7 * np.clip(entropy[i][mask[i]].mean(), -abs(a) / 1.5, abs(a) / 1.5))

    def numpy_loss(logp):
        per = []
        for i, a in enumerate(expected):
            ratio = np.exp((logp - batch.old_logp.numpy())[i][mask[i]])
            gap = (batch.ref_logp.numpy() - logp)[i][mask[i]]
            clipped = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2))
            per.append((clipped + 0.001 * (np.exp(gap) - gap - 1)).mean())
        return np.mean(per)

    recipe = make("egpo_funcall", alpha=0.7, kappa=1.5)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    numeric = finite_differences(numpy_loss, batch.logp.numpy())
    np.testing.assert_allclose(gradient, numeric * mask, atol=1e-8)


def test_without_the_bonus_it_is_grpo():
    results = [
        value_and_gradient(r, r.prepare(off_policy()))
        for r in (make("egpo_funcall", alpha=0.0), make("grpo", beta=0.001))
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kappa", [0.41, 1.0, 2.0, 50.0])
def test_the_sign_stays_and_the_bonus_is_never_negative(kappa):
    batch = off_policy()
    plain = make("grpo").credit(batch, {})[0].advantage
    found = advantage(batch, kappa=kappa)
    assert torch.equal(found.sign(), plain.sign())
    assert (found >= plain).all()
    assert (found > plain)[(plain != 0) & batch.mask].all()


def test_only_the_reasoning_counts():
    tokens = torch.tensor([[3, 1, 2, 3, 3], [1, 3, 1, 2, 5], [1, 2, 3, 3, 3], [4, 4, 4, 4, 1]])
    entropy = torch.tensor([[0.1, 9, 9, 9, 9], [0.1, 0.2, 9, 9, 9], [9, 9, 9, 9, 9], [0.1, 0.1, 0.1, 0.1, 0.6]])
    batch = batch_of([[1, 1, 1, 0]], lengths=[5] * 4).replace(tokens=tokens, entropy=entropy.double())
    settings = {"scale": None, "reasoning_end": (1, 2)}
    bonus = advantage(batch, kappa=0.5, **settings)[:, 0] - torch.tensor([0.25, 0.25, 0.25, -0.75])
    np.testing.assert_allclose(bonus, [0.4 * 0.1, 0.4 * 0.15, 0, 0.4 * 0.2], atol=1e-7)
    assert make("egpo_funcall", **settings).needs == make("egpo_funcall").needs | {"tokens"}
    longer = advantage(batch, kappa=0.5, scale=None, reasoning_end=(9,) * 7)
    torch.testing.assert_close(longer, advantage(batch, kappa=0.5, scale=None))


def test_a_marker_in_a_tools_text_does_not_end_the_reasoning():
    mask = [[True, False, False, True], [True] * 4]
    batch = batch_of([[1, 0]], lengths=[4, 4], mask=mask, entropy=[[0.1, 0, 0, 0.3], [0.2, 0.2, 9, 9]])
    batch = batch.replace(tokens=[[3, 1, 2, 3], [3, 3, 1, 2]])
    found = advantage(batch, scale=None, kappa=0.5, reasoning_end=[1, 2])
    np.testing.assert_allclose(found[:, 0], [0.5 + 0.4 * 0.2, -0.5 + 0.4 * 0.2])


def test_a_bonus_that_could_turn_the_sign_is_refused():
    with pytest.raises(UsageError, match=r"EntropyBonus\(alpha=0.4, kappa=0.4\): .* keeps A's sign only where"):
        make("egpo_funcall", kappa=0.4)
