"""The second loop: it repeats itself, goes on after any kill, learns online, from a log and from both, and fails in words."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from upslope import Trainer, UsageError, make
from upslope.actor_critic.log import open_log, run_log
from upslope.actor_critic.replay import pieces
from upslope.policies.control import ControlPolicy
from upslope.runs.metrics import read_metrics

from .line import Line

SMALL = {"policy.hidden": [8], "critic.hidden": [8], "batch_size": 16, "rollout.steps": 30, "rollout.warmup": 40}
RUN = {"eval": {"every": 2, "episodes": 2}, "checkpoint_every": 1, "threads": 1, "sinks": []}


def train(method, steps, out=None, **settings):
    options = {"task": Line, **RUN, **SMALL, **settings}
    options = {name: value for name, value in options.items() if value is not None}
    if make(method).critic is None:
        options.pop("critic.hidden")
    with Trainer(method, steps=steps, out=out, **options) as trainer:
        return trainer.train()


def weights(trainer):
    found = {name: flat.values for name, flat in trainer.parts.learner.flats.items()}
    return found | {f"target {name}": target.values for name, target in trainer.parts.learner.targets.items()}


def same(one, other):
    assert weights(one).keys() == weights(other).keys()
    for name, values in weights(one).items():
        assert torch.equal(values, weights(other)[name]), name
    a, b = one.parts.replay, other.parts.replay
    assert a.added == b.added
    assert torch.equal(a.rows[: len(a)], b.rows[: len(b)])
    drop = ("time/", "updates_per_second")
    rows = [[{k: v for k, v in row.items() if not k.startswith(drop)} for row in t.rows] for t in (one, other)]
    last = len(rows[1])
    assert rows[0][-last:] == rows[1]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("sac", {}),
        ("sac", {"capacity": 50, "environments": 3}),
        ("td3", {"capacity": 70}),
        ("redq", {"members": 3, "per_step": 2, "actor_every": 2}),
        ("droq", {"per_step": 2, "actor_every": 2}),
    ],
)
def test_a_resumed_run_is_the_run(tmp_path, method, settings):
    whole = train(method, 5, tmp_path / "whole", **settings)
    train(method, 2, tmp_path / "parts", **settings)
    parts = train(method, 5, tmp_path / "parts", resume=True, **settings)
    same(whole, parts)
    assert whole.rows[-1]["env_steps"] == 150 * settings.get("environments", 1)


def test_the_same_seed_gives_the_same_run_and_another_another():
    one, other, third = train("sac", 2), train("sac", 2), train("sac", 2, seed=1)
    same(one, other)
    assert not torch.equal(weights(one)["policy"], weights(third)["policy"])


def test_what_is_stored_is_what_was_played(tmp_path):
    trainer = train("sac", 3, tmp_path / "run")
    replay, layout = trainer.parts.replay, trainer.parts.layout
    assert len(replay) == 90
    place, action = replay.column("observation")[:, 0], replay.column("action")[:, 0]
    following, ended = replay.column("next_observation")[:, 0], replay.column("terminated")[:, 0]
    torch.testing.assert_close(
        following, (place + 0.3 * 2 * action).clamp(-5, 5), atol=1e-6, rtol=0
    )  # the box is [-2, 2]
    assert torch.equal(ended > 0, following > 3)
    cut = replay.column("truncated")[:, 0] > 0
    assert cut.any()
    assert not (cut & (ended > 0)).any()
    going_on = ~(cut | (ended > 0))[:-1]
    assert torch.equal(following[:-1][going_on], place[1:][going_on])
    assert layout.width == 1 + 1 + 3 + 1


def test_the_first_actions_are_uniform():
    trainer = train("td3", 2, **{"rollout.steps": 2000, "rollout.warmup": 3999})
    action = trainer.parts.replay.column("action")[:, 0]
    assert float(action.mean()) == pytest.approx(0, abs=0.05)
    assert float(action.std()) == pytest.approx(3**-0.5, rel=0.03)
    assert trainer.parts.learner.updates == 1


def test_checkpoints_hold_a_policy_that_acts_alike(tmp_path):
    trainer = train("sac", 3, tmp_path / "run")
    found = ControlPolicy.load(tmp_path / "run/checkpoints/step-000003")
    observation = np.array([[0.3], [-2.0]], np.float32)
    mine = trainer.parts.policy.act(observation, deterministic=True)[0]
    np.testing.assert_array_equal(found.act(observation, deterministic=True)[0], mine)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A run whose stored transitions serve as a log."""
    folder = tmp_path_factory.mktemp("log") / "run"
    train("sac", 4, folder, **{"rollout.warmup": 60})
    return folder


