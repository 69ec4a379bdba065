"""Policies that score pairs: probabilities, assignment, what learning sees, saving, environments that are no such thing."""

import itertools

import numpy as np
import pytest
import torch

from upslope.errors import UsageError
from upslope.parts.assignment import PairScores
from upslope.parts.network import MLP
from upslope.policies.assignment import Layout, PairPolicy, assign
from upslope.policies.control import ControlPolicy
from upslope.tasks.opening import open_environments
from upslope.tasks.spaces import ActionSpec, ObservationSpec

SMALL = {"vehicles": 4, "shown": 3, "rate": 3.0, "horizon": 8, "size": 5}


def cities(count=2, **settings):
    environments = open_environments("upslope/Dispatch-v0", count, seed=0, settings={**SMALL, **settings})
    environments.reset()
    return environments


def policy_of(environments, **settings):
    torch.manual_seed(0)
    made = PairScores(hidden=(8,), policy_gain=1.0, **settings).build(environments.observations, environments.actions)
    assert isinstance(made, PairPolicy)
    return made


@pytest.mark.parametrize("choice", ["orders", "agents"])
def test_probabilities_are_a_softmax_of_the_pairs_that_are_open(choice):
    environments = cities()
    policy = policy_of(environments, choice=choice)
    parts = policy.parts(environments.observation)
    open_ = parts["open"] > 0.5
    raw = policy.body.last(policy.body.inner(torch.from_numpy(parts["pairs"]))).squeeze(-1).detach().numpy()
    weight = np.where(open_, np.exp(raw), 0.0)
    expected = weight / np.maximum(weight.sum(2 if choice == "orders" else 1, keepdims=True), 1e-30)
    where = open_.nonzero()
    seen, chosen = policy.choices(parts, where)
    logp = policy.distribution(torch.from_numpy(seen)).log_prob(torch.from_numpy(chosen))
    np.testing.assert_allclose(logp.exp().detach(), expected[where], rtol=1e-5)
    entropy = policy.distribution(torch.from_numpy(seen)).entropy()
    entropy.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_assign_takes_the_largest_sum_of_as_many_as_can_be():
    draw = np.random.default_rng(0)
    for _ in range(50):
        open_ = draw.random((4, 3)) < 0.5
        value = draw.normal(size=(4, 3))
        best, most = -np.inf, 0
        for action in itertools.product(range(4), repeat=4):
            taken = [(i, a - 1) for i, a in enumerate(action) if a]
            if len({order for _, order in taken}) < len(taken) or not all(open_[pair] for pair in taken):
                continue
            total = sum(value[pair] for pair in taken)
            if (len(taken), total) > (most, best):
                most, best = len(taken), total
        found = assign(value, open_)
        pairs = [(i, a - 1) for i, a in enumerate(found) if a]
        assert len(pairs) == most
        assert all(open_[pair] for pair in pairs)
        assert not most or sum(value[pair] for pair in pairs) == pytest.approx(best)


def test_an_agent_alone_draws_from_its_softmax():
    environments = cities(count=1, vehicles=1, rate=30.0)
    policy = policy_of(environments)
    parts = policy.parts(environments.observation)
    seen, _ = policy.choices(parts, (np.array([0]), np.array([0]), np.array([0])))
    expected = policy.distribution(torch.from_numpy(seen)).logits.softmax(-1)[0].detach().numpy()
    generator = torch.Generator().manual_seed(0)
    many = np.repeat(environments.observation, 4000, 0)
    drawn, logp = policy.act(many, generator)
    counts = np.bincount(drawn[:, 0], minlength=4)[1:] / 4000
    np.testing.assert_allclose(counts, expected, atol=0.03)
    np.testing.assert_allclose(np.exp(logp), expected[drawn[:, 0] - 1], rtol=1e-5)
    assert (policy.act(many, deterministic=True)[0] == 1 + expected.argmax()).all()


def test_the_critic_reads_the_agents_own_state_only():
    environments = cities()
    policy = policy_of(environments)
    critic = policy.settings.critic(policy)
    parts = policy.parts(environments.observation)
    seen, _ = policy.choices(parts, (parts["open"] > 0.5).nonzero())
    changed = seen.copy()
    changed[:, : -policy.layout.agent] += 1.0
    torch.testing.assert_close(critic(torch.from_numpy(seen)), critic(torch.from_numpy(changed)))
    torch.testing.assert_close(critic(torch.from_numpy(seen)), critic.at(critic.body(torch.from_numpy(seen))))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    environments = cities()
    policy = policy_of(environments, choice="agents")
    policy.save(tmp_path)
    again = ControlPolicy.load(tmp_path)
    assert isinstance(again, PairPolicy)
    assert again.settings == policy.settings
    seen = environments.observation
    np.testing.assert_array_equal(again.act(seen, deterministic=True)[0], policy.act(seen, deterministic=True)[0])


def test_settings_that_it_has_not_are_refused():
    with pytest.raises(UsageError, match="has no normalize"):
        PairScores(normalize=True)
    with pytest.raises(UsageError, match="has no distribution"):
        PairScores(distribution="squashed")


def test_an_environment_without_pairs_says_what_is_read():
    plain = open_environments("CartPole-v1", 1, seed=0)
    with pytest.raises(UsageError, match=r"pairs \[W, O, F\].*upslope/Dispatch-v0"):
        Layout.of(plain.observations, plain.actions)
    environments = cities()
    wrong = ActionSpec("multi_discrete", (4,), (3, 3, 3, 3), (0,) * 4)
    with pytest.raises(UsageError, match="this environment has other actions"):
        Layout.of(environments.observations, wrong)
    assert isinstance(MLP().build(plain.observations, plain.actions), ControlPolicy)
    assert isinstance(environments.observations, ObservationSpec)
