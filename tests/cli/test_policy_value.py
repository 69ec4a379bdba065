"""upslope eval RUN of a policy in an environment: normalized scores, and estimates by a log."""

import json
import math

import numpy as np
import pytest

from upslope import Trainer
from upslope.__main__ import main
from upslope.offline.making import Request, make_log

QUICK = {
    "eval": {"episodes": 2, "every": 1},
    "checkpoint_every": 1,
    "keep_checkpoints": 9,
    "sinks": [],
    "self_checks": False,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`run`: PPO on CartPole; `log`: what its best checkpoint has played; `blind.npz`: a log without log-probs."""
    folder = tmp_path_factory.mktemp("here")
    settings = {"rollout.environments": 4, "rollout.steps": 128, "lr": 3e-3, "task_settings": {"max_episode_steps": 60}}
    with Trainer("ppo", task="CartPole-v1", steps=4, out=folder / "run", **QUICK, **settings) as trainer:
        trainer.train()
    facts = make_log(folder / "run", folder / "log", Request("expert", 300))
    rows = np.random.default_rng(0)
    ends = (np.arange(20) % 5 == 4).astype(np.float32)
    np.savez(
        folder / "blind.npz",
        observations=rows.uniform(-1, 1, (20, 4)),
        next_observations=rows.uniform(-1, 1, (20, 4)),
        actions=rows.integers(2, size=(20, 1)),
        rewards=np.ones(20),
        terminals=ends,
    )
    return folder, facts


@pytest.fixture
def say(place, monkeypatch, capsys):
    monkeypatch.chdir(place[0])

    def run(line):
        status = main(line.split())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_what_played_the_log_weighs_its_episodes_alike(say, place):
    _, facts = place
    checkpoint = f"run/checkpoints/step-{facts['expert_step']:06d}"
    status, out, err = say(f"eval {checkpoint} --data log --set fqe_steps=20 --set discount=0.9 --json")
    assert status == 0, err
    found = json.loads(out)
    assert found["ess"] == pytest.approx(facts["episodes"], rel=1e-3)
    assert found["ips"] == pytest.approx(found["logged_discounted"], rel=1e-3)
    assert found["discount"] == 0.9
    status, out, _ = say(f"eval {checkpoint} --data log --set fqe_steps=20")
    for name in ("FQE", "IPS", "WIS", "PDIS", "WPDIS", "DR", "WDR", "ESS"):
        assert f"\n{name} " in out


def test_few_effective_episodes_are_told(say):
    _, out, _ = say("eval run/checkpoints/step-000000 --data log --set fqe_steps=5")
    assert "ESS" in out
    ess = float(out.split("ESS")[1].split()[0])
    assert ("say little" in out) == (ess < 10)


def test_a_log_without_log_probs_gives_fqe_alone(say):
    status, out, err = say("eval run --data blind.npz --set fqe_steps=20")
    assert status == 0, err
    assert "no log-probs of its actions" in out
    assert "IPS" not in out
    status, out, _ = say("eval run --data log --set fqe_steps=20 --set eval.deterministic=true")
    assert "its likeliest actions" in out
    assert "no density" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("eval run --data log --episodes 3", "are not read"),
        ("eval run --data log --task CartPole-v1", "are not read"),
        ("eval run --data nowhere", "there is no log nowhere"),
        ("eval run --data log --set bins=3", "has no setting bins"),
        ("eval run --data log --set discount=1", "discount is 1"),
        ("eval run --data log --set ratio_clip=0", "ratios are cut at a bound above 0"),
        ("eval run --data plain --set ratio_clip=-1", "ratio_clip is -1; ratios are cut at a bound above 0"),
        ("eval run --data log --set eval.deterministic=3", "true or false"),
        ("eval run --reference 5 5", "must be above"),
        ("eval tiny --reference 0 5 --task chain_sum", "--reference is of a policy in an environment"),
        ("eval tiny --video-episodes 4 --task chain_sum", "--video-episodes is of a policy"),
    ],
)
def test_what_is_wrong_is_said(say, line, words):
    status, _, err = say(line)
    assert status == 2
    assert words in err


def test_score_by_given_references(say):
    status, out, err = say("eval run --episodes 2 --reference 10 60 --json")
    assert status == 0, err
    found = json.loads(out)
    assert found["eval/normalized_score"] == pytest.approx(2 * (found["eval/return"] - 10))
    assert (found["random_return"], found["expert_return"]) == (10, 60)
    _, out, _ = say("eval run --episodes 2 --reference 10 60")
    assert "normalized score" in out
    _, out, _ = say("eval run --episodes 2")
    assert "normalized score" not in out


def test_whose_references_are_taken(place):
    from upslope.cli.returns import _references

    folder, facts = place
    log = str(folder / "log")
    assert _references({"data": log, "task": "A-v0"}, "A-v0", (1.0, 2.0)) == ((1.0, 2.0), "as given")
    low, high = _references({"data": log, "task": "CartPole-v1"}, "CartPole-v1", None)[0]
    assert (low, high) == (facts["random_return"], facts["expert_return"])
    assert _references({"data": log, "task": "CartPole-v1"}, "Other-v1", None)[0] is None
    of_d4rl = _references({"data": str(folder / "blind.npz")}, "HalfCheetah-v5", None)
    assert of_d4rl == ((-280.178953, 12135.0), "D4RL's, of HalfCheetah-v2")
    assert _references({}, "mine.py:Hopper", None)[0] is None
    assert math.isclose(_references({}, "Walker2d-v4", None)[0][1], 4592.3)
