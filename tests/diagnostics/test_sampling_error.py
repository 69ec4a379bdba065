"""Sampling error: of a table by hand, of a network against the table, and of samples against what theory expects."""

import numpy as np
import pytest
import torch

from upslope import UsageError
from upslope.diagnostics.sampling_error import sampling_error, tabular_sampling_error
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy
from upslope.tasks.spaces import ActionSpec, Leaf, ObservationSpec


def test_by_hand():
    """Two states: a, a, b in the first, where pi = (1/2, 1/2); b in the second, where pi = (1/4, 3/4)."""
    state, action = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    logp = torch.tensor([0.5, 0.5, 0.5, 0.75]).log()
    kl_first = 2 / 3 * np.log((2 / 3) / 0.5) + 1 / 3 * np.log((1 / 3) / 0.5)
    kl_second = np.log(1 / 0.75)
    assert tabular_sampling_error(state, action, logp) == pytest.approx(0.75 * kl_first + 0.25 * kl_second)
    balanced = tabular_sampling_error(torch.tensor([3, 3]), torch.tensor([0, 1]), torch.tensor([0.5, 0.5]).log())
    assert balanced == pytest.approx(0.0, abs=1e-7)


def test_actions_and_states_may_have_several_numbers():
    state, action = torch.tensor([[0.5, 1], [0.5, 1], [2, 1]]), torch.tensor([[0, 1], [0, 1], [1, 1]])
    assert tabular_sampling_error(state, action, torch.zeros(3)) == pytest.approx(0.0)


def network(actions, **settings):
    torch.manual_seed(0)
    return ControlPolicy(ObservationSpec((Leaf("x", (3,)),)), actions, MLP(hidden=(16,), policy_gain=1.0, **settings))


def test_of_a_network_that_is_a_table():
    """On one-hot states, whose features are independent, the refitted head is any table: both errors are the same."""
    policy = network(ActionSpec("discrete", (), (4,)))
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(0, 3, (200,), generator=generator)
    observation = torch.nn.functional.one_hot(state, 3).float()
    with torch.no_grad():
        found = policy.distribution(observation)
        action = found.draw(found.noise(generator))
        logp = found.log_prob(action)
    exact = tabular_sampling_error(state, action, logp)
    assert exact > 0.005
    assert sampling_error(policy, observation, action) == pytest.approx(exact, abs=1e-5)


def test_of_gaussian_actions_is_what_least_squares_says():
    policy = network(ActionSpec("continuous", (2,), low=(-1.0,) * 2, high=(1.0,) * 2))
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(300, 3, generator=generator)
    with torch.no_grad():
        found = policy.distribution(observation)
        action = found.draw(found.noise(generator))
        x = torch.cat([policy.features(observation), torch.ones(300, 1)], 1).double().numpy()
    y = action.double().numpy()
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    best = -0.5 * (1 + np.log(2 * np.pi * (residual**2).mean(0))).sum()
    expected = best - float(found.log_prob(action).detach().double().mean())
    assert sampling_error(policy, observation, action) == pytest.approx(expected, abs=1e-4)
    before = policy.head.weight.clone()
    assert torch.equal(policy.head.weight, before)


def test_of_its_own_samples_it_is_half_the_parameters_over_the_samples():
    """Wilks: 2 M times the error is about chi-squared with as many degrees of freedom as there are free probabilities."""
    probability, errors = torch.tensor([0.2, 0.3, 0.5]), []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        action = torch.multinomial(probability, 400, replacement=True, generator=generator)
        errors.append(tabular_sampling_error(torch.zeros(400), action, probability[action].log()))
    assert np.mean(errors) == pytest.approx(2 / (2 * 400), rel=0.2)


def test_no_data():
    with pytest.raises(UsageError, match="as many of each"):
        tabular_sampling_error(torch.zeros(0), torch.zeros(0), torch.zeros(0))
    with pytest.raises(UsageError, match="at least one"):
        sampling_error(network(ActionSpec("discrete", (), (4,))), torch.zeros(0, 3), torch.zeros(0))
