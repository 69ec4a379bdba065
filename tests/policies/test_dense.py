"""Gradients that plain networks make themselves are autograd's."""

from dataclasses import replace

import pytest
import torch

from upslope.control.learning import StepLearner
from upslope.parts.network import MLP
from upslope.parts.steps import Optimizer
from upslope.policies.control import ControlPolicy
from upslope.policies.dense import dense
from upslope.tasks.opening import open_environments


def policy_of(task="CartPole-v1", **settings):
    torch.manual_seed(0)
    with_spaces = open_environments(task, 1, 0)
    return ControlPolicy(with_spaces.observations, with_spaces.actions, replace(MLP(policy_gain=1.0), **settings))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("shape", [(7, 4), (3, 5, 4)])
def test_outputs_and_gradient_are_autograds(activation, shape):
    policy = policy_of(activation=activation, hidden=(16, 8, 5))
    network = dense(policy.body, policy.head)
    seen, pulled = torch.randn(*shape), torch.randn(*shape[:-1], 2)
    leaf = network.outputs(seen)
    expected = policy.head(policy.features(seen))
    torch.testing.assert_close(leaf.detach(), expected.detach(), rtol=1e-6, atol=1e-6)
    into = [torch.full_like(parameter, 9.0) for parameter in network.parameters]
    network.pull(pulled, into)
    for found, wanted in zip(into, torch.autograd.grad(expected, network.parameters, pulled), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"layer_norm": True}, {"activation": "silu"}])
def test_more_than_layers_is_left_to_autograd(settings):
    policy = policy_of(**settings)
    assert dense(policy.body, policy.head) is None
    assert dense(None, policy.head) is None


@pytest.mark.parametrize("direct", [False, True])
def test_a_learner_steps_as_with_autograd(direct):
    """Three steps, with a parameter beside the network's, and where asked with a second way to the same parameters."""
    moved = []
    seen, wanted = torch.randn(32, 3), torch.randn(32, 1)
    for plain in (False, True):
        policy = policy_of("Pendulum-v1")
        learner = StepLearner(list(policy.parameters()), 1e-2, Optimizer(grad_clip=0.5), 10)
        network = dense(policy.body, policy.head)
        if plain:
            learner.leave_to(network)

        def loss(policy=policy, network=network, plain=plain):
            out = network.outputs(seen) if plain else policy.head(policy.features(seen))
            total = -policy.distribution_of(out).log_prob(wanted).mean()
            if direct:
                total = total + policy.features(seen).square().mean()
            return total, {}

        norms = [learner.learn(loss).grad_norm for _ in range(3)]
        moved.append((norms, torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])))
    assert moved[0][0] == pytest.approx(moved[1][0], rel=1e-5)
    assert moved[0][0][0] > 0.5  # it was clipped
    torch.testing.assert_close(moved[0][1], moved[1][1], rtol=0, atol=1e-5)
