"""Card: preference_distill_hybrid.md, vopd; line 6 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.exact import ExactLab
from upslope.testing import batch_of, value_and_gradient

S, T = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
LAB = ExactLab(vocabulary=4, horizon=2, seed=4)
TEACHER = LAB.theta + torch.randn(LAB.theta.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def advantage(s, t, **settings):
    """A of every word, [V], and the recipe's baseline."""
    recipe = make("vopd", **settings)
    policy, teacher = torch.tensor(np.log(s)), torch.tensor(np.log(t))
    b = recipe.advantage.compares()["teacher_kl"](policy[None], teacher[None])
    columns = {"logp": policy, "old_logp": policy, "teacher_logp": teacher, "teacher_kl": b.expand(len(s))}
    return recipe.prepare(Batch(**{n: c.unsqueeze(1) for n, c in columns.items()})).advantage[:, 0].numpy(), b.item()


def gradients(s, a):
    """By the logits, of -A logp of each word, [V, V]."""
    return -a[:, None] * (np.eye(len(s)) - s)


def variance(s, a):
    g = gradients(s, a)
    return s @ (g**2).sum(1) - ((s @ g) ** 2).sum()


@pytest.mark.parametrize(("top_k", "baseline"), [(None, 0.085123), (2, 0.053814), (1, 0.0)])
def test_any_baseline_leaves_the_mean_gradient(top_k, baseline):
    a, b = advantage(S, T, top_k=top_k)
    assert b == pytest.approx(baseline, abs=5e-7)
    np.testing.assert_allclose(a, np.log(T / S) + b, atol=1e-12)
    np.testing.assert_allclose(S @ gradients(S, a), [0.175945, -0.098118, -0.077827], atol=5e-7)


def test_the_mean_advantage_is_zero():
    assert S @ advantage(S, T)[0] == pytest.approx(0, abs=1e-12)


def test_variances_of_the_card():
    """Three words: more noise. A uniform policy of ten words and a peaked teacher: a third of it."""
    assert variance(S, np.log(T / S)) == pytest.approx(0.0663, abs=5e-5)
    assert variance(S, advantage(S, T)[0]) == pytest.approx(0.0956, abs=5e-5)
    flat, peaked = np.full(10, 0.1), np.array([0.9] + [0.1 / 9] * 9)
    assert variance(flat, np.log(peaked / flat)) == pytest.approx(4.171, abs=5e-4)
    assert variance(flat, advantage(flat, peaked)[0]) == pytest.approx(1.390, abs=5e-4)


@pytest.mark.parametrize(("words", "bound"), [(20, 1.0), (100, 0.8)])
def test_less_variance_in_a_vocabulary_of_some_size(words, bound):
    draw = np.random.default_rng(0)
    ratios = []
    for _ in range(100):
        s, t = draw.dirichlet(np.ones(words), size=2)
        ratios.append(variance(s, advantage(s, t)[0]) / variance(s, np.log(t / s)))
    assert np.median(ratios) < bound
    if words == 100:
        assert np.median(ratios) == pytest.approx(0.70, abs=0.05)
        assert max(ratios) < 1


def test_in_three_words_it_often_has_more():
    """The card: less variance in only 42 % of draws from Dirichlet(1)."""
    draw = np.random.default_rng(1)
    less = []
    for _ in range(400):
        s, t = draw.dirichlet(np.ones(3), size=2)
        less.append(variance(s, advantage(s, t)[0]) < variance(s, np.log(t / s)))
    assert np.mean(less) == pytest.approx(0.42, abs=0.06)


def lab_columns(top_k):
    """The teacher's log-probs, and the baseline at every prefix."""
    compare = make("vopd", top_k=top_k).advantage.compares()["teacher_kl"]
    ours, theirs = (LAB.log_distribution(theta).flatten(0, 1) for theta in (LAB.theta, TEACHER))
    return {"teacher_logp": LAB.logp(TEACHER), "teacher_kl": compare(ours, theirs).view(LAB.mask.shape) * LAB.mask}


@pytest.mark.parametrize("top_k", [None, 3, 1])
def test_in_the_lab_the_mean_gradient_is_opds(top_k):
    columns = lab_columns(top_k)
    ours = LAB.estimate("vopd", group_size=1, columns=columns)
    theirs = LAB.estimate("opd", group_size=1, columns=columns)
    assert ours.exact
    torch.testing.assert_close(ours.mean, theirs.mean)
    assert (ours.variance == pytest.approx(theirs.variance)) == (top_k == 1), "on one word the baseline is 0"


def test_without_the_baseline_it_is_opd():
    batch = batch_of([[1, 0], [0, 0, 1]]).replace(teacher_kl=torch.zeros(5, 5))
    results = [value_and_gradient(r, r.prepare(batch)) for r in (make("vopd", discount=0.5), make("opd", discount=0.5))]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_wrong_k():
    with pytest.raises(UsageError, match="top_k=0"):
        make("vopd", top_k=0)
