"""The probe in environments: its reference is the gradient of the expected return, a method's gradient that of its formula."""

import itertools

import gymnasium
import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.collect import seeded
from upslope.config import Config
from upslope.control.on_policy import OnPolicyAgent
from upslope.control.probing import gradient_of, play_rows, probe_control, return_gradient
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy, Critic
from upslope.tasks.environments import Copies


class Two(gymnasium.Env):
    """Two steps: observes (step, first action); pays a, then 2 b - a b. Terminates, unless it is never to end."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, ends=True):
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.first = 0, 0
        return self._see(), {}

    def _see(self):
        return np.array([self.t, self.first], dtype=np.float32)

    def step(self, action):
        paid = float(action) if self.t == 0 else 2.0 * action - self.first * action
        self.first = int(action) if self.t == 0 else self.first
        self.t += 1
        return self._see(), paid, self.ends and self.t == 2, False, {}


def scene(ends=True, count=8, critic=True):
    torch.manual_seed(0)
    environments = Copies(lambda: Two(ends), count, 0, limit=None if ends else 2)
    policy = ControlPolicy(environments.observations, environments.actions, MLP(hidden=(6,), policy_gain=1.0))
    return environments, policy, Critic(policy) if critic else None


def exact_gradient(policy):
    value = 0.0
    for a, b in itertools.product((0, 1), (0, 1)):
        seen = torch.tensor([[0.0, 0.0], [1.0, a]])
        probability = policy.distribution(seen).log_prob(torch.tensor([a, b])).sum().exp()
        value = value + probability * (a + 2 * b - a * b)
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(policy.parameters()))])


def test_the_reference_is_the_gradient_of_the_expected_return():
    environments, policy, _ = scene(count=64, critic=False)
    draws = torch.stack(
        [return_gradient(policy, *play_rows(environments, policy, None, 64, seeded(i))) for i in range(60)]
    )
    exact = exact_gradient(policy)
    error = draws.std(0) / 60**0.5
    assert ((draws.mean(0) - exact).abs() < 4 * error + 1e-6).all()
    assert float(exact.norm()) > 5 * float(error.norm()), "or the test could not fail"


@pytest.mark.parametrize("ends", [True, False])
def test_rows_are_whole_episodes_with_values(ends):
    environments, policy, critic = scene(ends)
    played, batch = play_rows(environments, policy, critic, 11, seeded(0))
    assert len(batch) == 16  # two of each copy
    assert batch.mask.all()
    assert batch.ended.tolist() == [[False, True]] * 16
    with torch.no_grad():
        value = critic(played.observation)
        first = played.action[:, 0].float()
        last = critic(torch.stack([torch.full((16,), 2.0), first], 1)) if not ends else torch.zeros(16)
    torch.testing.assert_close(batch.old_value, value)
    torch.testing.assert_close(batch.next_value[:, 0], value[:, 1])
    torch.testing.assert_close(batch.next_value[:, 1], last)
    second = played.action[:, 1].float()
    torch.testing.assert_close(batch.token_reward, torch.stack([first, 2 * second - first * second], 1))


def test_a_methods_gradient_is_that_of_its_formula():
    environments, policy, critic = scene()
    played, batch = play_rows(environments, policy, critic, 8, seeded(1))
    gradient, used = gradient_of(make("a2c", regularizer=None, gamma=0.9), policy, played, batch)
    reward, value = batch.token_reward, batch.old_value
    advantage = torch.stack([reward[:, 0] + 0.9 * reward[:, 1], reward[:, 1]], 1) - value
    logp = policy.distribution(played.observation).log_prob(played.action)
    expected = torch.autograd.grad((logp * advantage).mean(), list(policy.parameters()))
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]))
    assert used == 1


def test_measures_of_several_methods_leave_the_policy_alone():
    config = Config(method="ppo", task=None, steps=1)
    agent = OnPolicyAgent(config, make("ppo", hidden=[8]), Two)
    before = [p.detach().clone() for p in (*agent.policy.parameters(), *agent.critic.parameters())]
    names = ["ppo", "a2c", "ppo:entropy", "reinforce@control"]
    recipes = [make("ppo"), make("a2c"), make("ppo", **{"regularizer.coefficient": 1e3}), make("reinforce@control")]
    pairs = list(zip(names, recipes, strict=True))
    found = probe_control(pairs, agent, batches=6, episodes=32, seed=0)
    for old, new in zip(before, (*agent.policy.parameters(), *agent.critic.parameters()), strict=True):
        assert torch.equal(old, new)
    assert [one.name for one in found] == names
    for one in found:
        assert one.kl > 0
        assert 0 < one.effective <= 1
        assert one.contributing == 1
    by_name = dict(zip(names, found, strict=True))
    assert by_name["a2c"].cosine.value > 0.7
    assert by_name["a2c"].snr.value > 0
    agent.close()


def test_a_column_that_episodes_do_not_have():
    agent = OnPolicyAgent(Config(method="ppo", steps=1), make("ppo", hidden=[8]), Two)
    with pytest.raises(UsageError, match="'grpo' reads"):
        probe_control([("grpo", make("grpo"))], agent, batches=4, episodes=8, seed=0)
    agent.close()
