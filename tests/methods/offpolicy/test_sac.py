"""Cards: control_theory.md, sac and sac-auto."""

import math

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.policies import Head
from upslope.actor_critic.testing import GivenPolicy, minibatch_of
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy
from upslope.policies.distributions import SquashedGaussian
from upslope.tasks.spaces import ActionSpec, Leaf, ObservationSpec


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_card_defaults():
    sac = make("sac")
    assert (sac.data.batch_size, sac.data.capacity, sac.target.discount, sac.targets.rate) == (
        256,
        1_000_000,
        0.99,
        0.005,
    )
    assert (sac.update.actor_lr, sac.update.critic_lr, sac.temperature.lr) == (3e-4, 3e-4, 3e-4)
    assert sac.policy.hidden == sac.critic.hidden == (256, 256)
    assert sac.policy.activation == sac.critic.activation == "relu"
    assert (sac.update.per_step, sac.update.actor_every, sac.critic.members) == (1, 1, 2)


def test_the_log_prob_of_the_card():
    found = SquashedGaussian(tensor([[0.0]]), tensor([[0.0]]))
    action, logp = found.draw_with_log_prob(tensor([[0.5]]))
    assert float(action) == pytest.approx(math.tanh(0.5))
    assert float(logp) == pytest.approx(-0.803710, abs=5e-7)
    far = SquashedGaussian(tensor([[20.0]]), tensor([[0.0]])).draw_with_log_prob(tensor([[0.0]]))[1]
    assert float(far) == pytest.approx(-0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - 20.0), abs=1e-12)


def test_target():
    """y = r + gamma (1 - d) (min_j Q'_j(s', a') - alpha log pi(a'|s'))."""
    policy = GivenPolicy(tensor([[0.1], [0.2]]), tensor([-0.5, 2.0]))
    m = minibatch_of(
        [[0.0], [0.0]],
        reward=[1.0, -1.0],
        terminated=[0.0, 1.0],
        target_q=lambda x: torch.stack([3.0 + x[:, 1], 2.0 + 10 * x[:, 1]]),
        policy=policy,
        alpha=0.2,
    )
    # Q'(s', 0.1) = (3.1, 3.0)
    np.testing.assert_allclose(make("sac").target(m), [1 + 0.99 * (3.0 + 0.2 * 0.5), -1.0])
    np.testing.assert_allclose(make("sac", **{"target.entropy": False}).target(m), [1 + 0.99 * 3.0, -1.0])


def test_actor_in_value_and_gradient():
    """mean of alpha log pi - min_j Q_j, with gradient through the action and through the log-prob."""
    action, logp = tensor([[0.3], [-0.4]]).requires_grad_(), tensor([-1.0, 0.5]).requires_grad_()
    m = minibatch_of(
        [[0.0], [0.0]],
        q=lambda x: torch.stack([x[:, 1] ** 2, 1.0 - x[:, 1]]),
        policy=GivenPolicy(action, logp),
        alpha=0.2,
    )
    loss = make("sac").actor(m)
    q = np.array([[0.09, 0.16], [0.7, 1.4]]).min(0)
    assert float(loss) == pytest.approx(np.mean(0.2 * np.array([-1.0, 0.5]) - q))
    by_action, by_logp = torch.autograd.grad(loss, [action, logp])
    np.testing.assert_allclose(by_action[:, 0], [-0.3, 0.4])  # -dQ_1/da / 2 = -a
    np.testing.assert_allclose(by_logp, [0.1, 0.1])


def test_mean_in_place_of_min():
    m = minibatch_of([[0.0]], q=lambda x: tensor([[1.0], [4.0]]), policy=GivenPolicy(tensor([[0.0]]), tensor([0.0])))
    assert float(make("sac").actor(m)) == -1.0
    assert float(make("sac", critics="mean").actor(m)) == -2.5
    assert float(make("sac", critics="first").actor(m)) == -1.0


def test_the_temperature_follows_the_current_policy_and_not_the_stored_actions():
    learner = learner_of(make("sac"))
    rows = transitions(learner.layout)
    m = learner.minibatch(rows)
    generator = learner.generator.get_state()
    learner.update(rows, watch=True)
    learner.generator.set_state(generator)
    assert learner.stats["alpha"] != 1.0
    assert learner.state["temperature"]["steps"] == 1
    assert m.sample()[1].shape == (len(rows),)
    # the entropy that was seen is far above -A: alpha falls
    assert learner.stats["entropy"] > -2
    assert learner.stats["alpha"] < 1.0


def test_one_update_is_its_formula():
    """Critics by the target of the weights before, the actor by the critics after; everything by NumPy's or torch's own Adam."""
    torch.manual_seed(0)
    recipe = make("sac", **{"policy.hidden": [5], "critic.hidden": [6]})
    learner, other = learner_of(recipe), learner_of(recipe)
    rows = transitions(learner.layout)
    learner.update(rows)

    m = other.minibatch(rows)
    critic = list(other.networks.critic.parameters())
    adam = torch.optim.Adam(critic, 3e-4)
    with torch.no_grad():
        next_action, next_logp = m.networks.policy.sample(m.next_observation, other.generator)
        q = other.networks.target_critic(torch.cat([m.next_observation, next_action], -1)).min(0).values
        y = m.reward + 0.99 * (1 - m.terminated) * (q - next_logp)  # alpha starts at 1
    loss = 0.5 * (other.networks.critic(torch.cat([m.observation, m.action], -1)) - y).square().mean(1).sum()
    loss.backward()
    adam.step()
    policy = list(other.policy.parameters())
    adam = torch.optim.Adam(policy, 3e-4)
    action, logp = m.networks.policy.sample(m.observation, other.generator)
    q = other.networks.critic(torch.cat([m.observation, action], -1)).min(0).values
    for parameter in policy:
        parameter.grad = None
    (logp - q).mean().backward()
    adam.step()
    torch.testing.assert_close(learner.flats["critic"].values, other.flats["critic"].values)
    torch.testing.assert_close(learner.flats["policy"].values, other.flats["policy"].values)
    start = learner_of(recipe).targets["critic"].values
    expected = 0.995 * start + 0.005 * other.flats["critic"].values
    torch.testing.assert_close(learner.targets["critic"].values, expected)


def test_log_probs_do_not_know_the_environments_scale():
    networks = []
    for bound in (1.0, 7.0):
        torch.manual_seed(0)
        actions = ActionSpec("continuous", (2,), low=(-bound,) * 2, high=(bound,) * 2)
        networks.append(ControlPolicy(ObservationSpec((Leaf("x", (3,)),)), actions, make("sac").policy))
    observation = torch.randn(4, 3)
    one, other = (Head(network).sample(observation, torch.Generator().manual_seed(0)) for network in networks)
    torch.testing.assert_close(one, other)


def test_cleanrls_deviation_stays_within_its_bounds():
    sac = make("sac@cleanrl")
    assert (sac.policy.log_std_low, sac.policy.log_std_high, sac.policy.log_std_bound) == (-5.0, 2.0, "tanh")
    learner = learner_of(sac)
    learner.flats["policy"].values.mul_(100)
    log_std = learner.networks.policy.distribution(torch.randn(50, 4)).log_std
    assert (log_std >= -5).all()
    assert (log_std <= 2).all()


@pytest.mark.parametrize("change", [{"policy": MLP(distribution="deterministic")}, {"policy": MLP(shared=True)}])
def test_a_policy_that_does_not_fit_is_refused(change):
    with pytest.raises(UsageError, match=r"deterministic policy|does not read policy.shared"):
        make("sac", **change)
