"""Card: control_theory.md, props. Row order, padding, micro-batches: tests/methods/test_contract.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, Trainer, UsageError, make
from upslope.collect import seeded
from upslope.control.adaptive import AdaptivePlayer
from upslope.diagnostics.sampling_error import tabular_sampling_error
from upslope.parts.gae import gae
from upslope.parts.network import MLP
from upslope.parts.normalize import ScaledReward
from upslope.policies.control import ControlPolicy, Critic
from upslope.tasks.opening import open_environments
from upslope.testing import check_resume

QUIET = {"eval": {"episodes": 0}, "threads": 1, "sinks": [], "self_checks": False}


def player(task="CartPole-v1", method="props", seed=0, network=None, **settings):
    part = make(method, **settings).rollout
    torch.manual_seed(seed)
    environments = open_environments(task, part.environments, seed)
    policy = ControlPolicy(
        environments.observations, environments.actions, network or MLP(hidden=(8,), policy_gain=1.0)
    )
    return part.player(environments, policy, Critic(policy))


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_loss_of_the_card():
    """Identity 3: rho = (1, 1.5, .5), clip .3: terms (1, 1.5, .7), mean 1.06667; only the first two have a gradient."""
    log_ratio = torch.tensor([1.0, 1.5, 0.5], dtype=torch.float64).log().requires_grad_()
    terms = make("props").rollout.loss(log_ratio)
    np.testing.assert_allclose(terms.detach(), [1.0, 1.5, 0.7])
    assert float(terms.detach().mean()) == pytest.approx(1.06667, abs=5e-6)
    (gradient,) = torch.autograd.grad(terms.mean(), log_ratio)
    np.testing.assert_allclose(gradient, [1 / 3, 0.5, 0.0])


def test_defaults():
    props = make("props")
    assert (props.rollout.environments, props.rollout.steps, props.rollout.buffer) == (1, 2048, 2)
    assert (props.rollout.every, props.rollout.behavior_epochs, props.rollout.behavior_lr) == (16, 16, 1e-3)
    assert (props.rollout.behavior_clip, props.rollout.behavior_target_kl, props.rollout.behavior_kl) == (0.3, 0.01, 0)
    assert (props.update.minibatches, props.update.epochs, props.update.target_kl) == (16, 16, 0.03)
    assert (props.optimizer.lr, props.optimizer.schedule) == (1e-3, "constant")
    continuous = make("props@continuous")
    assert (continuous.rollout.every, continuous.rollout.behavior_target_kl) == (8, 0.1)
    assert continuous.policy.normalize
    assert isinstance(continuous.reward, ScaledReward)


def test_without_epochs_it_is_ppo():
    """Identity 1 with a buffer of one rollout: the same weights, bit for bit."""
    alike = {"rollout.environments": 2, "rollout.steps": 32, "update": {"minibatches": 4, "epochs": 2}}
    settings = {"steps": 3, "task": "CartPole-v1", "lr": 1e-3, **QUIET}
    with Trainer("props", **settings, **_flat(alike), behavior_epochs=0, buffer=1, target_kl=None) as one:
        one.train()
    plain = {"schedule": "constant"}
    with Trainer("ppo", **settings, **_flat(alike), **plain) as other:
        other.train()
    for name, value in other.parts.policy.state_dict().items():
        assert torch.equal(value, one.parts.policy.state_dict()[name]), name
    assert one.rows[-1]["env_steps"] == other.rows[-1]["env_steps"] == 192


def _flat(settings):
    inner = settings.pop("update")
    found = {**settings, **{f"update.{name}": value for name, value in inner.items()}}
    settings["update"] = inner
    return found


def test_older_rollouts_are_used_as_if_the_policy_of_now_had_played_them():
    """Identity 1 with a buffer of three: log-probs and values are of now, and each rollout has advantages of its own."""
    one = player(**{"rollout.environments": 2, "rollout.steps": 24, "buffer": 3, "behavior_epochs": 0})
    played = []
    for step in range(4):
        found = one.play(seeded(step))
        played.append((found.played.observation[found.new], found.played.action[found.new], found.batch))
        assert len(found.batch) == 2 * min(step + 1, 3)
        assert found.steps == 48
        with torch.no_grad():
            one.policy.head.weight.mul_(1.3)  # as learning would change them
            one.critic.head.weight.add_(0.1)
    found = one.play(seeded(9))
    observation, action = (torch.cat([each[i] for each in played[2:]]) for i in (0, 1))
    torch.testing.assert_close(found.played.observation[:4], observation)
    assert found.batch.fresh.tolist() == [False] * 4 + [True] * 2
    logp = one.policy.distribution(observation).log_prob(action)
    torch.testing.assert_close(found.batch.old_logp[:4], logp.detach())
    torch.testing.assert_close(found.batch.old_value[:4], one.critic(observation).detach())
    assert not torch.isclose(found.batch.old_logp[2:4], played[3][2].old_logp[-2:]).any()
    prepared = make("props").prepare(found.batch)
    older = found.batch.select(slice(2, 4))
    alone = gae(
        older.token_reward, older.old_value, older.mask, 0.99, 0.95, ended=older.ended, next_value=older.next_value
    )
    torch.testing.assert_close(prepared.returns[2:4], alone + older.old_value)


def test_one_step_of_gradient_descent_is_ros():
    """Identity 2: phi = theta - lr * mean over D of grad log pi_theta(a|s)."""
    one = player(method="props@ros", behavior_lr=0.3)
    observation, action = torch.randn(50, 4), torch.randint(0, 2, (50,))
    one.adapt(observation, action)
    logp = one.policy.distribution(observation).log_prob(action).mean()
    parameters = dict(one.policy.named_parameters())
    gradients = torch.autograd.grad(logp, list(parameters.values()))
    behavior = dict(one.behavior.named_parameters())
    for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(behavior[name], value - 0.3 * gradient)
    one.adapt(observation, action)  # from theta again, not from where it was
    torch.testing.assert_close(behavior["head.weight"], parameters["head.weight"] - 0.3 * gradients[-2])


def test_what_was_played_too_often_becomes_less_likely_until_the_clip_holds():
    one = player(behavior_target_kl=None, behavior_epochs=400, behavior_kind="sgd", behavior_lr=0.02)
    observation = torch.zeros(40, 4)
    one.adapt(observation, torch.zeros(40, dtype=torch.int64))
    theta, phi = (
        policy.distribution(observation[:1]).log_prob(torch.tensor([0])).exp().item()
        for policy in (one.policy, one.behavior)
    )
    assert 0.68 < phi / theta < 0.7  # there its gradient ends


def test_the_target_ends_the_epochs_and_the_penalty_holds_phi():
    observation, action = torch.zeros(40, 4), torch.zeros(40, dtype=torch.int64)
    one = player(behavior_target_kl=0.001, behavior_epochs=400)
    one.adapt(observation, action)
    divergence, steps = one._seen[-1]
    assert 0.001 < divergence < 0.002
    assert steps < 40
    moved = []
    for coefficient in (0.0, 10.0):
        one = player(behavior_target_kl=None, behavior_epochs=100, behavior_kl=coefficient)
        one.adapt(observation, action)
        with torch.no_grad():
            target, phi = (policy.distribution(observation[:1]) for policy in (one.policy, one.behavior))
            moved.append(float(target.kl(phi)))
    assert moved[1] < 0.2 * moved[0]


def test_phi_plays_and_its_data_has_less_sampling_error():
    """The card's claim in the table of FrozenLake, over five seeds: at 512 steps each, exactly."""
    found = {0: [], 16: []}
    for epochs, errors in found.items():
        for seed in range(5):
            settings = {"rollout.steps": 512, "buffer": 1, "behavior_epochs": epochs}
            one = player("FrozenLake-v1", seed=seed, network=MLP(policy_gain=1.0), **settings)
            assert isinstance(one, AdaptivePlayer)
            played = one.play(seeded(seed))
            error = tabular_sampling_error(
                played.played.observation[0], played.played.action[0], played.batch.old_logp[0]
            )
            errors.append(error)
    assert np.mean(found[16]) < 0.8 * np.mean(found[0])


