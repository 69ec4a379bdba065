"""upslope diagnose data: what it says of a log, and what it refuses."""

import json

import numpy as np
import pytest

from upslope import Trainer
from upslope.__main__ import main


@pytest.fixture
def log(here):
    """log.npz: four episodes of five steps on Pendulum's spaces, returns 0, 1, 2, 3."""
    rows = np.random.default_rng(0)
    ends = (np.arange(20) % 5 == 4).astype(np.float32)
    np.savez(
        here / "log.npz",
        observations=rows.uniform(-1, 1, (20, 3)),
        next_observations=rows.uniform(-1, 1, (20, 3)),
        actions=rows.uniform(-1, 1, (20, 1)),
        rewards=np.repeat(np.arange(4.0), 5) / 5,
        terminals=ends * 0,
        timeouts=ends,
    )
    return "log.npz"


def said(capsys, line):
    assert main(line.split()) == 0
    return capsys.readouterr().out


def test_returns_tq_and_saco(log, capsys):
    found = json.loads(
        said(capsys, f"diagnose data {log} --set random_return=0 --set best_return=3 --reference {log} --json")
    )
    assert (found["transitions"], found["episodes"], found["terminated"]) == (20, 4, 0)
    assert found["return_mean"] == pytest.approx(1.5)
    assert (found["return_least"], found["return_most"]) == pytest.approx((0, 3), abs=1e-6)
    assert found["tq"] == pytest.approx(0.5)
    assert found["return_psv"] == pytest.approx((0.5**2 + 1.5**2) / 4, rel=1e-4)
    assert found["saco"] == 1
    text = said(capsys, f"diagnose data {log}")
    assert "20 transitions in 4 episodes" in text
    assert "TQ      unknown" in text
    assert "PSV     0.625" in text


def test_a_policy_is_evaluated_on_it(log, here, capsys):
    settings = {"policy.hidden": [8], "critic.hidden": [8], "rollout.steps": 3, "batch_size": 4}
    with Trainer("iql", data=log, task="Pendulum-v1", steps=1, out=here / "run", sinks=[], **settings) as trainer:
        trainer.train()
    found = json.loads(said(capsys, f"diagnose data {log} --policy run --set fqe_steps=40 --set discount=0.5 --json"))
    assert abs(found["fqe"]) < 3
    assert found["logged_discounted"] == pytest.approx(np.mean(np.arange(4) / 5) * (1 - 0.5**5) / 0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("nowhere.npz", "there is no log nowhere.npz"),
        ("log.npz --set bin=3", "has no setting bin"),
        ("log.npz --set bins=0", "bins is 0; it must be at least 1"),
        ("log.npz --set best_return=x", "best_return is 'x'; it must be a number"),
        ("log.npz --set random_return=2 --set best_return=1", "best return above"),
        ("log.npz --beta 1", "does not read --beta"),
        ("log.npz --policy tiny", "tiny is no run or checkpoint of a policy"),
    ],
)
def test_what_is_wrong_is_said(log, capsys, options, words):
    assert main(["diagnose", "data", *options.split()]) == 2
    assert words in capsys.readouterr().err
