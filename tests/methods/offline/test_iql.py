"""Card: offline_imitation.md, iql. Expectiles: tests/actor_critic/test_losses.py."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.actor_critic.actors import Imitation
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


U = [-1.0, 0.0, 0.5, 2.0]


def batch(v=None, density=None):
    """Q'(s, a) = (1, 1 + j) and V(s) such that u is U."""
    value = tensor([1.0 - u for u in U]) if v is None else v
    policy = GivenPolicy(tensor([[0.0]] * 4), tensor([0.0] * 4), density)
    return minibatch_of(
        [[0.0]] * 4,
        target_q=lambda x: torch.stack([x[:, 1] + 1.0, x[:, 1] + 3.0]),
        value=lambda x: value[None],
        policy=policy,
    )


def test_card_defaults():
    iql = make("iql")
    assert (iql.value.tau, iql.weight.beta, iql.weight.largest, iql.targets.rate) == (0.7, 3.0, 100.0, 0.005)
    assert (iql.policy.log_std, iql.policy.log_std_low, iql.policy.log_std_high) == ("free", -5.0, 2.0)
    assert (iql.update.first, iql.update.actor_schedule, iql.regression.across) == ("actor", "cosine", "mean")


def test_value_in_value_and_gradient():
    v = tensor([1.0 - u for u in U]).requires_grad_()
    loss = make("iql").value(batch(v))
    weight = np.array([0.3, 0.7, 0.7, 0.7])
    assert float(loss) == pytest.approx((weight * np.array(U) ** 2).mean())
    np.testing.assert_allclose(torch.autograd.grad(loss, v)[0], -2 * weight * np.array(U) / 4, atol=1e-12)


def test_half_is_the_mean():
    v = tensor([0.2, 0.1, 0.5, 2.0])
    loss = make("iql", tau=0.5).value(batch(v))
    assert float(loss) == pytest.approx(0.5 * float((1.0 - v).square().mean()))


def test_weights_and_actor():
    recipe = make("iql")
    density = tensor([-0.5, 1.0, 0.2, -2.0]).requires_grad_()
    m = batch(density=density)
    weight = recipe.weight(recipe.advantage(m))
    np.testing.assert_allclose(weight, [0.049787, 1.0, 4.481689, 100.0], atol=5e-7)
    loss = recipe.actor(m, weight)
    assert float(loss) == pytest.approx(-float((weight * density).mean()))
    np.testing.assert_allclose(torch.autograd.grad(loss, density)[0], -weight / 4)
    assert torch.equal(make("iql", beta=0.0).weight(recipe.advantage(m)), torch.ones(4, dtype=torch.float64))


def test_the_deterministic_actor_of_the_card():
    """mean of w sum over A of (mu - a)^2, in value and gradient."""
    recipe = make("iql", actor=Imitation(reduce_actions="sum"), policy="bc").check()
    mode, logged = tensor([[0.5, 0.0], [0.2, -0.1]]).requires_grad_(), tensor([[0.0, 0.0], [0.2, 0.3]])
    m = minibatch_of(logged, policy=GivenPolicy(mode, tensor([0.0, 0.0])))
    weight = tensor([4.481689, 0.049787])
    loss = recipe.actor(m, weight)
    apart = (mode - logged).detach()
    assert float(loss.detach()) == pytest.approx(float((weight * apart.square().sum(-1)).mean()))
    np.testing.assert_allclose(torch.autograd.grad(loss, mode)[0], weight[:, None] * apart, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "expected"),
    [("iql", ["value", "policy", "critic"]), ("awac", ["critic", "policy"]), ("sac_n", ["policy", "critic"])],
)
def test_what_is_updated_in_which_order(method, expected):
    order, learner = [], learner_of(make(method))
    for name, flat in learner.flats.items():
        step = flat.step
        flat.step = lambda *words, name=name, step=step, **settings: (order.append(name), step(*words, **settings))[1]
    learner.update(transitions(learner.layout))
    assert order == expected


def test_target_is_v_of_the_successor():
    m = minibatch_of([[0.0]] * 2, reward=[1.0, 1.0], terminated=[0.0, 1.0], value=lambda x: (10.0 * x).T)
    np.testing.assert_allclose(make("iql").target(m), [1 + 0.99 * 5.0, 1.0])


def test_beta_zero_is_cloning_by_likelihood():
    iql = make("iql", beta=0.0, actor_schedule="constant")
    bc = make("bc", actor="iql", policy=iql.policy)
    one, other = learner_of(iql), learner_of(bc)
    torch.testing.assert_close(one.flats["policy"].values, other.flats["policy"].values)
    for index in range(3):
        one.update(transitions(one.layout, index))
        other.update(transitions(other.layout, index))
    torch.testing.assert_close(one.flats["policy"].values, other.flats["policy"].values)


def test_the_actors_rate_falls_to_nothing():
    update = make("iql").update
    rates = [update.factor("actor", share) for share in np.arange(11) / 10]
    np.testing.assert_allclose(rates, 0.5 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-12)
    assert {update.factor("critic", share) for share in np.arange(11) / 10} == {1.0}


def test_rewards_by_the_range_of_returns():
    part = make("iql").reward
    assert part.factor(torch.tensor([-300.0, 100.0, 200.0])) == 2.0
    assert part.factor(torch.tensor([5.0])) == 1.0


def test_a_recipe_without_v_is_refused():
    with pytest.raises(UsageError, match="has no part for value, which one of its parts reads"):
        make("iql", value=None)
