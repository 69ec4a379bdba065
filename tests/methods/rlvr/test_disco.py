"""Card: rlvr_core.md, disco."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from upslope import Batch, UsageError, diff, make
from upslope.parts.advantage import GroupBaseline
from upslope.testing import batch_of, finite_differences, value_and_gradient

SCORES = torch.tensor([[-0.2], [-0.4], [-0.9], [-1.5]], dtype=torch.float64)


def card_batch():
    return Batch(logp=SCORES, old_logp=SCORES, reward=[1.0, 1, 0, 0], group=[0, 0, 0, 0])


@pytest.mark.parametrize(
    ("tau", "loss", "weights"),
    [(None, -0.9, [0.5, 0.5]), (1, -0.85566, [0.6457, 0.3543]), (10, -0.89550, [0.5150, 0.4850])],
)
def test_card_values_and_gradients(tau, loss, weights):
    recipe = make("disco", tau=tau)
    value, gradient = value_and_gradient(recipe, recipe.prepare(card_batch()))
    assert float(value) == pytest.approx(loss, abs=5e-6)
    np.testing.assert_allclose(gradient[:, 0], [-0.5, -0.5, *weights], atol=5e-5)


def test_defaults():
    recipe = make("disco")
    assert (recipe.surrogate.score, recipe.surrogate.tau, recipe.update.minibatches) == ("log_likelihood", 10, 4)
    assert (recipe.control.beta, recipe.control.delta) == (1e3, 1e-4)
    assert recipe.keep_groups
    assert "rollout" not in diff("disco", "grpo")


def numpy_loss(batch, logp, *, ratio, tau, multiplier, prompts):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    old = batch.old_logp.numpy()
    tokens = np.exp(logp - old) if ratio else logp
    s = np.array([row[m].mean() for row, m in zip(tokens, mask, strict=True)])
    total = 0.0
    for g in np.unique(group):
        right, wrong = s[(group == g) & (reward > 0.5)], s[(group == g) & (reward <= 0.5)]
        if len(right) and len(wrong):
            total -= right.mean() - (tau * (logsumexp(wrong / tau) - np.log(len(wrong))))
    return total / prompts + multiplier * (old - logp)[mask].mean()


@pytest.mark.parametrize(("score", "tau"), [("log_likelihood", 2.0), ("ratio", 1.0)])
def test_value_and_gradient_off_policy(score, tau):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1], [1, 1], [0, 0, 0]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy)
    mask = batch.mask.numpy()
    divergence = (batch.old_logp - batch.logp).numpy()[mask].mean()
    assert divergence > 0.05
    recipe = make("disco", score=score, tau=tau, beta=3.0, delta=0.05)
    settings = {"ratio": score == "ratio", "tau": tau, "multiplier": 3 * (divergence - 0.05), "prompts": 4}
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), **settings))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, **settings), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * mask, atol=1e-8)


def test_inside_the_constraint_there_is_no_penalty():
    batch = batch_of([[1, 0, 0], [0, 1]])
    for old in (batch.logp, batch.logp - 0.5, batch.logp + 9e-5):
        recipe = make("disco")
        prepared = recipe.prepare(batch.replace(old_logp=old))
        assert not prepared.kl_multiplier.any()
        bare = recipe.replace(control=None, terms=())
        torch.testing.assert_close(
            value_and_gradient(recipe, prepared)[1], value_and_gradient(bare, bare.prepare(batch))[1]
        )


def test_the_multiplier_is_that_of_the_whole_minibatch_and_constant():
    batch = batch_of([[1, 0, 0], [0, 1, 1]], lengths=[1, 2, 3, 4, 5, 5])
    batch = batch.replace(old_logp=batch.logp + torch.where(batch.group == 0, 0.3, 0.1).unsqueeze(1))
    recipe = make("disco")
    prepared = recipe.prepare(batch)
    expected = 1e3 * ((0.3 * 6 + 0.1 * 14) / 20 - 1e-4)
    np.testing.assert_allclose(prepared.select(batch.group == 1).kl_multiplier, [expected] * 3)
    _, whole = value_and_gradient(recipe, prepared)
    _, bare = value_and_gradient(recipe.replace(terms=()), prepared)
    np.testing.assert_allclose(whole - bare, -expected / 20 * batch.mask)


@pytest.mark.parametrize(("scale", "power"), [("population_std", 0.5), (None, 1.0)])
def test_on_policy_disco_b_is_grpo_over_the_spread_of_each_prompt(scale, power):
    rewards = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    batch = batch_of(rewards)
    ours, theirs = (
        make("disco", tau=None),
        make("grpo", regularizer=None, advantage=GroupBaseline(scale=scale, eps=0.0)),
    )
    (_, one), (_, other) = (value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs))
    p = torch.tensor(rewards, dtype=torch.float64).mean(1)[batch.group]
    torch.testing.assert_close(one, other / ((p * (1 - p)) ** power).unsqueeze(1))


def test_on_policy_both_scores_have_the_same_gradient_in_disco_b():
    batch = batch_of([[1, 0, 0], [0, 1]])
    gradients = [
        value_and_gradient(r, r.prepare(batch))[1]
        for r in (make("disco", tau=None, score=s) for s in ("ratio", "log_likelihood"))
    ]
    torch.testing.assert_close(*gradients)


def test_a_large_tau_is_disco_b_and_a_small_one_the_highest_wrong_score():
    (_, wide), (_, basic), (_, narrow) = (
        value_and_gradient(r, r.prepare(card_batch())) for r in (make("disco", tau=t) for t in (1e7, None, 1e-3))
    )
    torch.testing.assert_close(wide, basic, atol=1e-6, rtol=0)
    np.testing.assert_allclose(narrow[:, 0], [-0.5, -0.5, 1, 0], atol=1e-12)


def test_prompts_of_one_kind_count_in_the_mean_and_have_no_gradient():
    one, two = batch_of([[1, 0, 0]], lengths=[2, 1, 3]), batch_of([[1, 0, 0], [1, 1]], lengths=[2, 1, 3, 3, 2], seed=0)
    two = two.replace(logp=torch.cat([one.logp, two.logp[3:]]))
    recipe = make("disco", control=None).replace(terms=())
    _, alone = value_and_gradient(recipe, recipe.prepare(one))
    _, beside = value_and_gradient(recipe, recipe.prepare(two))
    torch.testing.assert_close(beside[:3], alone / 2)
    assert not beside[3:].any()


def test_a_tau_that_is_not_positive_is_refused():
    with pytest.raises(UsageError, match=r"DiscriminativeScore\(tau=0\): it must be positive"):
        make("disco", tau=0)
