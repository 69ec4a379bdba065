"""Card: rlvr_core.md, lp-reg."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.methods.rlvr.lp_reg import REMOVED
from upslope.parts.surrogate import ClippedRatio
from upslope.testing import batch_of, finite_differences, value_and_gradient, with_observed

CARD = torch.tensor([[0.6, 0.3, 0.09, 0.01]], dtype=torch.float64).log()


def proxy(log_probs, **settings):
    """log pi' of every token of one distribution."""
    observe = make("lp_reg", **settings).advantage.observes()["proxy_at_sampling"]
    return observe(log_probs.expand(log_probs.shape[1], -1), torch.arange(log_probs.shape[1]))


def batch_for(recipe, moved=0.0, seed=5):
    """Rollouts of the policy `log_distribution`, after the policy moved by `moved` times a random direction."""
    batch = with_observed(recipe, batch_of([[1, 0, 0, 1], [0.3, 0, 1], [0, 0, 0, 1]], seed=seed))
    return batch.replace(old_logp=batch.logp, logp=batch.logp + moved * (batch.entropy - 0.8))


def test_card_proxy_and_k3():
    found = proxy(CARD)
    np.testing.assert_allclose(found[:3].exp(), [0.60606, 0.30303, 0.09091], atol=5e-6)
    assert float(found[3]) == REMOVED
    batch = batch_of([[1.0, 0.0]], lengths=[1, 3], proxy_logp=torch.zeros(2, 3), selected=torch.ones(2, 3) > 0)
    logp = CARD[:, :3].expand(2, 3)
    penalty = make("lp_reg").regularizer(batch.replace(logp=logp, proxy_logp=found[:3].expand(2, 3)))
    np.testing.assert_allclose(penalty[1], 5.067e-5, rtol=2e-4)


def test_defaults():
    recipe = make("lp_reg")
    assert (recipe.advantage.kappa, recipe.control.share, recipe.regularizer.beta) == (0.02, 0.01, 1.0)
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high, recipe.rollout.group_size) == (0, 10, 8)
    assert make("lp_reg@released").control.among == "negative"


def test_kappa_0_removes_nothing_and_selects_nothing_before_the_policy_moves():
    np.testing.assert_allclose(proxy(CARD, kappa=0.0), CARD[0], atol=1e-12)
    np.testing.assert_allclose(proxy(CARD, kappa=1.0), [0, REMOVED, REMOVED, REMOVED], atol=1e-12)
    recipe = make("lp_reg", kappa=0.0, share=1.0)
    batch = batch_for(recipe)
    batch = batch.replace(proxy_at_sampling=batch.logp)
    assert not recipe.prepare(batch).selected.any()
    moved = recipe.prepare(batch.replace(logp=batch.logp - 0.1))
    assert torch.equal(moved.selected, moved.mask & (moved.advantage < 0))


def test_the_proxy_is_the_sampling_policys_and_is_not_computed_again():
    recipe = make("lp_reg")
    assert recipe.needs_before == {"reward", "group", "proxy_at_sampling"}
    assert "proxy_at_sampling" not in recipe.needs_each_pass
    assert recipe.needs_each_pass == {"old_logp", "trajectory"}


def numpy_selected(batch, share, among):
    mask, a, lp = batch.mask.numpy(), batch.advantage.numpy(), batch.logp.numpy()
    pool = mask & (a < 0) if among == "negative" else mask
    lowest = pool & (lp <= np.sort(lp[pool])[int(share * pool.sum()) - 1])
    old = batch.log_distribution.numpy()
    token = np.take_along_axis(old, batch.tokens.numpy()[..., None], -1)[..., 0]
    kept = np.exp(old) * (np.exp(old) >= 0.5 * np.exp(old.max(-1, keepdims=True)))
    with np.errstate(divide="ignore"):
        target = np.where(np.exp(token) >= 0.5 * np.exp(old.max(-1)), token - np.log(kept.sum(-1)), -np.inf)
    return lowest & (a < 0) & (target > lp), target


def numpy_loss(batch, held, target, logp):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())
        with np.errstate(over="ignore", invalid="ignore"):
            k3 = np.exp(target[i] - logp[i]) - (target[i] - logp[i]) - 1
        per = np.where(held[i], -a * ratio + 0.7 * k3, np.maximum(-a * ratio, -a * np.clip(ratio, 0, 1.5)))
        losses += list(per[mask[i]])
    return np.mean(losses)


@pytest.mark.parametrize("among", ["all", "negative"])
def test_value_and_gradient_off_policy(among):
    recipe = make("lp_reg", kappa=0.5, share=0.6, beta=0.7, ratio_high=1.5, among=among)
    batch = recipe.prepare(batch_for(recipe, moved=0.8))
    held, target = numpy_selected(batch, 0.6, among)
    assert (batch.selected.numpy() == held).all()
    removed = batch.mask.numpy() & (batch.advantage.numpy() < 0) & np.isinf(target)
    assert held.sum() > 0
    assert removed.any()
    loss, gradient = value_and_gradient(recipe, batch)
    lp = batch.logp.numpy()
    assert float(loss) == pytest.approx(numpy_loss(batch, held, target, lp))
    expected = finite_differences(lambda logp: numpy_loss(batch, held, target, logp), lp)
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)
    base = make("lp_reg", kappa=0.5, share=0.6, beta=0.0, ratio_high=1.5, among=among)
    pull = gradient - value_and_gradient(base, base.prepare(batch_for(base, moved=0.8)))[1]
    assert (pull[batch.selected] < 0).all(), "the log-prob is pulled up"
    assert not pull[~batch.selected].any()


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"beta": 0.0}])
def test_without_the_penalty_it_is_grpos_advantage_with_the_wide_clip(settings):
    recipe = make("lp_reg", **settings)
    batch = batch_for(recipe, moved=0.8)
    base = make("grpo", regularizer=None, aggregate=recipe.aggregate, surrogate=ClippedRatio(0.0, 10.0))
    results = [value_and_gradient(r, r.prepare(batch)) for r in (recipe, base)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_clip_never_acts_where_the_advantage_is_negative():
    recipe = make("lp_reg", share=0.0)
    for moved in (-6.0, 6.0):
        batch = recipe.prepare(batch_for(recipe))
        batch = batch.replace(logp=batch.old_logp + moved)
        loss = recipe.surrogate(batch)
        negative = batch.mask & (batch.advantage < 0)
        plain = -batch.advantage * (batch.logp - batch.old_logp).exp()
        torch.testing.assert_close(loss[negative], plain[negative])


@pytest.mark.parametrize(
    ("settings", "message"), [({"kappa": 2.0}, r"kappa=2\): a share of the largest"), ({"share": 1.5}, "a fraction")]
)
def test_errors_name_the_remedy(settings, message):
    with pytest.raises(UsageError, match=message):
        make("lp_reg", **settings)
