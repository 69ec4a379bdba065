"""Momentum policy gradients, card npg-igt-harpg: identities of the transport, Hessian products, and whole runs resumed."""

import numpy as np
import pytest
import torch
from torch import nn

from upslope import Trainer, UsageError, make
from upslope.control.momentum import HessianLearner, LookAheadLearner, MomentumLearner
from upslope.exact import ExactLab
from upslope.parts.discount import FromStart
from upslope.parts.momentum import GradientMomentum, HessianMomentum, LookAhead
from upslope.testing import batch_of, check_resume, value_and_gradient

METHODS = ["n_pg_igt", "harpg", "n_harpg"]
SMALL = {"eval": {"episodes": 0}, "threads": 1, "rollout.environments": 2, "rollout.episodes": 2}


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def learner_at(values, part):
    parameter = nn.Parameter(f64(values))
    return parameter, part.learner()([parameter], part)


def quadratic(parameter, diagonal):
    """J = -1/2 theta^T A theta: its negative, as a loss."""
    return lambda w: (0.5 * (diagonal * parameter**2).sum(), {})


def test_look_ahead_on_a_quadratic_is_the_gradient_at_the_parameters_kept():
    """Card, identity 2: A = diag(1, 3), theta_0 = (1, 1), eta = .2, steps of .1 along d / |d|."""
    part = LookAhead(lr=0.1, lr_decay=0.0, eta=0.2, eta_decay=0.0)
    parameter, learner = learner_at([1.0, 1.0], part)
    assert isinstance(learner, LookAheadLearner)
    diagonal, seen = f64([1.0, 3.0]), []
    for _ in range(12):
        truth = -diagonal * learner.flat
        gradient, _ = learner.gradient(quadratic(parameter, diagonal), learner.place())
        learner.step(gradient)
        torch.testing.assert_close(learner.d, truth)
        seen.append(learner.d)
    np.testing.assert_allclose(seen[1], [-0.96838, -2.71540], atol=5e-6)
    np.testing.assert_allclose(seen[2], [-0.93479, -2.43283], atol=5e-6)


def test_the_look_ahead_is_bounded():
    parameter, learner = learner_at([0.0], LookAhead(lr=1.0, lr_decay=0.0, eta=1e-6, eta_decay=0.0, look_ahead=5.0))
    for _ in range(2):
        learner.step(f64([1.0]))
    step = float(learner.flat - learner.before)
    assert float(learner.place() - learner.flat) == pytest.approx(5 * step)
    assert parameter.requires_grad


@pytest.mark.parametrize("kind", [LookAhead, HessianMomentum, GradientMomentum])
@pytest.mark.parametrize("normalized", [True, False])
def test_without_a_past_it_is_the_policy_gradient(kind, normalized):
    """Card, identity 1: eta = 1 for all t."""
    parameter, learner = learner_at([1.0, -2.0], kind(lr=0.1, eta_decay=0.0, normalized=normalized))
    theta = parameter.detach().clone()
    for t, gradient in enumerate(torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)):
        torch.testing.assert_close(learner.place(), learner.flat)
        assert learner.second_place(torch.Generator()) is None
        learner.step(gradient)
        theta = theta + 0.1 * 2 / (t + 2) * (gradient / gradient.norm() if normalized else gradient)
        torch.testing.assert_close(parameter.detach(), theta)


def bandit(parameter, reward, actions, weights):
    """Closures of episodes of one action each, `weights` [R] being their shares of the mean."""

    def scores():
        return parameter.log_softmax(0)[actions]

    def weighted(w):
        phi = reward[actions] * scores() * weights
        return -(phi if w is None else phi * w).sum(), {}

    return weighted, scores


def test_the_hessian_products_of_a_bandit():
    """Card, identity 3: in expectation over actions B is the Hessian of J; over the places between, the gradient's change."""
    reward, actions = f64([1.0, -0.5, 2.0]), torch.arange(3)
    parameter, learner = learner_at([0.3, -0.2, 0.7], HessianMomentum())
    assert isinstance(learner, HessianLearner)
    learner.before = learner.flat - f64([0.4, -0.9, 0.5])
    delta = learner.flat - learner.before

    def value(theta):
        return (theta.softmax(0) * reward).sum()

    total = torch.zeros(3, dtype=torch.float64)
    nodes, shares = np.polynomial.legendre.leggauss(12)
    for node, share in zip((nodes + 1) / 2, shares / 2, strict=True):
        place = node * learner.flat + (1 - node) * learner.before
        found = learner.change(*bandit(parameter, reward, actions, place.softmax(0)), place)
        torch.testing.assert_close(found, torch.autograd.functional.hessian(value, place) @ delta)
        total += share * found
    end, start = (torch.autograd.functional.jacobian(value, at) for at in (learner.flat, learner.before))
    torch.testing.assert_close(total, end - start, rtol=0, atol=1e-8)
    assert not torch.allclose(learner.flat, learner.before)