@pytest.mark.parametrize(
    ("method", "task", "changed"),
    [
        ("props", "CartPole-v1", {"rollout.environments": 2}),
        ("props@continuous", "Pendulum-v1", {"buffer": 3, "behavior_minibatches": 2}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(method, task, changed, tmp_path):
    settings = {"task": task, "steps": 4, "rollout.steps": 32, "minibatches": 2, "epochs": 2, **changed, **QUIET}
    whole, resumed = check_resume(method, tmp_path, killed=3, checkpoint_every=2, **settings)
    one, other = whole.parts.player, resumed.parts.player
    for name, value in weights(one.behavior).items():
        assert torch.equal(value, other.behavior.state_dict()[name]), name
    assert len(one.stretches) == len(other.stretches) == min(make(method, **changed).rollout.buffer, 4)


def test_only_fresh_rewards_count_towards_their_scale():
    generator = np.random.default_rng(0)
    reward = torch.tensor(generator.normal(size=(4, 5)) * 7)
    ended = torch.tensor(generator.random((4, 5)) < 0.3)
    columns = {"logp": torch.zeros(4, 5).double(), "token_reward": reward, "ended": ended}
    fresh = torch.tensor([False, False, True, True])
    part = ScaledReward()
    found, state = part(Batch(**columns, fresh=fresh), part.init())
    alone, same = part(Batch(**{name: column[2:] for name, column in columns.items()}), part.init())
    torch.testing.assert_close(found[2:], alone)
    assert state["running"] == same["running"]
    scale = (alone / reward[2:])[alone.abs() < 10].flatten()[0]
    torch.testing.assert_close(found[:2], (reward[:2] * scale).clamp(-10, 10))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"buffer": 0}, "buffer is 0"),
        ({"every": 0}, "every is 0"),
        ({"behavior_epochs": -1}, "behavior_epochs is -1"),
        ({"behavior_clip": -0.1}, "behavior_clip"),
        ({"behavior_target_kl": 0.0}, "behavior_target_kl"),
    ],
)
def test_settings_out_of_range(settings, match):
    with pytest.raises(UsageError, match=match):
        make("props", **settings)
