"""A PPO that is written out beside Upslope's: the same episodes, the same values, the same parameters after each update."""

import importlib.util
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from upslope import Trainer
from upslope.collect import seeded

PLACE = Path(__file__).parents[2] / "benchmarks" / "plain_ppo.py"
SHAPE = {"rollout.environments": 4, "rollout.steps": 48}
LIMIT = 20  # so short that rollouts hold cut and terminated episodes


@pytest.fixture(scope="module")
def plain_ppo():
    spec = importlib.util.spec_from_file_location("plain_ppo", PLACE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["plain_ppo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def train(steps, **settings):
    """A trainer after its run, its networks before it, and what was played in each step."""
    played = []
    options = {"threads": 1, "eval": {"episodes": 0}, "task_settings": {"max_episode_steps": LIMIT}}
    with Trainer("ppo", task="CartPole-v1", steps=steps, **{**options, **SHAPE, **settings}) as trainer:
        parts = trainer.parts
        before = [[p.detach().clone() for p in net.parameters()] for net in (parts.policy, parts.critic)]
        play = parts.player.play
        parts.player.play = lambda generator: played.append(play(generator)) or played[-1]
        trainer.train()
    return trainer, before, played


def replayed(environments, actions):
    """The recorded actions [N, S * steps] once more in single copies of Gymnasium's environment, seeded as ours are."""
    columns = [[], [], [], [], []]
    for row, choices in enumerate(actions.tolist()):
        environments.number[row] = 0
        copy = gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)
        seen, _ = copy.reset(seed=environments.seed_of(row))
        found = []
        for action in choices:
            reached, reward, terminated, truncated, _ = copy.step(action)
            found.append((seen, reached, reward, terminated, terminated or truncated))
            seen = reached
            if found[-1][-1]:
                environments.number[row] += 1
                seen, _ = copy.reset(seed=environments.seed_of(row))
        for column, values in zip(columns, zip(*found, strict=True), strict=True):
            column.append(np.stack(values))
    return [torch.from_numpy(np.stack(column)).transpose(0, 1) for column in columns]


def rollout_of(plain_ppo, plain, columns, actions, steps):
    """[S, N] of these steps, by the networks as they are."""
    seen, reached, reward, terminated, ended = (column[steps] for column in columns)
    with torch.no_grad():
        value, after = (plain.critic(x.float()).squeeze(-1) for x in (seen, reached))
        logp = plain.actor(seen).log_softmax(-1).gather(-1, actions[steps].unsqueeze(-1)).squeeze(-1)
    return plain_ppo.Rollout(
        seen, actions[steps], logp, reward.float(), value, torch.where(terminated, 0.0, after), ended
    )


@pytest.mark.parametrize("value_clip", [0.2, None])
def test_three_updates_are_those_of_a_plain_ppo(plain_ppo, value_clip):
    """From the initial parameters and the actions alone: episodes, bootstrapping, advantages, mini-batches, both losses, the
    clipped gradient of both networks together, Adam and the falling rate."""
    updates, copies, width, seed = 3, SHAPE["rollout.environments"], SHAPE["rollout.steps"], 7
    trainer, before, played = train(updates, seed=seed, **{"critic.clip": value_clip})
    actions = torch.cat([one.played.action for one in played], 1)
    columns = replayed(trainer.parts.environments, actions)
    terminated, ended = columns[3], columns[4]
    assert terminated.any()
    assert (ended & ~terminated).any()

    plain = plain_ppo.Plain(plain_ppo.Settings(value_clip=value_clip), 4, 2)
    with torch.no_grad():
        for network, values in zip((plain.actor, plain.critic), before, strict=True):
            for parameter, value in zip(network.parameters(), values, strict=True):
                parameter.copy_(value)
    taken, total = 0, updates * 16

    def rate():
        nonlocal taken
        taken += 1
        return 2.5e-4 * (1 - (taken - 1) / total)

    for update in range(updates):
        steps = slice(update * width, (update + 1) * width)
        rollout = rollout_of(plain_ppo, plain, columns, actions.T, steps)
        torch.testing.assert_close(played[update].batch.old_value.T, rollout.value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(played[update].batch.next_value.T, rollout.next_value, rtol=1e-4, atol=1e-5)
        orders = [
            torch.randperm(copies * width, generator=seeded(seed, update + 1, "minibatches", e)) for e in range(4)
        ]
        # Ours are counted copy by copy, the plain ones step by step.
        plain.update(rollout, [order % width * copies + order // width for order in orders], rate)
    assert taken == total == trainer.parts.updater.learner.taken
    moved = 0.0
    for network, ours, old in zip(
        (plain.actor, plain.critic), (trainer.parts.policy, trainer.parts.critic), before, strict=True
    ):
        for expected, found, start in zip(network.parameters(), ours.parameters(), old, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            moved = max(moved, float((found.detach() - start).abs().max()))
    assert moved > 2e-3  # two hundred times the tolerance


def test_the_networks_begin_as_the_plain_ones_do():
    """Orthogonal with gains sqrt 2, 0.01 of the policy's and 1 of the critic's last layer; biases 0."""
    _, (policy, critic), _ = train(1)
    for network, gain in ((policy, 0.01), (critic, 1.0)):
        *hidden, (head, _) = zip(network[::2], network[1::2], strict=True)
        for weight, scale in [(weight, 2**0.5) for weight, _ in hidden] + [(head, gain)]:
            small = weight if weight.shape[0] <= weight.shape[1] else weight.T
            torch.testing.assert_close(small @ small.T, scale**2 * torch.eye(len(small)), rtol=1e-4, atol=1e-5)
        assert all((bias == 0).all() for bias in network[1::2])


def test_the_critic_foretells_the_returns_of_a_policy_that_stays():
    """While the policy improves, V runs after returns that grow from 20 to 100, the plain one as ours: little is explained."""
    settings = {"rollout.steps": 128, "critic.clip": None, "value_coefficient": None, "lr": 0.0, "critic_lr": 3e-3}
    settings |= {"grad_clip": float("inf"), "schedule": "constant", "task_settings": {}}
    trainer, _, _ = train(40, **settings)
    explained = [row["critic/explained_variance"] for row in trainer.rows[-20:]]
    assert np.mean(explained) > 0.5