def test_products_of_several_steps_are_those_of_the_matrix():
    """Two episodes of a table: B formed explicitly, for each episode, from the card's formula."""
    lab = ExactLab(vocabulary=3, horizon=3)
    parameter = nn.Parameter(lab.theta.clone())
    learner = HessianMomentum().learner()([parameter], HessianMomentum())
    learner.before = learner.flat + torch.randn(learner.flat.shape, generator=torch.Generator().manual_seed(1)).double()
    rows, delta = torch.tensor([4, 20]), learner.flat - learner.before

    def scores():
        return lab.logp(parameter).sum(1)[rows]

    def weighted(w):
        phi = lab.rewards[rows] * scores() / 2
        return -(phi if w is None else phi * w).sum(), {}

    expected = torch.zeros_like(delta)
    for row in rows.tolist():

        def score(theta, row=row):
            return lab.logp(theta.view_as(lab.theta)).sum(1)[row]

        slope = torch.autograd.functional.jacobian(score, learner.flat)
        matrix = torch.outer(slope, slope) + torch.autograd.functional.hessian(score, learner.flat)
        expected += lab.rewards[row] * matrix @ delta / 2
    torch.testing.assert_close(learner.change(weighted, scores, learner.flat.clone()), expected)


def test_a_gradient_that_is_not_finite_changes_nothing():
    parameter, learner = learner_at([1.0, 2.0], GradientMomentum())
    learner.step(f64([1.0, 0.0]))
    kept, d = parameter.detach().clone(), learner.d.clone()
    assert "nan" in learner.step(f64([1.0, torch.nan])).skipped
    assert torch.equal(parameter.detach(), kept)
    assert (learner.taken, torch.equal(learner.d, d)) == (1, True)
    assert type(learner) is MomentumLearner


@pytest.mark.parametrize("name", METHODS)
def test_losses_in_value_and_gradient(name):
    """Psi = gamma^h (return from h on - the others' mean return), summed over an episode, meaned over episodes."""
    batch = batch_of([[1.0, 0.0, 2.0]], lengths=[3, 1, 2])
    gamma, recipe = 0.9, make(name, **{"advantage.gamma": 0.9, "weight.gamma": 0.9})
    prepared = recipe.prepare(batch)
    loss, gradient = value_and_gradient(recipe, prepared)
    returns = np.array([1.0 * gamma**2, 0.0, 2.0 * gamma])
    psi = np.zeros((3, 3))
    for row, (length, reward) in enumerate(((3, 1.0), (1, 0.0), (2, 2.0))):
        for h in range(length):
            others = (returns.sum() - returns[row]) / 2
            psi[row, h] = gamma**h * (gamma ** (length - 1 - h) * reward - others)
    np.testing.assert_allclose(gradient, -psi / 3, atol=1e-12)
    np.testing.assert_allclose(float(loss), -(psi * batch.logp.numpy()).sum() / 3)


def test_discount_counts_from_the_first_step():
    weight = FromStart(gamma=0.5)(batch_of([[1.0, 0.0]], lengths=[3, 2]))
    np.testing.assert_allclose(weight, [[1.0, 0.5, 0.25], [1.0, 0.5, 0.0]])


def state_of(trainer):
    learner = trainer.parts.updater.learner
    return {
        **trainer.parts.policy.state_dict(),
        **{f"learner.{k}": torch.as_tensor(v) for k, v in learner.state_dict().items()},
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, tmp_path):
    task = "Pendulum-v1" if name == "n_harpg" else "CartPole-v1"
    one, other = map(state_of, check_resume(name, tmp_path, killed=4, task=task, steps=5, checkpoint_every=3, **SMALL))
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"eta": 0.0}, "eta"),
        ({"look_ahead": -1.0}, "look_ahead"),
        ({"transitions": True}, "one step with all episodes"),
        ({"weight.gamma": 1.5}, "FromStart.gamma"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UsageError, match=message), Trainer("n_pg_igt", task="CartPole-v1", steps=1, **settings):
        pass


@pytest.mark.learning
@pytest.mark.parametrize("name", METHODS)
def test_the_pole_is_held_longer(name):
    """A hundred steps of 8 episodes (16 with Hessian products) from the 9 steps that an untrained policy's best actions hold it."""
    with Trainer(name, task="CartPole-v1", steps=100, threads=1, eval={"every": 100}) as trainer:
        trainer.train()
    assert trainer.rows[-1]["eval/return"] >= 100
