"""Card: rlvr_core.md, r2vpo."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.methods.rlvr.r2vpo import DualAscent, PenalizedRatio
from upslope.parts.aggregate import TokenMean
from upslope.parts.surrogate import ClippedRatio
from upslope.testing import batch_of, finite_differences, value_and_gradient


def off_policy(spread=0.4):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    return batch.replace(old_logp=batch.logp + spread * (batch.entropy - 0.8))


def squared_deviation(batch):
    ratio = np.exp(batch.logp.numpy() - batch.old_logp.numpy())
    return np.mean((ratio[batch.mask.numpy()] - 1) ** 2)


def numpy_loss(batch, logp, lam):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        losses += list(-a * ratio + lam * (ratio - 1) ** 2)
    return np.mean(losses)


@pytest.mark.parametrize("lam", [0.0, 0.1, 3.0])
def test_value_and_gradient_off_policy(lam):
    batch, recipe = off_policy(), make("r2vpo", lam=lam)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), lam))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, lam), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 2.5])
def test_card_effective_advantage_turns_at_one_plus_a_over_two_lam(ratio):
    """A = 1, lam = 1/2: the gradient -r (A - 2 lam (r - 1)) vanishes at r = 2."""
    logp = torch.tensor([[np.log(ratio)]], requires_grad=True)
    batch = Batch(logp=logp, old_logp=torch.zeros_like(logp), advantage=[1.0], lam=torch.tensor([0.5]))
    (gradient,) = torch.autograd.grad(PenalizedRatio()(batch).sum(), logp)
    assert float(gradient) == pytest.approx(-ratio * (1 - (ratio - 1)), abs=1e-6)


def test_on_policy_it_is_grpo_without_kl_and_with_a_token_mean():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    ours, theirs = make("r2vpo"), make("grpo", regularizer=None, aggregate=TokenMean())
    (_, one), (_, other) = (value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs))
    torch.testing.assert_close(one, other)


def test_without_a_dual_variable_it_is_the_unclipped_ratio():
    batch = off_policy()
    wide = make("grpo", regularizer=None, aggregate=TokenMean(), surrogate=ClippedRatio(0.0, 1e9))
    results = [value_and_gradient(r, r.prepare(batch)) for r in (make("r2vpo", lam=0.0), wide)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_card_the_mean_squared_deviation_is_chi_squared_and_about_twice_the_kl():
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.48, 0.31, 0.21])
    arms = np.repeat([0, 1, 2], [5, 3, 2])  # ten rows that hold each arm as often as the old policy draws it
    batch = Batch(logp=np.log(new[arms])[:, None], old_logp=np.log(old[arms])[:, None])
    part = DualAscent(delta=0.0, eta=1.0, lam=0.0)
    _, state = part(batch, part.init())
    assert state["lam"] == pytest.approx(0.0016333, abs=5e-8)
    assert state["lam"] == pytest.approx(((new - old) ** 2 / old).sum())
    assert 2 * (old * np.log(old / new)).sum() == pytest.approx(0.0016320, abs=2e-6)


def test_dual_ascent_over_several_mini_batches():
    recipe = make("r2vpo", delta=0.05, eta=0.3, lam=0.1)
    state, lam = recipe.init(), 0.1
    assert state == {"control": {"lam": 0.1}}
    for spread in (0.0, 0.8, 0.8, 0.1, 0.0, 0.0):
        batch = off_policy(spread)
        prepared, following = recipe.prepare(batch, state)
        assert prepared.lam.tolist() == pytest.approx([lam] * len(batch))
        assert state == {"control": {"lam": pytest.approx(lam)}}, "the given state is not changed"
        lam = max(0.0, lam + 0.3 * (squared_deviation(batch) - 0.05))
        state = following
    assert state["control"]["lam"] == pytest.approx(lam)


def test_the_dual_variable_stays_within_its_bounds():
    part, batch = DualAscent(delta=0.05, eta=0.3, lam_max=2.0), batch_of([[1, 0]])
    assert part(batch, {"lam": 0.001})[1] == {"lam": 0.0}
    assert part(batch.replace(old_logp=batch.logp - 9), {"lam": 0.1})[1] == {"lam": 2.0}
    with pytest.raises(UsageError, match="needs delta >= 0"):
        make("r2vpo", lam=20.0)


def test_the_dual_variable_settles_where_the_constraint_is_active():
    """One token that is worth A = 1, moved to its best r = 1 + A / (2 lam) each time: r - 1 becomes sqrt(delta)."""
    part = DualAscent(delta=0.04, eta=2.0, lam=0.3)
    state = part.init()
    for _ in range(300):
        ratio = 1 + 1 / (2 * max(state["lam"], 0.1))
        batch = Batch(logp=torch.tensor([[np.log(ratio)]]), old_logp=torch.zeros(1, 1, dtype=torch.float64))
        _, state = part(batch, state)
    assert state["lam"] == pytest.approx(1 / (2 * 0.2), rel=1e-3)


def test_statistics():
    recipe, batch = make("r2vpo"), off_policy()
    _, stats = recipe.loss(recipe.prepare(batch))
    assert float(stats["dual/lam"]) == pytest.approx(0.1)
    assert float(stats["ratio/squared_deviation"]) == pytest.approx(squared_deviation(batch))
