"""Card: offline_imitation.md, awr. Whole runs: tests/actor_critic/test_log_hooks.py."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def columns(reward, value, following, ended=None, **settings):
    last = torch.zeros(len(reward), dtype=torch.bool) if ended is None else torch.tensor(ended)
    last[-1] = True
    made = make("awr", **settings).relabel(tensor(reward), last, tensor(value), tensor(following))
    return made["lambda_return"].numpy(), made["advantage"].numpy()


def test_card_returns():
    returns, advantage = columns([1.0] * 3, [0.5] * 3, [0.5, 0.5, 0.0], **{"relabel.normalize": False})
    np.testing.assert_allclose(returns, [2.873068, 1.96525, 1.0], atol=5e-7)
    np.testing.assert_allclose(advantage, returns - 0.5)


def test_card_weights():
    """With V = 0 and lambda = 0 the advantages are the rewards."""
    _, advantage = columns([1.0, 2.0, 3.0, 6.0], [0.0] * 4, [0.0] * 4, lam=0.0)
    np.testing.assert_allclose(advantage, [-1.069039, -0.534520, 0.0, 1.603559], atol=1e-5)
    np.testing.assert_allclose(make("awr").weight(tensor(advantage)), [0.343338, 0.585951, 1.0, 4.970691], atol=2e-5)
    np.testing.assert_allclose(make("awr").weight(tensor([5.0])), [20.0])


def recursion(reward, value, following, ended, lam, discount=0.99):
    """The definition, from the last step back."""
    returns = np.zeros(len(reward))
    for t in range(len(reward) - 1, -1, -1):
        onward = following[t] if ended[t] else (1 - lam) * following[t] + lam * returns[t + 1]
        returns[t] = reward[t] + discount * onward
    return returns


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_returns_against_the_definition_over_several_episodes(lam):
    rng = np.random.default_rng(3)
    reward, value = rng.normal(size=40), rng.normal(size=40)
    ended = rng.random(40) < 0.2
    ended[-1] = True
    terminated = ended & (rng.random(40) < 0.5)
    following = np.where(terminated, 0.0, np.where(ended, rng.normal(size=40), np.append(value[1:], 0.0)))
    returns, advantage = columns(reward, value, following, ended, lam=lam)
    expected = recursion(reward, value, following, ended, lam)
    np.testing.assert_allclose(returns, expected, rtol=1e-10, atol=1e-12)
    raw = expected - value
    np.testing.assert_allclose(advantage, (raw - raw.mean()) / (raw.std() + 1e-5), rtol=1e-9, atol=1e-12)


def test_lambda_one_is_monte_carlo():
    returns, _ = columns([1.0, 0.0, 2.0], [7.0, -3.0, 4.0], [-3.0, 4.0, 0.0], lam=1.0)
    np.testing.assert_allclose(returns, [1 + 0.99**2 * 2, 0.99 * 2, 2.0])


def test_losses_in_value_and_gradient():
    recipe = make("awr")
    advantage, returns = [0.5, -1.0, 9.0], [1.0, 2.0, -3.0]
    v, density = tensor([0.2, 0.4, 0.1]).requires_grad_(), tensor([-0.3, 0.1, -2.0]).requires_grad_()
    zero = tensor([[0.0]] * 3)
    m = minibatch_of(
        [[0.1], [0.2], [0.3]],
        value=lambda x: v[None],
        policy=GivenPolicy(zero, zero[:, 0], density),
        advantage=advantage,
        lambda_return=returns,
    )
    loss = recipe.value(m)
    assert float(loss.detach()) == pytest.approx(((0.2 - 1) ** 2 + (0.4 - 2) ** 2 + 3.1**2) / 3)
    torch.testing.assert_close(torch.autograd.grad(loss, v)[0], 2 * (v.detach() - tensor(returns)) / 3)

    w = np.minimum(np.exp(advantage), 20.0)
    weight = recipe.weight(recipe.advantage(m))
    np.testing.assert_allclose(weight, w)
    actor = recipe.actor(m, weight)
    assert float(actor.detach()) == pytest.approx(-(w * [-0.3, 0.1, -2.0]).mean())
    np.testing.assert_allclose(torch.autograd.grad(actor, density)[0], -w / 3)


def test_a_high_temperature_is_cloning_by_likelihood():
    awr = make("awr", beta=0.0)
    bc = make("bc", actor="iql", policy=awr.policy)
    one, other = learner_of(awr), learner_of(bc, extras=tuple(sorted(awr.needs)))  # the same rows for both
    for index in range(3):
        one.update(transitions(one.layout, index))
        other.update(transitions(other.layout, index))
    assert torch.equal(one.flats["policy"].values, other.flats["policy"].values)


def test_the_deviation_is_a_fifth_and_stays():
    learner = learner_of(make("awr"))
    for index in range(20):
        learner.update(transitions(learner.layout, index))
    observation = torch.zeros(1, 4)
    logp = learner.networks.policy.logp(observation, learner.networks.policy.mode(observation))
    assert float(logp.detach()) == pytest.approx(-2 * (np.log(0.2) + 0.5 * np.log(2 * np.pi)), rel=1e-4)
    assert set(learner.flats) == {"policy", "value"}
    assert not learner.targets
