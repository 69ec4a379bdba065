"""Card: control_theory.md, td3."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def batch(action, **settings):
    policy = GivenPolicy(tensor(action), torch.zeros(len(action), dtype=torch.float64))
    return minibatch_of(np.zeros_like(action), policy=policy, target_policy=policy, **settings)


def test_card_defaults_and_target():
    td3 = make("td3")
    assert (td3.target.noise, td3.target.clip, td3.target.discount, td3.exploration.std) == (0.2, 0.5, 0.99, 0.1)
    assert (td3.update.actor_every, td3.targets.every, td3.targets.rate) == (2, 2, 0.005)
    m = batch([[0.0]], reward=[1.0], target_q=lambda x: tensor([[2.0], [3.0]]))
    np.testing.assert_allclose(td3.target(m), [2.98])


def test_noise_is_cut_and_so_is_the_action(monkeypatch):
    monkeypatch.setattr(
        torch, "randn", lambda shape, **_: torch.full(shape, 3.5, dtype=torch.float64)
    )  # 0.2 * 3.5 = 0.7
    m = batch([[0.9], [0.2], [-0.9]])
    np.testing.assert_allclose(make("td3").target.action(m)[:, 0], [1.0, 0.7, -0.4])


def test_noise_has_its_deviation():
    m = batch([[0.0]] * 20_000)
    noise = make("td3", clip=10.0).target.action(m)
    assert float(noise.std()) == pytest.approx(0.2, rel=0.02)
    assert make("td3", noise=0.0).target.action(m) is m.networks.target_policy.action


def test_actor_in_value_and_gradient():
    action = tensor([[0.3], [-0.5]]).requires_grad_()
    m = minibatch_of(
        [[0.0], [0.0]],
        q=lambda x: torch.stack([x[:, 1] ** 2, -1e3 * x[:, 1]]),
        policy=GivenPolicy(action, tensor([0.0, 0.0])),
    )
    loss = make("td3").actor(m)
    assert float(loss) == pytest.approx(-(0.09 + 0.25) / 2)
    np.testing.assert_allclose(torch.autograd.grad(loss, action)[0][:, 0], [-0.3, 0.5])


def test_actor_and_targets_every_second_update():
    learner = learner_of(make("td3"))
    seen = []
    for index in range(4):
        before = {name: flat.values.clone() for name, flat in learner.flats.items()}
        targets = {name: target.values.clone() for name, target in learner.targets.items()}
        learner.update(transitions(learner.layout, index))
        moved = {name for name, flat in learner.flats.items() if not torch.equal(flat.values, before[name])}
        moved |= {f"target {name}" for name, t in learner.targets.items() if not torch.equal(t.values, targets[name])}
        seen.append(moved)
    both = {"critic", "policy", "target critic", "target policy"}
    assert seen == [{"critic"}, both, {"critic"}, both]


def test_rate_one_makes_the_targets_the_networks():
    learner = learner_of(make("td3", rate=1.0))
    for index in range(2):
        learner.update(transitions(learner.layout, index))
    for name, target in learner.targets.items():
        torch.testing.assert_close(target.values, learner.flats[name].values, rtol=0, atol=1e-6)


def test_without_entropy_sac_of_a_deterministic_policy_is_td3_without_delay_and_smoothing():
    plain = make("td3", noise=0.0, actor_every=1, every=1)
    sac = make("sac").replace(policy=plain.policy, temperature=None, actor=plain.actor, regression=plain.regression)
    one, other = learner_of(plain), learner_of(sac.check())
    # td3's target asks its target policy, sac's the policy itself: alike at rate 1 and before the first step
    for learner in (one, other):
        learner.update(transitions(learner.layout))
    for name in ("policy", "critic"):
        assert torch.equal(one.flats[name].values, other.flats[name].values)


def test_one_critic_without_delay_and_noise_is_ddpg():
    """One update of the critic and of the actor, by torch's own Adam on the formulas of DDPG."""
    recipe = make(
        "td3", noise=0.0, actor_every=1, every=1, **{"critic.members": 1, "critic.hidden": [6], "policy.hidden": [5]}
    )
    learner, other = learner_of(recipe), learner_of(recipe)
    rows = transitions(learner.layout)
    learner.update(rows)
    m = other.minibatch(rows)
    critic, policy = (list(network.parameters()) for network in (other.networks.critic, other.policy))
    adam = torch.optim.Adam(critic, 3e-4)
    with torch.no_grad():
        following = torch.cat([m.next_observation, other.networks.target_policy.mode(m.next_observation)], -1)
        y = m.reward + 0.99 * (1 - m.terminated) * other.networks.target_critic(following)[0]
    (other.networks.critic(m.state_action)[0] - y).square().mean().backward()
    adam.step()
    adam = torch.optim.Adam(policy, 3e-4)
    for parameter in policy:
        parameter.grad = None
    played = torch.cat([m.observation, other.networks.policy.mode(m.observation)], -1)
    (-other.networks.critic(played)[0].mean()).backward()
    adam.step()
    for name in ("critic", "policy"):
        torch.testing.assert_close(learner.flats[name].values, other.flats[name].values)
        start = learner_of(recipe).targets[name].values
        torch.testing.assert_close(learner.targets[name].values, 0.995 * start + 0.005 * other.flats[name].values)


def test_exploration_is_cut():
    noise = make("td3", std=1.0).exploration
    action = noise(torch.zeros(1000, 2), torch.Generator().manual_seed(0))
    assert action.abs().max() == 1.0
    assert float(make("td3").exploration(torch.zeros(50_000, 1), torch.Generator()).std()) == pytest.approx(
        0.1, rel=0.02
    )