OFFLINE = ["bc", "td3_bc", "rebrac", "iql", "awac", "cql", "sac_n", "edac", "td3", "sac"]


@pytest.mark.parametrize("method", OFFLINE)
def test_offline_and_resumed(tmp_path, played, method):
    settings = {"data": str(played), "rollout.warmup": None, "rollout.steps": 12}
    if method == "cql":
        settings["samples"] = 2
    if method == "iql":
        settings["actor_schedule"] = (
            "constant"  # the other one ends at the run's last step, so a longer run is another run
        )
    whole = train(method, 3, tmp_path / "whole", **settings)
    train(method, 1, tmp_path / "parts", **settings)
    same(whole, train(method, 3, tmp_path / "parts", resume=True, **settings))
    assert whole.parts.learner.updates == 36
    assert "env_steps" not in whole.rows[-1]
    assert whole.rows[-1]["eval/episodes"] == 2


def test_observations_are_standardized_by_the_log_and_so_is_evaluation(played, tmp_path):
    trainer = train("td3_bc", 1, tmp_path / "run", data=str(played), **{"rollout.warmup": None})
    log = run_log(played)
    offset, factor = trainer.parts.learner.scale
    rows = trainer.parts.logged.rows * factor + offset
    np.testing.assert_allclose(rows[:, 0].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(rows[:, 0].std(unbiased=False), 1, rtol=1e-5)
    policy = ControlPolicy.load(tmp_path / "run/checkpoints/step-000001")
    raw = torch.tensor([[0.7]])
    expected = (0.7 - log.observation.mean()) / log.observation.std()
    torch.testing.assert_close(
        policy.normalized(raw), torch.tensor([[expected]], dtype=torch.float32), atol=1e-5, rtol=0
    )
    head = trainer.parts.learner.networks.policy.mode(torch.tensor([[expected]], dtype=torch.float32))
    np.testing.assert_allclose(policy.act(raw.numpy(), deterministic=True)[0], head.detach(), atol=1e-5)


def test_offline_then_online_is_one_run(tmp_path, played):
    settings = {"data": str(played), "offline_steps": 2, "rollout.warmup": None, "actor_schedule": "constant"}
    whole = train("iql", 4, tmp_path / "whole", **settings)
    assert [row.get("env_steps") for row in whole.rows] == [None, None, None, 30.0, 60.0]
    assert whole.parts.replay.added == 120 + 60
    train("iql", 3, tmp_path / "parts", **settings)
    same(whole, train("iql", 4, tmp_path / "parts", resume=True, **settings))


def test_half_of_each_batch_is_from_the_log(played):
    trainer = train("rlpd", 2, data=str(played), **{"per_step": 1, "members": 2, "rollout.warmup": 0})
    trainer.parts.logged.rows[:] = 1.0
    trainer.parts.replay.rows[:] = 2.0
    batch = trainer._draw(torch.Generator())
    assert (batch[:8] == 1).all()
    assert (batch[8:] == 2).all()
    assert trainer.parts.replay.added == 60


def test_uniform_actions_come_first_unless_a_log_was_learned_from(played):
    settings = {"data": str(played), "per_step": 1, "members": 2, "rollout.warmup": 40}
    trainer = train("rlpd", 2, **settings)
    assert trainer.parts.learner.updates == 20
    assert [row.get("updates") for row in trainer.rows] == [None, 0.0, 20.0]
    after = train("rlpd", 3, offline_steps=1, **settings)
    assert after.parts.learner.updates == 90
    with pytest.raises(UsageError, match=r"the first rollout.warmup=40 actions .* 30 in all"):
        train("rlpd", 1, **settings)


def test_a_failing_environment_loses_nothing_and_the_run_can_go_on(tmp_path):
    fails = [75]
    task = lambda: Line(fails_at=fails[0])  # noqa: E731
    out = tmp_path / "run"
    with pytest.raises(UsageError, match=r"episode 7, step 4 .*the motor has burnt out"):
        train("sac", 4, out, task=task, self_checks=False)
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["env_steps"] == 74
    assert "motor" in (out / "events.jsonl").read_text()
    fails[0] = None
    trainer = train("sac", 5, out, task=task, resume=True)
    assert trainer.rows[-1]["env_steps"] == 74 + 60


def test_divergence_is_named(tmp_path):
    with pytest.raises(
        UsageError, match=r"step 2: the weights of the (critic|policy) are not finite: training has diverged"
    ):
        train("td3", 3, tmp_path / "run", critic_lr=1e30)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("sac", {"task": "CartPole-v1"}, "takes continuous actions, and those of CartPole-v1 are discrete"),
        ("sac", {"prompts_per_step": 3}, "does not read prompts_per_step=3"),
        ("sac", {"optimizer": {"lr": 0.1}}, r"does not read optimizer.lr=0.1. .*update.actor_lr"),
        ("sac", {"device": "cuda"}, "runs on the CPU"),
        ("sac", {"rollout.warmup": 60}, r"the first rollout.warmup=60 actions .* 60 in all"),
        ("iql", {}, "keeps to the actions of a log"),
        ("rebrac", {}, "keeps to the actions of a log"),
        ("td3_bc", {"data": "absent.npz"}, "there is no log absent.npz"),
        ("sac", {"model": "tiny2"}, "takes no model|does not read model"),
    ],
)
def test_wrong_settings(tmp_path, method, settings, message):
    with pytest.raises(UsageError, match=message):
        train(method, 2, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_another_log_on_resume_is_refused(tmp_path, played):
    settings = {"rollout.warmup": None, "data": str(tmp_path / "log.npz")}
    log = run_log(played)
    arrays = {"observations": log.observation, "actions": 2 * log.action, "rewards": log.reward}
    arrays |= {"terminals": log.terminated, "timeouts": log.truncated, "next_observations": log.next_observation}
    np.savez(tmp_path / "log.npz", **arrays)
    train("bc", 1, tmp_path / "run", **settings)
    np.savez(tmp_path / "log.npz", **{name: array[:-3] for name, array in arrays.items()})
    with pytest.raises(UsageError, match="transitions in the log was 120, now 117"):
        train("bc", 2, tmp_path / "run", resume=True, **settings)


def test_a_log_in_a_file_is_the_log_of_the_run(tmp_path, played):
    log = run_log(played)
    arrays = {"observations": log.observation, "actions": 2 * log.action, "rewards": log.reward}
    np.savez(
        tmp_path / "log.npz",
        **arrays,
        terminals=log.terminated,
        timeouts=log.truncated,
        next_observations=log.next_observation,
    )
    bounds = SimpleNamespace(size=1, low=(-2.0,), high=(2.0,))
    found = open_log(str(tmp_path / "log.npz"), bounds)
    for name in ("observation", "reward", "terminated", "truncated", "next_observation"):
        np.testing.assert_array_equal(getattr(found, name), getattr(log, name))
    np.testing.assert_allclose(found.action, log.action, atol=2e-6)


def start(folder, out, steps):
    words = ["train", "sac", "--task", "Pendulum-v1", "--steps", str(steps), "--out", out, "--resume"]
    settings = {**{name: json.dumps(value) for name, value in SMALL.items()}, "rollout.warmup": 60, "capacity": 200}
    settings |= {"eval.every": 7, "eval.episodes": 1, "checkpoint_every": 2, "threads": 1, "sinks": "[]"}
    settings |= {"update.actor_schedule": "linear", "update.critic_schedule": "cosine"}
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "upslope", *words], cwd=folder, env=environment, **pipes)


def test_killed_and_resumed_through_the_command_line(tmp_path):
    """kill -9 at random moments: the same files, to the byte, as a run that was left alone."""
    chance, steps = random.Random(0), 60
    out, err = start(tmp_path, "straight", steps).communicate(timeout=240)
    assert "finished" in out, err
    for _ in range(3):
        process = start(tmp_path, "killed", steps)
        next((line for line in process.stdout if line.startswith("step ")), None)
        time.sleep(chance.uniform(0.02, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    out, err = start(tmp_path, "killed", steps).communicate(timeout=240)
    assert "finished" in out or "already been trained" in out, err
    one, two = tmp_path / "straight", tmp_path / "killed"
    last = f"checkpoints/step-{steps:06d}"
    for name in (f"{last}/model.safetensors", f"{last}/trainer/tensors.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    for name in ("straight", "killed"):
        assert pieces(tmp_path / name / "replay")
    a, b = run_log(one), run_log(two)
    for name in ("observation", "action", "reward"):
        length = min(len(a), len(b))
        np.testing.assert_array_equal(getattr(a, name)[-length:], getattr(b, name)[-length:])
