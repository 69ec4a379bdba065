"""Logs made from a run: of five qualities, repeatable, as Minari's, with the scores that they say."""

import json
import os
import shutil

import gymnasium
import numpy as np
import pytest

from upslope import Trainer, UsageError
from upslope.__main__ import main
from upslope.actor_critic.log import open_log
from upslope.offline.making import Request, already_made, make_log, nearest, record, split
from upslope.tasks.opening import open_environments

LINE = """
import gymnasium
import numpy as np


class Line(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-5, 5, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.clock = self.np_random.uniform(-1, 1), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.clock += 1
        self.place = float(np.clip(self.place + 0.3 * float(action[0]), -5, 5))
        done = self.place > 3
        return np.array([self.place], np.float32), float(action[0]), done, self.clock >= 10 and not done, {}
"""
TRAIN = {"policy.hidden": [16], "critic.hidden": [16], "batch_size": 32, "rollout.steps": 80, "rollout.warmup": 40}
TRAIN |= {"actor_lr": 1e-2, "critic_lr": 1e-2}
RUN = {"eval": {"every": 1, "episodes": 3}, "checkpoint_every": 1, "keep_checkpoints": 9, "threads": 1, "sinks": []}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of sac on the line, which has learned to go right."""
    folder, before = tmp_path_factory.mktemp("made"), os.getcwd()
    (folder / "line.py").write_text(LINE)
    task = f"{folder / 'line.py'}:Line"
    os.chdir(folder)
    try:
        with Trainer("sac", task=task, steps=4, out=folder / "run", **RUN, **TRAIN) as trainer:
            trainer.train()
    finally:
        os.chdir(before)
    return folder / "run"


@pytest.mark.parametrize("quality", ["random", "medium", "medium-replay", "medium-expert", "expert"])
def test_a_log_is_whole_and_repeatable_and_says_its_scores(run, tmp_path, quality):
    request = Request(quality, 205)
    facts = make_log(run, tmp_path / "a", request)
    again = make_log(run, tmp_path / "b", request)
    assert facts == again
    logs = [open_log(str(tmp_path / name), None) for name in "ab"]
    assert len(logs[0]) == facts["steps_logged"]
    assert 205 <= len(logs[0]) < 205 + 20 * 10 or quality == "medium-replay"
    for name in ("observation", "action", "reward", "terminated", "truncated", "next_observation"):
        assert np.array_equal(getattr(logs[0], name), getattr(logs[1], name))
    log = logs[0]
    assert log.references == (facts["random_return"], facts["expert_return"])
    np.testing.assert_allclose(log.next_observation, (log.observation + 0.6 * log.action).clip(-5, 5), atol=1e-4)
    np.testing.assert_allclose(log.reward, 2 * log.action[:, 0], atol=1e-4)
    assert np.array_equal(log.terminated > 0, log.next_observation[:, 0] > 3)
    assert log.returns().mean() == pytest.approx(facts["return_mean"], abs=1e-3)
    assert log.task.endswith("line.py:Line")
    other = make_log(run, tmp_path / "c", Request(quality, 205, seed=1))
    same = np.array_equal(open_log(str(tmp_path / "c"), None).observation, log.observation)
    assert same == (quality == "medium-replay" and other["medium_step"] == facts["medium_step"])


def test_the_qualities_are_in_their_order(run, tmp_path):
    score = {name: make_log(run, tmp_path / name, Request(name, 400))["score_mean"] for name in ("random", "expert")}
    assert score["expert"] > 60 > 25 > score["random"]


def test_a_medium_replay_is_what_was_stored(run, tmp_path):
    from upslope.actor_critic.log import run_log

    facts = make_log(run, tmp_path / "m", Request("medium-replay"))
    log, stored = open_log(str(tmp_path / "m"), None), run_log(run)
    count = 80 * facts["medium_step"]
    np.testing.assert_allclose(log.action, stored.action[:count], atol=1e-6)
    np.testing.assert_array_equal(log.observation, stored.observation[:count])


def test_copies_share_the_transitions_and_every_episode_has_its_end():
    environments = open_environments("Pendulum-v1", 3, 0, settings={"max_episode_steps": 7}, convention="scale")
    found = record(environments, lambda rows: np.zeros((len(rows), 1), np.float32), 50)
    assert [len(one.rewards) for one in found] == [7] * 9
    assert all(one.truncations[-1] and not one.truncations[:-1].any() for one in found)
    assert all(len(one.observations) == len(one.rewards) + 1 for one in found)
    environments.close()


def test_split_keeps_terminations():
    rows = np.arange(5.0)[:, None]
    ends = np.array([0, 1, 0, 0, 0])
    found = split(rows, rows + 1, rows, rows[:, 0], ends, ends * 0)
    assert [one.observations[:, 0].tolist() for one in found] == [[0, 1, 2], [2, 3, 4, 5]]
    assert [one.terminations[-1] for one in found] == [True, False]
    assert [one.truncations[-1] for one in found] == [False, True]


STOPPING = """
    def step(self, action):
        if os.path.exists("stop") and os.path.exists(rows := "run/metrics.jsonl") and os.path.getsize(rows):
            os.remove("stop")
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_no_log_is_made_of_a_run_that_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stopping = LINE.replace("\n    def step(self, action):\n", STOPPING)
    (tmp_path / "line.py").write_text(f"import os\nimport signal\n{stopping}")
    line = (
        "data make --env line.py:Line --quality random --out log --run run --transitions 40 --steps 4 --checkpoints 4"
    )
    settings = [f"--set={name}={json.dumps(value)}" for name, value in TRAIN.items()]
    (tmp_path / "stop").touch()
    assert main([*line.split(), *settings]) == 1
    assert "the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "log").exists()
    assert main([*line.split(), *settings]) == 0
    assert (tmp_path / "log").is_dir()


