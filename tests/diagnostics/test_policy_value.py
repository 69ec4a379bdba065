"""Estimates of a policy by a log: by hand where the truth is known, and densities that integrate to what they must."""

import math

import numpy as np
import pytest
import torch

from upslope import UsageError
from upslope.actor_critic.log import Log, open_log
from upslope.diagnostics.fitted import FitSettings
from upslope.diagnostics.policy_value import check_fits, estimates
from upslope.offline.densities import policy_logp, to_log, uniform_logp
from upslope.offline.making import record
from upslope.offline.writing import write_minari
from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy
from upslope.tasks.opening import open_environments
from upslope.tasks.spaces import ActionSpec, Leaf, ObservationSpec

ONE = ObservationSpec((Leaf("observation", (1,)),))
BOX = ActionSpec("continuous", (1,), (), (), (-3.0,), (1.0,))
CHOICE = ActionSpec("discrete", (), (3,), (4,))
QUICK = FitSettings(steps=1500, lr=3e-3, batch_size=64, hidden=(16,), discount=0.9)


def bandit(rows):
    """A log of one-step episodes: (number of the action from 0, reward, log-prob of the behavior)."""
    number, reward, logp = (np.array(column) for column in zip(*rows, strict=True))
    count = len(rows)
    zeros = np.zeros((count, 1), np.float32)
    return Log(
        observation=zeros,
        action=(number + 4).astype(np.float32)[:, None],
        reward=reward.astype(np.float32),
        terminated=np.ones(count, np.float32),
        truncated=np.zeros(count, np.float32),
        next_observation=zeros,
        logp=logp,
    )


def choosing(*probability):
    """A policy with these probabilities everywhere."""
    policy = ControlPolicy(ONE, CHOICE, MLP(hidden=(4,)))
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias.copy_(torch.tensor(probability).log())
    return policy


def test_one_step_by_hand():
    """Ratios 2.5, 2.5, 0.5, 0.4 for rewards 1, 2, 4, 3."""
    rows = [(0, 1.0, 0.2), (0, 2.0, 0.2), (1, 4.0, 0.6), (2, 3.0, 0.5)]
    log = bandit([(a, r, math.log(p)) for a, r, p in rows])
    policy = choosing(0.5, 0.3, 0.2)
    found = estimates(policy, log, QUICK)
    weight, reward = np.array([2.5, 2.5, 0.5, 0.4]), np.array([1.0, 2.0, 4.0, 3.0])
    assert found["ips"] == pytest.approx(np.mean(weight * reward), rel=1e-5)
    assert found["pdis"] == pytest.approx(found["ips"])
    assert found["wis"] == pytest.approx(np.sum(weight * reward) / weight.sum(), rel=1e-5)
    assert found["ess"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-5)
    assert found["ips_low"] < found["ips"] < found["ips_high"]
    truth = 0.5 * 1.5 + 0.3 * 4 + 0.2 * 3  # the mean reward of each action in the log
    assert found["fqe"] == pytest.approx(truth, abs=0.1)
    assert found["dr"] == pytest.approx(np.mean(weight * (reward - [1.5, 1.5, 4, 3])) + truth, abs=0.1)
    assert found["logged_discounted"] == pytest.approx(2.5)
    clipped = estimates(policy, log, FitSettings(steps=1), clip=1.0)
    assert clipped["ips"] == pytest.approx(np.mean(weight.clip(max=1) * reward), rel=1e-5)


def test_without_log_probs_fqe_alone():
    log = bandit([(0, 1.0, 0.0), (1, 0.0, 0.0)])
    for changed, deterministic, says in (
        (None, False, "no log-probs of its actions"),
        (np.array([0.0, np.nan]), False, "1 of 2 actions lie on the bounds"),
        (log.logp, True, "likeliest"),
    ):
        found = estimates(
            choosing(0.2, 0.2, 0.6),
            Log(**{**vars(log), "logp": changed}),
            FitSettings(steps=1),
            deterministic=deterministic,
        )
        assert says in found["why_not"]
        assert "ips" not in found


def test_weights_beyond_a_float_are_told():
    log = bandit([(0, 1.0, -1000.0), (1, 1.0, 0.0)])
    found = estimates(choosing(0.2, 0.2, 0.6), log, FitSettings(steps=1))
    assert found["ips"] is None
    assert found["wis"] == pytest.approx(1.0)
    assert found["ess"] == pytest.approx(1.0)


def gaussian(**settings):
    torch.manual_seed(3)
    return ControlPolicy(ONE, BOX, MLP(hidden=(4,), policy_gain=1.0, **settings))


@pytest.mark.parametrize("distribution", ["squashed", "gaussian", "bounded"])
@pytest.mark.parametrize("log_std", ["free", "state"])
def test_density_integrates_to_what_is_not_on_the_bounds(distribution, log_std):
    """Over [-1, 1]: 1 for a squashed policy, and for one that is cut the probability of the inside."""
    policy = gaussian(distribution=distribution, log_std=log_std)
    grid = np.linspace(-1 + 1e-5, 1 - 1e-5, 40001, dtype=np.float32)[:, None]
    observation = np.full_like(grid, 0.7)
    mass = np.trapezoid(np.exp(policy_logp(policy, observation, grid)), grid[:, 0])
    found = policy.distribution(torch.tensor([[0.7]]))
    drawn = (
        torch.cat([found.draw(found.noise(torch.Generator().manual_seed(s))) for s in range(20000)]).detach().numpy()
    )
    low, high = (-3.0, 1.0) if distribution == "gaussian" else (-1.0, 1.0)
    inside = ((drawn > low) & (drawn < high)).mean()
    assert mass == pytest.approx(inside, abs=0.015)
    if distribution == "squashed":
        assert mass == pytest.approx(1.0, abs=2e-3)
        assert inside == 1


