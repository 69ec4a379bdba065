"""Card: offline_imitation.md, sac-n-edac. ES of given gradients: tests/actor_critic/test_losses.py."""

import numpy as np
import pytest
import torch

from upslope import diff, make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import minibatch_of


def test_es_of_critics_with_known_gradients():
    """Q_1 = a_1, Q_2 = 0.6 a_1 + 0.8 a_2: unit gradients (1, 0), (0.6, 0.8)."""
    weights = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    m = minibatch_of(
        [[0.3, 0.4], [0.1, -0.2]], q=lambda x: torch.einsum("eba,ea->eb", x[..., 1:], weights), own_inputs=True
    )
    assert float(make("edac").penalty(m)) == pytest.approx(1.2)
    assert float(make("edac", eta=5.0).penalty(m)) == pytest.approx(6.0)


def test_the_penalty_has_a_gradient_of_gradients():
    """Q_j = w_j . a^2: the gradient to w, against central differences."""
    actions = np.array([[0.3, 0.4], [0.1, -0.2]])

    def es(w):
        g = 2 * w[:, None, :] * actions
        u = g / (np.linalg.norm(g, axis=-1, keepdims=True) + 1e-10)
        return 2 * (u[0] * u[1]).sum(-1).mean()

    at = np.array([[1.0, 0.5], [0.4, -0.8]])
    weights = torch.tensor(at, requires_grad=True)
    m = minibatch_of(actions, q=lambda x: torch.einsum("eba,ea->eb", x[..., 1:] ** 2, weights), own_inputs=True)
    loss = make("edac").penalty(m)
    assert float(loss) == pytest.approx(es(at))
    (found,) = torch.autograd.grad(loss, weights)
    numeric = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-6
        numeric[index] = (es(at + step) - es(at - step)) / 2e-6
    np.testing.assert_allclose(found, numeric, atol=1e-8)


def test_it_is_sac_n_with_one_penalty():
    assert diff("edac", "sac_n").splitlines() == ["penalty", "  edac: Diversity(eta=1.0)", "  sac_n: None"]


def test_eta_zero_is_sac_n():
    one, other = learner_of(make("edac", eta=0.0)), learner_of(make("sac_n"))
    for index in range(3):
        one.update(transitions(one.layout, index))
        other.update(transitions(other.layout, index))
    for name in ("policy", "critic"):
        torch.testing.assert_close(one.flats[name].values, other.flats[name].values, rtol=1e-5, atol=1e-7)


def test_training_makes_the_critics_gradients_differ():
    def alignment(eta):
        learner = learner_of(make("edac", eta=eta, members=4, critic_lr=3e-3))
        rows = transitions(learner.layout, rows=32)
        for _ in range(60):
            learner.update(rows)
        m = learner.minibatch(rows)
        m.own_inputs = True
        return float(make("edac").penalty(m))

    assert alignment(20.0) < alignment(0.0) - 0.3
