"""Card: rlvr_core.md, vppo."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from upslope import UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient


def hidden_so_that(dependence):
    """masked_logp - old_logp of tokens whose S is as given."""
    return np.vectorize(lambda s: brentq(lambda u: math.exp(u) - u - 1 - s, 0, 5) if s else 0.0)(dependence)


def card_batch(dependence, rewards=((1.0, 0.0, 1.0),)):
    dependence = np.array(dependence, dtype=float)
    batch = batch_of(rewards, lengths=[dependence.shape[1]] * len(dependence))
    return batch.replace(masked_logp=batch.old_logp + torch.tensor(hidden_so_that(dependence)))


def test_card_scales():
    weight = make("vppo", share=1.0).prepare(card_batch([[0.1, 0.1], [0.2, 0.2], [0.1, 0.5]])).weight
    np.testing.assert_allclose(weight, [[0.9, 0.9], [1.0, 1.0], [1.1, 1.1]], rtol=1e-9)


def numpy_weight(old, masked, mask, share=0.4, low=0.9):
    """a m, one completion after the other."""
    scores, keeps = [], np.zeros(mask.shape)
    for i in range(len(mask)):
        u = (masked - old)[i][mask[i]]
        s = np.minimum(np.exp(u) - u - 1, 10)
        scores.append(s.mean())
        keeps[i, np.argsort(-s, kind="stable")[: math.ceil(share * len(s))]] = 1
    n = (np.array(scores) - min(scores)) / (max(scores) - min(scores))
    high = low + (1 - low) / n.mean()
    return (low + (high - low) * n)[:, None] * keeps


def numpy_loss(batch, logp):
    reward, group, mask, old = (getattr(batch, name).numpy() for name in ("reward", "group", "mask", "old_logp"))
    weight = numpy_weight(old, batch.masked_logp.numpy(), mask)
    total = 0.0
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        for t in np.flatnonzero(mask[i]):
            r = np.exp(logp[i, t] - old[i, t])
            loss = max(-a * r, -a * np.clip(r, 0.8, 1.28))
            total += weight[i, t] * (min(loss, -3 * a) if a < 0 else loss) - 0.06 * logp[i, t]
    return total / mask.sum()


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.7 * (batch.entropy - 0.9), masked_logp=batch.logp - 3 * batch.entropy)
    prepared = make("vppo").prepare(batch)
    assert float(prepared.weight.max()) > 1.01
    loss, gradient = value_and_gradient(make("vppo"), prepared)
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_defaults():
    recipe = make("vppo")
    assert (recipe.rollout.group_size, recipe.update.minibatches, recipe.surrogate.dual) == (8, 3, 3.0)
    assert (recipe.control.share, recipe.control.scale_min, recipe.control.hide) == (0.4, 0.9, 0.5)
    assert recipe.regularizer.coefficient == 0.06


def test_mean_scale_is_one_and_the_share_of_tokens_is_kept():
    batch = batch_of([[1, 0, 1, 0, 0]], lengths=[5, 1, 3, 4, 2])
    weight = make("vppo").prepare(batch).weight
    assert float(weight.amax(1).mean()) == pytest.approx(1.0)
    assert (weight > 0).sum(1).tolist() == [2, 1, 2, 2, 1]


def test_without_scale_and_selection_it_is_dapo():
    batch = batch_of([[1, 0, 0], [0, 1]])
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy)
    ours, theirs = make("vppo", share=1.0, scale_min=1.0, regularizer=None, dual=None), make("dapo", reward=None)
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_prompt_without_influence():
    weight = make("vppo").prepare(card_batch(np.zeros((3, 4)))).weight
    assert weight.tolist() == [[1.0, 1.0, 0.0, 0.0]] * 3


def test_dependence_is_bounded():
    batch = batch_of([[1.0, 0.0, 1.0]], lengths=[2, 2, 2])
    far = batch.replace(masked_logp=batch.old_logp + torch.tensor([[5.0, 5.0], [9.0, 9.0], [0.0, 0.0]]))
    np.testing.assert_allclose(make("vppo", share=1.0).prepare(far).weight[:, 0], [1.05, 1.05, 0.9])


def test_scores_are_compared_within_the_minibatch():
    recipe = make("vppo", share=1.0)
    batch, states = recipe.credit(card_batch([[0.1], [0.2], [0.3]]), recipe.init())
    part, _ = recipe.minibatch(batch.select(torch.tensor([0, 1])), states)
    np.testing.assert_allclose(part.weight[:, 0], [0.9, 1.1])


def test_the_prompt_is_hidden_token_by_token():
    part, ids = make("vppo").control, list(range(1, 2001))
    altered = part.alter_prompt(ids, 0, torch.Generator().manual_seed(1))
    assert all(new in (0, old) for new, old in zip(altered, ids, strict=True))
    assert 900 < altered.count(0) < 1100
    assert make("vppo", hide=0.0).control.alter_prompt(ids, 0, torch.Generator()) == ids
    assert set(make("vppo", hide=1.0).control.alter_prompt(ids, 0, torch.Generator())) == {0}


def test_settings_out_of_range_are_refused():
    with pytest.raises(UsageError, match=r"share must be in \(0, 1\]"):
        make("vppo", share=0.0)