def test_what_has_no_density():
    edge = np.array([[0.0], [1.0 - 1e-6]], dtype=np.float32)
    seen = np.zeros((2, 1), np.float32)
    assert np.isnan(policy_logp(gaussian(), seen, edge)).tolist() == [False, True]
    assert np.isfinite(policy_logp(gaussian(distribution="squashed"), seen, edge)).all()
    assert policy_logp(gaussian(distribution="deterministic"), seen, edge) is None
    assert uniform_logp(BOX) == -math.log(2)
    assert uniform_logp(CHOICE) == -math.log(3)
    np.testing.assert_allclose(to_log(np.array([[-3.0], [-1.0], [1.0]]), BOX)[:, 0], [-1 + 1e-6, 0, 1 - 1e-6])
    assert to_log(np.array([4, 6]), CHOICE).tolist() == [0, 2]


def written(folder, what, policy, transitions):
    """A log that the policy itself has played, read back."""
    with_score = lambda seen, action: policy_logp(policy, seen, action)  # noqa: E731
    environments = open_environments(what, 2, 0, settings={"max_episode_steps": 12}, convention=policy.convention)
    generator = torch.Generator().manual_seed(0)
    played = record(environments, lambda seen: policy.act(seen, generator)[0], transitions, with_score)
    copy = environments.copies[0]
    write_minari(folder, played, copy.observation_space, copy.action_space, {})
    continuous = policy.actions.kind == "continuous"
    return open_log(str(folder), policy.actions if continuous else None, strict=continuous)


@pytest.mark.parametrize("what", ["Pendulum-v1", "CartPole-v1"])
def test_a_policy_by_its_own_log(what, tmp_path):
    """Every ratio is 1, so that IPS, WIS and PDIS are the log's mean return, and every episode counts."""
    spaces = open_environments(what, 1, 0)
    settings = MLP(hidden=(8,), distribution="squashed", log_std="state", policy_gain=1.0)
    policy = ControlPolicy(spaces.observations, spaces.actions, settings)
    log = written(tmp_path, what, policy, 100)
    assert log.logp is not None
    found = estimates(policy, log, FitSettings(steps=20, discount=0.9))
    assert found["ess"] == pytest.approx(found["episodes"], rel=1e-3)
    for name in ("ips", "wis", "pdis", "wpdis"):
        assert found[name] == pytest.approx(found["logged_discounted"], rel=1e-3)
    assert found["dr"] == pytest.approx(found["logged_discounted"], abs=10)
    other = ControlPolicy(spaces.observations, spaces.actions, settings)
    assert estimates(other, log, FitSettings(steps=2))["ess"] < 0.9 * found["episodes"]


def test_actions_that_a_log_cannot_have_are_told():
    """A policy whose noise is as wide as the box is cut to it; one with little noise hardly ever is."""
    count = 40
    zeros = np.zeros((count, 1), np.float32)
    columns = {
        "reward": zeros[:, 0],
        "terminated": zeros[:, 0] + 1,
        "truncated": zeros[:, 0],
        "next_observation": zeros,
    }
    inside = np.linspace(-0.9, 0.9, count, dtype=np.float32)[:, None]
    log = Log(observation=zeros, action=inside, logp=np.full(count, -math.log(1.8)), **columns)
    wide = estimates(gaussian(log_std_init=1.0), log, FitSettings(steps=1))
    assert "cut to the bounds" in wide["why_not"]
    narrow = gaussian(log_std_init=-2.0)
    with torch.no_grad():
        narrow.head.weight.zero_()
        narrow.head.bias.fill_(-1.0)  # the middle of the box
    assert "ips" in estimates(narrow, log, FitSettings(steps=1))


def test_part_of_a_log_keeps_its_log_probs(tmp_path):
    log = bandit([(0, 1.0, -1.0), (1, 2.0, -2.0), (2, 3.0, -3.0)])
    assert log.at(np.array([True, False, True])).logp.tolist() == [-1.0, -3.0]
    arrays = {
        "observations": np.zeros((6, 1)),
        "actions": np.zeros((6, 1)),
        "rewards": np.ones(6),
        "terminals": np.zeros(6),
    }
    arrays |= {"timeouts": np.array([0, 0, 1, 0, 0, 1.0]), "behavior_logp": np.arange(6.0)}
    np.savez(tmp_path / "log.npz", **arrays)
    read = open_log(str(tmp_path / "log.npz"), None)  # without next observations: the last step of an episode is lost
    assert read.logp.tolist() == [0, 1, 3, 4]
    np.savez(tmp_path / "bad.npz", **{**arrays, "behavior_logp": np.zeros(5)})
    with pytest.raises(UsageError, match=r"behavior_logp has shape \[5\]"):
        open_log(str(tmp_path / "bad.npz"), None)


def test_a_policy_of_another_environment_is_refused():
    log = bandit([(0, 1.0, 0.0), (1, 0.0, 0.0)])
    wide = ControlPolicy(ObservationSpec((Leaf("observation", (2,)),)), CHOICE, MLP(hidden=(4,)))
    with pytest.raises(UsageError, match="sees 2 numbers"):
        check_fits(wide, log, "run", "log")
    few = ControlPolicy(ONE, ActionSpec("discrete", (), (2,), (4,)), MLP(hidden=(4,)))
    check_fits(few, log, "run", "log")
    with pytest.raises(UsageError, match="not one of the 2"):
        check_fits(few, bandit([(2, 1.0, 0.0)]), "run", "log")
    several = ControlPolicy(ONE, ActionSpec("multi_discrete", (2,), (2, 2), (0, 0)), MLP(hidden=(4,)))
    with pytest.raises(UsageError, match="multi_discrete"):
        check_fits(several, log, "run", "log")
