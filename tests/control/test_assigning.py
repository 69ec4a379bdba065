"""OSPO in its environment: rows are agents, runs resume bit for bit, the command line, environments that are no such thing."""

import json

import numpy as np
import pytest
import torch

from upslope import Trainer, UsageError
from upslope.collect import seeded
from upslope.control.assigning import AssignmentPlayer
from upslope.parts.assignment import Assignments, PairScores
from upslope.parts.steps import Steps
from upslope.tasks.opening import open_environments
from upslope.testing import check_resume

CITY = {"vehicles": 5, "shown": 4, "rate": 1.5, "horizon": 12, "size": 5}
RUN = {"task": "upslope/Dispatch-v0", "task_settings": CITY, "threads": 1, "eval": {"episodes": 2}}


def player(count=2, episodes=3, critic=False, **settings):
    torch.manual_seed(0)
    environments = open_environments("upslope/Dispatch-v0", count, seed=0, settings={**CITY, **settings})
    network = PairScores(hidden=(8,))
    policy = network.build(environments.observations, environments.actions)
    part = Assignments(episodes=episodes, environments=count)
    return part.player(environments, policy, network.critic(policy) if critic else None)


def test_rows_are_agents_and_their_rewards_add_up_to_the_episodes():
    one = player(critic=True)
    assert isinstance(one, AssignmentPlayer)
    found = one.play(seeded(1))
    batch = found.batch
    assert batch.logp.shape == (4 * 5, 12)  # two episodes of each copy, five agents
    assert batch.trajectory.tolist() == [i for i in range(4) for _ in range(5)]
    totals = batch.token_reward.view(4, 5, 12).sum((1, 2))
    np.testing.assert_allclose(sorted(totals.tolist()), sorted(e.total for e in found.episodes), rtol=1e-5)
    assert ((batch.token_reward != 0) <= batch.mask).all()
    assert batch.ended.sum(1).tolist() == [1] * 20
    assert found.steps == int(batch.mask.sum())
    logp = one.policy.distribution(found.played.observation[batch.mask]).log_prob(found.played.action[batch.mask])
    torch.testing.assert_close(batch.old_logp[batch.mask], logp.detach())
    assert "old_value" in batch
    again = one.play(seeded(2))
    assert one.steps == found.steps + again.steps


def test_what_an_agent_did_is_what_its_row_says():
    one = player(count=1, episodes=1)
    taken = []
    play = one.environments.step

    def step(action):
        taken.append(action[0])
        return play(action)

    one.environments.step = step
    found = one.play(seeded(1))
    chosen = np.stack(taken, 1)
    np.testing.assert_array_equal(found.batch.mask.numpy(), chosen > 0)
    np.testing.assert_array_equal(found.played.action.numpy()[chosen > 0], chosen[chosen > 0] - 1)


@pytest.mark.parametrize("method", ["ospo", "ospo@grpo"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(method, tmp_path):
    settings = {**RUN, "steps": 5, "beta": 0.5, "epochs": 3, "minibatches": 2}
    check_resume(method, tmp_path, killed=4, checkpoint_every=2, **settings)


def test_train_report_and_eval_at_the_command_line(tmp_path, capsys):
    from upslope.cli import run as command

    folder = str(tmp_path / "run")
    city = [f"task_settings.{name}={value}" for name, value in CITY.items()]
    sets = [part for one in [*city, "eval.episodes=2"] for part in ("--set", one)]
    assert not command(["train", "ospo", "--task", "upslope/Dispatch-v0", "--steps", "3", "--out", folder, *sets])
    assert not command(["eval", folder, "--episodes", "4", "--json"])
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{\n") if "{\n" in out else out.rindex("{") :])
    assert np.isfinite(found["eval/return"])
    assert not command(["report", folder])


def test_other_environments_and_networks_are_refused():
    with pytest.raises(UsageError, match=r"pairs \[W, O, F\]"):
        Trainer("ospo", task="CartPole-v1", steps=1, eval={"episodes": 0})
    with pytest.raises(UsageError, match="policy=PairScores"):
        Trainer("ppo", steps=1, rollout=Assignments(), **RUN)
    assert Steps().makes == frozenset()
    idle = player(count=1, episodes=1, rate=0.0)
    with pytest.raises(UsageError, match="no agent was given an order"):
        idle.play(seeded(1))
