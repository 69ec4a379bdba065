"""Observation noise: what it is added to, in which units, drawn once per observation; seeded, rewound, resumed bit for bit."""

import gymnasium
import numpy as np
import pytest
import torch

from upslope import Trainer, UsageError
from upslope.collect import seeded
from upslope.control.playing import Player
from upslope.parts.network import MLP
from upslope.parts.steps import Steps
from upslope.policies.control import ControlPolicy
from upslope.tasks.noise import NoisyObservations, noisy
from upslope.tasks.opening import open_environments
from upslope.testing import check_resume


def pair(what, std=0.3, count=8, seed=5, **settings):
    """The same environments twice, the second with noise."""
    return [open_environments(what, count, seed, settings=settings) for _ in range(2)], std


def actions_for(environments, steps):
    generator = np.random.default_rng(0)
    if environments.actions.kind == "discrete":
        return generator.integers(0, environments.actions.values[0], (steps, environments.count))
    return generator.uniform(-1, 1, (steps, environments.count, environments.actions.size)).astype(np.float32)


@pytest.mark.parametrize(("what", "count"), [("CartPole-v1", 8), ("CartPole-v1", 3), ("Pendulum-v1", 4)])
def test_the_environment_is_untouched_and_the_noise_is_normal(what, count):
    (plain, inner), std = pair(what, count=count, max_episode_steps=40)
    other = noisy(inner, std)
    gaps = [other.reset() - plain.reset()]
    ended = 0
    for action in actions_for(plain, 400):
        a, b = plain.step(action), other.step(action)
        for name in ("reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert a.episodes == b.episodes
        over = a.terminated | a.truncated
        # one noise per observation: what was reached is what is seen next, unless the episode ended
        np.testing.assert_array_equal(b.observation[~over], b.next_observation[~over])
        assert not over.any() or not np.isclose(b.observation[over], b.next_observation[over]).all()
        np.testing.assert_array_equal(other.observation, b.observation)
        gaps += [b.next_observation - a.next_observation, (b.observation - a.observation)[over]]
        ended += over.sum()
    assert ended > 10
    gap = np.concatenate(gaps)
    assert gap.std() == pytest.approx(std, rel=0.05)
    assert abs(gap.mean()) < 4 * std / np.sqrt(gap.size)
    across = np.corrcoef(gap[:-count].ravel(), gap[count:].ravel())[0, 1]
    assert abs(across) < 4 / np.sqrt(gap.size), "fresh at every step"


def test_without_noise_nothing_is_wrapped():
    environments = open_environments("CartPole-v1", 2, 0)
    assert noisy(environments, 0.0) is environments
    with pytest.raises(UsageError, match="observation_noise is -1"):
        noisy(environments, -1.0)


@pytest.mark.parametrize(("what", "count"), [("CartPole-v1", 8), ("Pendulum-v1", 2)])
def test_goes_on_bit_for_bit_and_rewinds(what, count):
    def opened():
        return noisy(open_environments(what, count, 3, settings={"max_episode_steps": 15}), 0.2)

    one, other = opened(), opened()
    actions = actions_for(one, 60)
    one.reset()
    for action in actions[:30]:
        one.step(action)
    other.restore(one.state())
    np.testing.assert_array_equal(one.observation, other.observation)
    for action in actions[30:]:
        a, b = one.step(action), other.step(action)
        np.testing.assert_array_equal(a.observation, b.observation)
        np.testing.assert_array_equal(a.next_observation, b.next_observation)
    seen = []
    for _ in range(2):  # the same noise in every evaluation
        one.rewind()
        seen.append([one.reset(), *(one.step(action).observation for action in actions)])
    np.testing.assert_array_equal(seen[0], seen[1])
    with pytest.raises(UsageError, match="started without noise"):
        other.restore(open_environments(what, count, 3).state())


@pytest.mark.parametrize("mode", list(gymnasium.vector.AutoresetMode))
def test_vector_environments_in_every_mode(mode):
    def opened(std):
        made = gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
        return noisy(open_environments(made, 4, 0), std)

    plain, other = opened(0.0), opened(0.1)
    assert isinstance(other, NoisyObservations)
    plain.reset(), other.reset()
    for action in actions_for(plain, 120):
        a, b = plain.step(action), other.step(action)
        assert a.episodes == b.episodes
        np.testing.assert_allclose(a.observation, b.observation, atol=0.6)
        np.testing.assert_allclose(a.next_observation, b.next_observation, atol=0.6)
        assert not np.array_equal(a.next_observation, b.next_observation)


class Large(gymnasium.Env):
    """Observes a normal of standard deviation 100."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._see(), {}

    def _see(self):
        return np.array([100 * self.np_random.standard_normal()], dtype=np.float32)

    def step(self, action):
        return self._see(), 1.0, False, False, {}


def test_the_noise_is_in_the_environments_units_whatever_the_policy_normalises():
    plain, inner = (open_environments(Large, 4, 0, settings={"max_episode_steps": 9}) for _ in range(2))
    environments = noisy(inner, 0.5)
    torch.manual_seed(0)
    policy = ControlPolicy(plain.observations, plain.actions, MLP(hidden=(8,), normalize=True))
    policy.observe(torch.randn(1000, 1) * 100)
    rollout = Steps(environments=4, steps=200, observation_noise=0.5)
    seen = [Player(one, policy, None, rollout).play(seeded(1)).played.observation for one in (plain, environments)]
    assert float((seen[1] - seen[0]).std()) == pytest.approx(0.5, rel=0.1)  # and not 0.5 standard deviations, 50
    network = [policy.normalized(one) for one in seen]
    assert float((network[1] - network[0]).std()) == pytest.approx(0.005, rel=0.15)


RUNS = [
    ("ppo", "CartPole-v1", {"rollout.environments": 8, "rollout.steps": 16}),
    ("ppo@continuous", "Pendulum-v1", {"rollout.environments": 2, "rollout.steps": 16, "minibatches": 4}),
    ("reinforce@control", "CartPole-v1", {"rollout.episodes": 4, "rollout.environments": 2}),
    ("sac", "Pendulum-v1", {"rollout.steps": 20, "rollout.warmup": 30, "batch_size": 8, "policy.hidden": [8]}),
]


@pytest.mark.parametrize(("method", "task", "changed"), RUNS)
def test_a_noisy_run_resumes_bit_for_bit(method, task, changed, tmp_path):
    settings = {"eval": {"episodes": 3}, "threads": 1, "task": task, "steps": 6, "checkpoint_every": 3, **changed}
    noisy, _ = check_resume(method, tmp_path, killed=5, **settings, **{"rollout.observation_noise": 0.2})
    with Trainer(method, out=tmp_path / "clean", **settings) as clean:
        clean.train()
    again = clean.parts.policy.state_dict()
    assert any(not torch.equal(value, again[name]) for name, value in noisy.parts.policy.state_dict().items())
