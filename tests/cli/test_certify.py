"""`upslope certify`: the table, the files that it writes, and one line for what is wrong."""

import json
from xml.etree import ElementTree as ET

import pytest

from upslope import Trainer

from .scene import put, run_here

TINY = {
    "eval": {"episodes": 0}, "threads": 1, "steps": 1, "rollout.environments": 8, "rollout.steps": 8, "minibatches": 1,
    "self_checks": False, "sinks": [],
}  # fmt: skip
RUNS = {
    "smooth": ("policy_smoothing", "CartPole-v1", {"task_settings": {"max_episode_steps": 60}}),
    "plain": ("ppo", "CartPole-v1", {}),
    "swing": (
        "ppo@continuous",
        "Pendulum-v1",
        {"task_settings": {"max_episode_steps": 5}, "rollout.observation_noise": 0.1},
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, (method, task, settings) in RUNS.items():
        with Trainer(method, task=task, out=folder / name, **TINY, **settings) as trainer:
            trainer.train()
    return folder


@pytest.fixture
def say(toy, capsys):
    def run(line, status=0):
        assert run_here(line, toy) == status, capsys.readouterr().err
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return run


def test_table_files_and_attacks(runs, say):
    out = say(
        f"certify {runs / 'smooth'} --episodes 200 --budgets 0 0.1 --attack --attack-episodes 6 --thresholds 20 40"
    )
    for words in (
        "noise 0.2",
        "over 200 episodes",
        "certified return",
        "P(return >= 20)",
        "timed",
        "taken for granted",
    ):
        assert words in out
    found = json.loads((runs / "smooth" / "certificate.json").read_text())
    zero, row = found["rows"]
    assert 0 < row["mean_return"] < zero["mean_return"] < found["clean_return"] < 60
    assert row["probability"]["20"] < zero["probability"]["20"] <= 1
    assert (found["band"], found["thresholds"], found["sigma"]) == ("clopper-pearson", 60, 0.2)
    assert set(row["attacks"]) == {"random", "uniform", "early", "once", "left", "right", "learned", "timed"}
    assert "attacks" not in zero
    for attack in row["attacks"].values():
        assert attack["episodes"] == 6
        assert attack["low"] <= attack["mean"] <= attack["high"]
        assert attack["spent"] <= 0.1 * (1 + 1e-6)
    picture = ET.parse(runs / "smooth" / "certificate.svg").getroot()
    words = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"certified", "timed", "budget / noise"} <= set(words)


def test_the_same_again_and_another_sigma(runs, say, tmp_path):
    line = f"certify {runs / 'smooth'} --episodes 100 --json --out {tmp_path}"
    one, other = json.loads(say(line)), json.loads(say(line))
    assert one == other
    assert [row["budget"] for row in one["rows"]] == [0, 0.05, 0.1, 0.2, 0.3, 0.4]
    wider = json.loads(say(f"{line} --sigma 0.4"))
    assert "trained with noise 0.2 and plays with 0.4" in wider["notes"][0]
    assert wider["rows"][-1]["budget"] == 0.8
    assert json.loads((tmp_path / "certificate.json").read_text()) == wider
    assert json.loads(say(f"certify {runs / 'plain'} --sigma 0.1 --episodes 50 --budgets 0 --json --out {tmp_path}"))


def test_returns_that_are_no_whole_numbers(runs, say, tmp_path):
    assert "a number that no return can be below" in say(f"certify {runs / 'swing'} --episodes 100", 2)
    line = f"certify {runs / 'swing'} --episodes 300 --lowest -85 --budgets 0 0.05 --json --out {tmp_path}"
    found = json.loads(say(line))
    assert found["band"] == "dkw"
    assert -85 < found["rows"][1]["mean_return"] < found["rows"][0]["mean_return"] < found["clean_return"]
    assert "says nothing at budget 5" in say(line.replace("0.05", "5").replace("--json", ""))


def test_eval_plays_with_the_noise(runs, say):
    assert "noise 0.2 on observations" in say(f"eval {runs / 'smooth'} --episodes 8")
    assert "noise" not in say(f"eval {runs / 'plain'} --episodes 8")
    noisier = (say(f"eval {runs / 'smooth'} --episodes 8 --set rollout.observation_noise={std}") for std in (0.2, 5))
    assert next(noisier) != next(noisier)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("certify plain", "was trained without noise"),
        ("certify smooth --sigma 0", "--sigma is 0; it is a standard deviation, above 0"),
        ("certify smooth --episodes 5", "--episodes 5 cannot certify anything at --alpha 0.05: take at least 11"),
        ("certify smooth --alpha 2", "alpha is 2"),
        ("certify smooth --budgets 0 -1", "--budgets has -1"),
        ("certify smooth --lowest 59 --episodes 50", "below lowest=59"),
        ("certify smooth --attack --attack-episodes 1", "--attack-episodes is 1"),
        ("certify nothing", "there is no policy for an environment in nothing"),
        ("certify TOY", "there is no policy for an environment"),
        ("certify", "missing"),
    ],
)
def test_wrong_usage(runs, say, monkeypatch, toy, line, says):
    put(runs, {}, toy)
    monkeypatch.chdir(runs)
    complaint = say(line, 2)
    assert says in complaint
    assert complaint.count("\n") == 1
