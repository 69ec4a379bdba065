"""`upslope train METHOD --task ENV --hyperparameters FILE`."""

import pytest
import yaml

from upslope import UsageError
from upslope.__main__ import main
from upslope.cli import run

ENTRY = """
CartPole-v1:
  n_envs: 2
  n_steps: 8
  batch_size: 8
  n_epochs: 2
  n_timesteps: 40
  learning_rate: lin_0.001
  clip_range: lin_0.2
  use_sde: True
"""
QUICK = ["--set", "eval.episodes=0", "--set", "sinks=[]"]


@pytest.fixture
def file(tmp_path):
    place = tmp_path / "ppo.yml"
    place.write_text(ENTRY)
    return str(place)


def test_trains_by_the_entry_and_tells_what_differs(file, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "ppo", "--task", "CartPole-v1", "--hyperparameters", file, "--out", str(out), *QUICK]
    assert run([*words, "--set", "optimizer.eps=1e-6"]) == 0
    said = capsys.readouterr().out
    assert "the entry CartPole-v1, over ppo@sb3" in said
    assert "use_sde=True" in said
    assert "n_timesteps=40: 3 steps of 16 actions are 48" in said
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["method"], config["steps"]) == ("ppo@sb3", 3)
    assert config["settings"]["surrogate.schedule"] == "linear"
    assert config["settings"]["optimizer.eps"] == 1e-6  # --set lies over the file
    assert run(["train", "--out", str(out), "--resume", "--steps", "4", "--set", "sinks=[]"]) == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--resume", "--out", "x"], "Leave one out"),
        (["--config", "x.yaml"], "Leave one out"),
        (["--method-less"], "does not take"),
    ],
)
def test_what_does_not_go_together(file, more, says):
    with pytest.raises(UsageError, match=says):
        run(["train", "ppo", "--task", "CartPole-v1", "--hyperparameters", file, *more])


def test_needs_a_task(file):
    with pytest.raises(UsageError, match="needs a method and a task"):
        run(["train", "ppo", "--hyperparameters", file])


def test_hostile_text_ends_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yml").write_text("CartPole-v1:\n  policy_kwargs: \"__import__('os').system('touch hacked')\"\n")
    assert main(["train", "ppo", "--task", "CartPole-v1", "--hyperparameters", "bad.yml"]) == 2
    assert "nothing in a file is run" in capsys.readouterr().err
    assert {place.name for place in tmp_path.iterdir()} == {"bad.yml"}