def test_medium_is_no_checkpoint_from_before_it_was_reached():
    untrained_then_a_leap = {1: 15.0, 2: 15.0, 3: 55.0, 4: 50.0, 5: 90.0}
    assert nearest(untrained_then_a_leap, 100 / 3) == 4
    assert nearest({1: 30.0, 2: 51.0, 3: 29.0, 4: 100.0}, 100 / 3) == 3
    assert nearest({1: -5.0, 2: 20.0, 3: 10.0}, 100 / 3) == 2


def test_all_qualities_come_of_one_training_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(LINE)
    line = "data make --env line.py:Line --quality all --out logs --run run --transitions 40 --steps 4 --checkpoints 4"
    settings = [f"--set={name}={json.dumps(value)}" for name, value in TRAIN.items()]
    assert main([*line.split(), *settings]) == 0
    capsys.readouterr()
    names = ["random", "medium", "medium-replay", "medium-expert", "expert"]
    about = [json.loads((tmp_path / "logs" / name / "data" / "metadata.json").read_text()) for name in names]
    for name in ("ref_min_score", "ref_max_score"):
        assert len({one[name] for one in about}) == 1
    assert [one["upslope"]["quality"] for one in about] == names
    made_singly = make_log(tmp_path / "run", tmp_path / "single", Request("expert", 40))
    assert made_singly == about[-1]["upslope"]
    trained = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "logs" / "medium")
    assert main([*line.split(), *settings]) == 0
    assert capsys.readouterr().out.count("has this log already") == 4
    assert (tmp_path / "logs" / "medium").is_dir()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == trained


def test_what_is_there_is_not_made_again_nor_overwritten(run, tmp_path):
    assert not already_made(tmp_path, Request("random", 20))
    facts = {"method": "sac", "steps": 4}
    make_log(run, tmp_path, Request("random", 20))
    assert already_made(tmp_path, Request("random", 20), **facts)
    with pytest.raises(UsageError, match="has another log already"):
        already_made(tmp_path, Request("random", 20), method="td3")
    with pytest.raises(UsageError, match="has another log already"):
        already_made(tmp_path, Request("expert", 20))


def test_a_run_that_learned_nothing_is_no_expert(run, tmp_path, monkeypatch):
    from upslope.offline import making

    monkeypatch.setattr(making.ControlPolicy, "load", classmethod(lambda cls, folder: _Left()))
    with pytest.raises(UsageError, match="no more than uniform actions"):
        make_log(run, tmp_path / "x", Request("expert"))
    assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError, match="no quality 'best'"):
        Request("best")


class _Left:
    convention = "scale"

    def act(self, rows, generator=None, deterministic=False):
        return -np.ones((len(rows), 1), np.float32), None


def test_the_command_makes_a_log_of_discrete_actions_by_ppo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = (
        "data make --env CartPole-v1 --method ppo --quality random --out log --transitions 60 --steps 8 --checkpoints 2"
    )
    assert main(line.split()) == 0
    assert "log: " in capsys.readouterr().out
    about = json.loads((tmp_path / "log" / "data" / "metadata.json").read_text())
    assert json.loads(about["action_space"])["type"] == "Discrete"
    assert gymnasium.envs.registration.EnvSpec.from_json(about["env_spec"]).id == "CartPole-v1"
    assert main([*line.split(), "--json"]) == 2
    assert main(["data", "make", "--env", "x", "--quality", "best", "--out", "y"]) == 2
    assert "--quality takes random, medium, " in capsys.readouterr().err
    assert main(line.split()) == 0
    assert "has this log already" in capsys.readouterr().out
    assert main(["diagnose", "data", "log"]) == 0
    assert "TQ" in capsys.readouterr().out
    assert main(line.replace("random", "medium-replay").replace("--out log", "--out other").split()) == 2
    assert "stores nothing" in capsys.readouterr().err


def test_a_run_with_noise_on_its_observations_is_played_with_it(tmp_path, monkeypatch):
    """Noise of 0.3: what is logged is seen with it, and two looks at a place differ by as much."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(LINE)
    task = f"{tmp_path / 'line.py'}:Line"
    with Trainer("sac", task=task, steps=4, out="run", observation_noise=0.3, **RUN, **TRAIN) as trainer:
        trainer.train()
    for quality in ("random", "expert", "medium-replay"):
        facts = make_log(tmp_path / "run", tmp_path / quality, Request(quality, 400))
        assert facts["observation_noise"] == 0.3
        log = open_log(str(tmp_path / quality), None)
        inside = np.abs(log.observation[:, 0] + 0.6 * log.action[:, 0]) < 4
        apart = (log.next_observation - log.observation - 0.6 * log.action)[inside, 0]
        assert apart.std() == pytest.approx(0.3 * 2**0.5, rel=0.2)
        assert "rollout.observation_noise=0.3" in log.notes[0]
    with Trainer("bc", data=str(tmp_path / "random"), task=task, steps=1, **RUN, **{"policy.hidden": [8]}) as trainer:
        assert "noise of standard deviation 0.3" in trainer.parts.task.describe()
