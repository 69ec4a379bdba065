"""`upslope probe`: a table and JSON on a real model and task, and one line for what is wrong."""

import json

import pytest

from upslope import Trainer

from .scene import put, run_here

DATA = "--model TOY --data questions.jsonl --reward mine.py:score --batches 4 --prompts 2 --group-size 4"
LETTERS = (
    "def score(completions, **columns):\n    return [float(any(c.islower() for c in one)) for one in completions]\n"
)


def test_table_and_json(here, toy, capsys):
    put(here, {"mine.py": LETTERS}, toy)
    assert run_here(f"probe grpo dr_grpo:ratio_high=1.5 {DATA}", toy) == 0
    text = capsys.readouterr().out
    for word in ("32 rollouts", "signal/noise", "dr_grpo", "cosine to reward", "entropy"):
        assert word in text
    assert run_here(f"probe grpo ppo_llm {DATA} --json", toy) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["batches"] == 4
    assert [method["name"] for method in found["methods"]] == ["grpo", "ppo_llm"]
    assert {"value", "low", "high"} == found["methods"][0]["snr"].keys()
    assert not list(here.glob("probe*")), "nothing is written"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("probe", "name at least one method"),
        ("probe grpo --task chain_sum --batches 3", "--batches is 3; it must be at least 4"),
        ("probe grpo --task chain_sum --group-size 1", "--group-size is 1; it must be at least 2"),
        ("probe grpo", "no task"),
        ("probe grpoo --task chain_sum", "grpo"),
        ("probe grpo:nothing=3 --task chain_sum", "nothing"),
        ("probe grpo dpo --task chain_sum", "'dpo' learns from pairs that a file gives"),
        ("probe grpo_guard --task chain_sum", "'grpo_guard' reads"),
    ],
)
def test_wrong_usage(here, toy, capsys, line, says):
    assert run_here(line, toy) == 2
    complaint = capsys.readouterr().err
    assert says in complaint
    assert complaint.count("\n") == 1


def test_methods_that_learn_in_an_environment(here, toy, capsys):
    line = "probe ppo a2c ppo:lam=0 --task CartPole-v1 --batches 4 --episodes 8 --set hidden=[8]"
    assert run_here(line, toy) == 0
    text = capsys.readouterr().out
    for word in ("4 batches of 8 episodes of CartPole-v1", "that ppo begins with", "cosine to return", "ppo:lam=0"):
        assert word in text
    settings = {"hidden": [8], "eval": {"episodes": 0}, "sinks": [], "self_checks": False, "steps": 1}
    with Trainer("a2c", task="CartPole-v1", out="run", **settings) as trainer:
        trainer.train()
    assert run_here(f"{line} --model run --json", toy) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (found["model"], found["episodes"], found["task"]) == ("run", 8, "CartPole-v1")
    assert [method["name"] for method in found["methods"]] == ["ppo", "a2c", "ppo:lam=0"]
    wider = line.replace("hidden=[8]", "hidden=[16]")
    assert run_here(f"{wider} --model run", toy) == 2
    said = capsys.readouterr().err
    assert "the networks of run are not those of 'ppo'" in said
    assert "size mismatch for body" in said
    assert "Give the run's own --task" in said


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("probe ppo --task CartPole-v1 --episodes 1", "--episodes is 1; it must be at least 2"),
        ("probe sac td3 --task Pendulum-v1", "'sac' learns from stored transitions by a critic"),
        ("probe ppo sac --task Pendulum-v1", "'sac' learns from stored transitions by a critic"),
        ("probe ppo grpo --task CartPole-v1", "'grpo' does not play in an environment"),
        ("probe ppo", "no task"),
        ("probe ppo --task CartPole-v7", "CartPole-v7"),
        ("probe ppo --task CartPole-v1 --model nothing", "there is no checkpoint in nothing"),
    ],
)
def test_wrong_usage_in_an_environment(here, toy, capsys, line, says):
    assert run_here(line, toy) == 2
    complaint = capsys.readouterr().err
    assert says in complaint
    assert complaint.count("\n") == 1
