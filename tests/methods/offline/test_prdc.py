"""Card: offline_imitation.md, prdc."""

import numpy as np
import pytest
import torch

from upslope import UsageError, diff, make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def actor(log, action, q=1.0, **settings):
    """The actor's loss and its gradient to the policy's actions [B, A] at the observations 0, 1 ... of a minibatch."""
    action = tensor(action).requires_grad_()
    value = tensor([[q] * len(action)])
    m = minibatch_of(
        [[0.0] * action.shape[1]] * len(action),
        q=lambda x: value + 0.0 * x[:, -1],
        members=1,
        policy=GivenPolicy(action, tensor([0.0] * len(action))),
    )
    recipe = make("prdc", **settings)
    m.networks.index = recipe.behavior.index(tensor([[s] for s, _ in log]), tensor([a for _, a in log]))
    loss = recipe.behavior(m, recipe.actor(m))
    return float(loss.detach()) + 2.5, torch.autograd.grad(loss, action)[0].numpy()  # lambda |Q| is 2.5


CARD = [(0.0, [0.9]), (0.1, [-0.4]), (1.0, [0.3])]


@pytest.mark.parametrize(("beta", "nearest", "loss"), [(0.1, -0.4, 0.01), (2.0, -0.4, 0.01), (100.0, 0.9, 1.44)])
def test_card_numbers_in_value_and_gradient(beta, nearest, loss):
    found, gradient = actor(CARD, [[-0.3]], beta=beta)
    assert found == pytest.approx(loss)
    np.testing.assert_allclose(gradient, [[2 * (-0.3 - nearest)]])


def test_the_search_is_exact():
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=50) * 2, rng.uniform(-1, 1, (50, 2))
    policy = rng.uniform(-1, 1, (6, 2))
    log = list(zip(states.tolist(), actions.tolist(), strict=True))
    found, gradient = actor(log, policy.tolist())
    apart = (2.0 * (np.arange(6.0)[:, None] - states)) ** 2 + ((policy[:, None] - actions) ** 2).sum(-1)
    nearest = actions[apart.argmin(1)]
    assert found == pytest.approx(((policy - nearest) ** 2).mean())
    np.testing.assert_allclose(gradient, 2 * (policy - nearest) / 12)


def test_a_large_beta_is_td3_bc():
    one, other = learner_of(make("prdc", beta=1e4)), learner_of(make("td3_bc"))
    rows = transitions(one.layout, rows=64)
    one.index_log(rows)
    for first in (0, 16, 32, 48):
        one.update(rows[first : first + 16])
        other.update(rows[first : first + 16])
    for name, flat in one.flats.items():
        assert torch.equal(flat.values, other.flats[name].values)


def test_beta_zero_is_the_nearest_action_anywhere():
    found, _ = actor(CARD, [[0.35]], beta=0.0)
    assert found == pytest.approx(0.05**2)


def test_the_index_is_of_what_the_networks_see():
    learner = learner_of(make("prdc"))
    width = learner.layout.width
    learner.scale = (torch.full((width,), 0.5), torch.full((width,), 3.0))
    rows = transitions(learner.layout, rows=5)
    learner.index_log(rows)
    tree, actions = learner.networks.index
    seen = 0.5 + 3.0 * rows
    np.testing.assert_allclose(tree.data[:, :4], 2.0 * seen[:, :4], rtol=1e-6)
    torch.testing.assert_close(actions, seen[:, 4:6])


def test_what_differs_from_td3_bc():
    assert diff("prdc", "td3_bc").splitlines()[0] == "behavior"
    assert make("prdc").replace(behavior=make("td3_bc").behavior).parts() == make("td3_bc").parts()
    with pytest.raises(UsageError, match=r"beta is -1"):
        make("prdc", beta=-1.0)
