"""Card: control_theory.md, pmoe, on the host of sac. Contract: tests/methods/test_contract.py."""

import math

import numpy as np
import pytest
import torch

from upslope import make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import minibatch_of
from upslope.parts.routing import frequency_loss, pick
from upslope.policies.distributions import Gaussian, Mixture, SquashedGaussian


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


class GivenMixture:
    """A policy that is this mixture whatever it sees."""

    def __init__(self, logits, mean, log_std):
        self.found = Mixture(logits, SquashedGaussian(mean, log_std))

    def distribution(self, observation):
        return self.found


def two(weights=(0.7, 0.3), rows=1):
    """Two components of one action, far apart and narrow: tanh(-1), tanh(1)."""
    logits = f64([weights] * rows).log().requires_grad_()
    mean = f64([[[-1.0], [1.0]]] * rows).requires_grad_()
    log_std = torch.full((rows, 2, 1), -12.0, dtype=torch.float64).requires_grad_()
    return logits, mean, log_std


def test_mixture_log_prob_of_the_card():
    """a = 0 under N(-1, .5) and N(1, .5) with w = (.5, .5): -2.225791, .5 being the deviation."""
    found = Mixture(f64([0.0, 0.0]), Gaussian(f64([[-1.0], [1.0]]), f64([[0.5], [0.5]]).log()))
    assert float(found.log_prob(f64([0.0]))) == pytest.approx(-2.225791, abs=5e-7)


def test_frequency_loss_of_the_card():
    """K = 2, w = (.7, .3), k* = 2: ((.7)^2 + (.3 - 1)^2) / 2 = .49; gradient to w alone."""
    w = f64([[0.7, 0.3]]).requires_grad_()
    loss = frequency_loss(w, torch.tensor([1]))
    assert float(loss.detach()) == pytest.approx(0.49)
    (gradient,) = torch.autograd.grad(loss, w)
    np.testing.assert_allclose(gradient, [[0.7, -0.7]])


def test_pick():
    each = torch.arange(12.0).view(2, 3, 2)
    chosen = torch.tensor([2, 0])
    assert pick(each, chosen).tolist() == [[4, 5], [6, 7]]
    assert pick(each[..., 0], chosen).tolist() == [4, 6]


def test_actor_in_value_and_gradient():
    """Only the best component's mean has a gradient, only the frequency loss reaches w."""
    logits, mean, log_std = two()
    m = minibatch_of(
        [[0.0]],
        q=lambda x: torch.stack([3 * x[:, 1], 5 + 4 * x[:, 1]]),
        policy=GivenMixture(logits, mean, log_std),
        alpha=0.2,
    )
    loss = make("pmoe").actor(m)
    a = math.tanh(1.0)
    _, logp = m.sample()
    assert float(m.sample()[0]) == pytest.approx(a, abs=1e-4)
    assert float(loss) == pytest.approx(0.2 * float(logp) - 3 * a + 0.49, abs=1e-3)
    own = SquashedGaussian(mean[:, 1], log_std[:, 1]).log_prob(
        m.sample()[0]
    )  # not the mixture's, which has log .3 beside it
    torch.testing.assert_close(own, logp, atol=1e-4, rtol=0)
    by_logits, by_mean = torch.autograd.grad(loss, [logits, mean])
    slope = 1 - a * a
    np.testing.assert_allclose(by_mean[0, :, 0], [0.0, -3 * slope + 0.2 * 2 * a], atol=1e-3)
    by_w = np.array([0.7, -0.7])
    w = np.array([0.7, 0.3])
    np.testing.assert_allclose(by_logits[0], w * (by_w - w @ by_w), atol=1e-12)


def test_target_is_of_a_drawn_component():
    """y = r + gamma (min_j Q'_j - alpha log pi_k), k ~ w: over many rows the shares are the weights'."""
    rows = 4000
    policy = GivenMixture(*two(rows=rows))
    m = minibatch_of(
        torch.zeros(rows, 1),
        reward=torch.ones(rows),
        target_q=lambda x: torch.stack([x[:, 1], 9 + x[:, 1]]),
        policy=policy,
    )
    y = make("pmoe").target(m).detach()
    high = (y > 1).double()
    np.testing.assert_allclose(y[high.bool()], 1 + 0.99 * math.tanh(1.0), atol=1e-3)
    assert float(high.mean()) == pytest.approx(0.3, abs=0.03)
    m = minibatch_of([[0.0]], target_q=lambda x: f64([[0.0], [0.0]]), policy=GivenMixture(*two((1.0, 1e-9))), alpha=0.5)
    found = float(make("pmoe").target(m))
    assert 0.99 * -0.5 * 12 < found < 0.99 * -0.5 * 7  # the entropy of one narrow component


@pytest.mark.parametrize("log_std", ["state", "free"])
def test_one_component_is_sac_bit_for_bit(log_std):
    small = {"policy.hidden": [16], "critic.hidden": [16], "policy.log_std": log_std}
    one, other = learner_of(make("pmoe", components=1, **small)), learner_of(make("sac", **small))
    for index in range(8):
        for learner in (one, other):
            learner.update(transitions(learner.layout, index), watch=True)
    for name, flat in other.flats.items():
        assert torch.equal(one.flats[name].values, flat.values), name
    assert one.state == other.state
    assert one.stats == other.stats


def test_the_temperature_follows_the_best_component():
    learner = learner_of(make("pmoe", **{"policy.hidden": [16], "critic.hidden": [16]}))
    before = learner.state["temperature"]["x"]
    learner.update(transitions(learner.layout), watch=True)
    assert learner.state["temperature"]["steps"] == 1
    assert learner.state["temperature"]["x"] < before
    assert learner.policy.head.weight.shape[0] == 4 + 4 * 2 * 2  # weights, means, deviations


def test_a_mixtures_own_draw_has_the_mixtures_density():
    torch.manual_seed(0)
    logits, mean, log_std = torch.randn(50, 3).double(), torch.randn(50, 3, 2).double(), torch.randn(50, 3, 2).double()
    for kind in (Gaussian, SquashedGaussian):
        found = Mixture(logits, kind(mean, 0.3 * log_std - 1))
        noise = found.noise(torch.Generator().manual_seed(0))
        action, logp = found.draw_with_log_prob(noise)
        torch.testing.assert_close(action, found.draw(noise))
        torch.testing.assert_close(logp, found.log_prob(action))
    learner = learner_of(make("sac", **{"policy.components": 3, "policy.hidden": [8]}))
    learner.update(transitions(learner.layout))
    assert learner.finite() is None
