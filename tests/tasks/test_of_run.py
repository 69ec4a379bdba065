"""What a run played in, where only the log that it learned from says so."""

import shutil

import numpy as np
import pytest

from upslope import Trainer
from upslope.__main__ import main
from upslope.actor_critic.log import open_log, task_of_log
from upslope.offline.minari import task_of_minari
from upslope.tasks.of_run import run_environment, with_task

SMALL = {"policy.hidden": [8], "batch_size": 16, "rollout.steps": 20}
RUN = {"eval": {"episodes": 1}, "checkpoint_every": 1, "threads": 1, "sinks": [], "self_checks": False}
MAZE = {"maze": "open", "max_episode_steps": 15}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A run of sac in a maze with settings of its own."""
    folder, more = tmp_path_factory.mktemp("played") / "run", {"critic.hidden": [8], "rollout.warmup": 10}
    options = {"task": "upslope/PointMaze-v0", "task_settings": MAZE, **RUN, **SMALL, **more}
    with Trainer("sac", steps=2, out=folder, **options) as trainer:
        trainer.train()
    return folder


def test_a_log_names_its_environment_without_being_read(played, tmp_path):
    assert task_of_log(str(played)) == ("upslope/PointMaze-v0", MAZE)
    assert task_of_log(str(tmp_path)) == task_of_log(str(tmp_path / "lost")) == (None, {})
    np.savez(tmp_path / "log.npz", rewards=np.zeros(3))
    assert task_of_log(str(tmp_path / "log.npz")) == task_of_minari(tmp_path / "log.npz") == (None, {})


def test_a_runs_own_settings_lie_over_the_logs(played):
    values = {"task": None, "data": str(played), "task_settings": {"maze": "u"}}
    assert with_task(values)["task_settings"] == {"maze": "u", "max_episode_steps": 15}
    own = {"task": "Pendulum-v1", "data": str(played)}
    assert with_task(own) == own
    assert with_task({"task": None, "data": None}) == {"task": None, "data": None}


def test_eval_plays_what_the_log_was_of(played, tmp_path, capsys):
    with Trainer("bc", data=str(played), steps=1, out=tmp_path / "bc", **RUN, **SMALL) as trainer:
        trainer.train()
    assert main(["eval", str(tmp_path / "bc"), "--episodes", "3"]) == 0
    told = capsys.readouterr().out
    assert "3 episodes of upslope/PointMaze-v0" in told
    assert float(told.partition("mean length ")[2].split()[0]) <= 15
    found = run_environment(tmp_path / "bc")
    assert (found.task, found.settings) == ("upslope/PointMaze-v0", MAZE)


def test_eval_says_that_the_log_is_gone(played, tmp_path, capsys):
    shutil.copytree(played, tmp_path / "log")
    with Trainer("bc", data=str(tmp_path / "log"), steps=1, out=tmp_path / "bc", **RUN, **SMALL) as trainer:
        trainer.train()
    shutil.rmtree(tmp_path / "log")
    assert main(["eval", str(tmp_path / "bc"), "--episodes", "3"]) == 2
    assert "log, which names no environment, or is not there" in capsys.readouterr().err


def test_an_older_store_has_its_settings_from_the_config(played, tmp_path):
    shutil.copytree(played, tmp_path / "log")
    about = tmp_path / "log/replay/about.json"
    about.write_text('{"observation": 6, "action": 2, "environments": 1, "task": "upslope/PointMaze-v0"}')
    assert open_log(str(tmp_path / "log"), None).task_settings == MAZE
