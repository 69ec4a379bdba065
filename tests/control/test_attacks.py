"""Attacks on what a policy sees: the budget is kept, they aim well, and where the policy is linear they attain the certificate."""

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats

from upslope.control.attacks import Gradient, Lesson, Random, attacks, play_attacked, preference, timed
from upslope.diagnostics.smoothing import certify
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy
from upslope.tasks.opening import open_environments

SIGMA = 0.5
SIGN = {"against": -1, "toward": 1, "away": -1}
ALONG = np.array([0.6, 0.8], dtype=np.float32)


class Once(gymnasium.Env):
    """One step: observes 0.7 ALONG, pays 1 for action 1."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0.7 * ALONG, {}

    def step(self, action):
        return 0.7 * ALONG, float(action), True, False, {}


def linear(environments):
    """Prefers action 1 where ALONG . observation is above 0: relu(x) - relu(-x) is x."""
    policy = ControlPolicy(environments.observations, environments.actions, MLP(hidden=(2,), activation="relu"))
    with torch.no_grad():
        layer = policy.body.layers[0]
        layer.weight.copy_(torch.from_numpy(np.stack([ALONG, -ALONG])))
        layer.bias.zero_()
        policy.head.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
        policy.head.bias.zero_()
    return policy


def test_the_gradient_attains_the_certificate_of_a_linear_policy():
    environments = open_environments(Once, 64, 0)
    policy, budget, count = linear(environments), 0.4, 6000

    def play(attack, seed):
        return play_attacked(policy, environments, count, sigma=SIGMA, attack=attack, budget=budget, seed=seed)

    clean = play(None, 1)
    assert clean.returns.mean() == pytest.approx(stats.norm.cdf(0.7 / SIGMA), abs=0.015)
    certified = certify(clean.returns, SIGMA, lowest=0, most=1).expected_return(budget)
    found = play(Gradient(policy, SIGMA, 1), 2)
    assert found.returns.mean() == pytest.approx(stats.norm.cdf((0.7 - budget) / SIGMA), abs=0.02)
    assert certified <= found.returns.mean() + 0.02
    assert found.spent == pytest.approx(budget, rel=1e-6)
    careless = play(Random(1), 3)
    assert careless.returns.mean() > found.returns.mean() + 0.1
    toward = play(Gradient(policy, SIGMA, 1, "toward"), 4)  # toward action 0: the same direction here
    assert toward.returns.mean() == pytest.approx(found.returns.mean(), abs=0.03)
    assert play(Gradient(policy, SIGMA, 1, "away"), 5).returns.mean() > clean.returns.mean() + 0.02
    lesson = Lesson(np.ones(2), 64)
    play_attacked(policy, environments, count, sigma=SIGMA, seed=6, lesson=lesson)
    learned = lesson.attack(np.tile(0.7 * ALONG, (4, 1)), 1)
    delta = learned(0.7 * ALONG[None], budget, np.ones(1))[0]
    assert np.linalg.norm(delta) == pytest.approx(budget)
    assert delta @ -ALONG > 0.95 * budget, "it has learned the policy's direction from returns and noise alone"
    assert play(learned, 7).returns.mean() == pytest.approx(found.returns.mean(), abs=0.03)


def test_what_exceeds_the_budget_is_cut():
    environments = open_environments("CartPole-v1", 8, 0, settings={"max_episode_steps": 20})
    policy = ControlPolicy(environments.observations, environments.actions, MLP(hidden=(8,)))

    def greedy(observation, budget, left):
        assert (left <= budget**2 + 1e-12).all()
        return np.full_like(observation, 3.0)

    found = play_attacked(policy, environments, 40, sigma=0.1, attack=greedy, budget=0.7)
    assert found.spent == pytest.approx(0.7)
    assert len(found.episodes) == 40
    assert {(e.copy, e.number) for e in found.episodes} == {(c, n) for c in range(8) for n in range(5)}
    for name, attack in attacks(policy, 0.1, 20, found.seen).items():
        spent = play_attacked(policy, environments, 16, sigma=0.1, attack=attack, budget=0.7).spent
        assert 0.1 < spent <= 0.7 * (1 + 1e-6), name


def test_an_attack_of_nothing_changes_nothing_and_episodes_repeat():
    environments = open_environments("CartPole-v1", 8, 0)
    torch.manual_seed(0)
    policy = ControlPolicy(environments.observations, environments.actions, MLP(hidden=(8,)))
    options = {"sigma": 0.2, "seed": 3}
    plain = play_attacked(policy, environments, 16, **options)
    again = play_attacked(policy, environments, 16, attack=Gradient(policy, 0.2, 1), budget=0.0, **options)
    assert sorted(plain.episodes) == sorted(again.episodes)
    assert sorted(plain.episodes) != sorted(play_attacked(policy, environments, 16, sigma=0.2, seed=4).episodes)


@pytest.mark.parametrize("what", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("aim", ["against", "toward", "away"])
def test_each_aim_is_raised(what, aim):
    environments = open_environments(what, 8, 0)
    torch.manual_seed(1)
    policy = ControlPolicy(environments.observations, environments.actions, MLP(hidden=(16,), policy_gain=1.0))
    attack = Gradient(policy, 0.1, 1, aim)
    observation = environments.reset()
    delta = attack(observation, 0.05, np.full(8, 1.0))
    np.testing.assert_allclose(np.linalg.norm(delta, axis=1), 0.05, rtol=1e-5)
    with torch.no_grad():
        chosen = policy.distribution(torch.from_numpy(observation)).mode()
        noise = torch.randn(4096, *observation.shape, generator=torch.Generator().manual_seed(0)) * 0.1
        before, after = (policy.distribution(torch.from_numpy(observation + d) + noise) for d in (0 * delta, delta))
        if what == "Pendulum-v1":
            gain = after.mode() - before.mode()
            gain = -(gain * chosen).sum(-1) if aim == "against" else SIGN[aim] * gain.sum(-1)
        else:
            action = (chosen if aim == "against" else torch.zeros_like(chosen)).expand(4096, 8)
            gain = (after.log_prob(action) - before.log_prob(action)) * SIGN[aim]
    assert (gain.mean(0) > 0).all()
    assert (attack(observation, 0.5, np.zeros(8)) == 0).all(), "nothing is left"
    picky = Gradient(policy, 0.1, 1, aim, threshold=float(np.median(preference(policy, observation))))
    struck = np.linalg.norm(picky(observation, 0.5, np.full(8, 0.25)), axis=1) > 0
    np.testing.assert_array_equal(struck, preference(policy, observation) > picky.threshold)
    assert 0 < struck.sum() < 8
    assert len(timed(policy, 0.1, 200, observation)) == 18


def test_preference_is_the_log_odds_of_the_likeliest_action():
    environments = open_environments(Once, 1, 0)
    policy = linear(environments)
    observation = np.array([[1.2, 1.6], [0.0, -0.5]], dtype=np.float32)
    np.testing.assert_allclose(preference(policy, observation), [2.0, 0.4], rtol=1e-5)
