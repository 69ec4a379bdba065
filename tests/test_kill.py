"""A run that is killed by `kill -9` at random moments and resumed each time ends as one that was left alone, bit for bit."""

import json
import os
import random
import subprocess
import sys
import time

import pytest

from upslope.runs.metrics import read_metrics

SETTINGS = {
    "max_tokens": 8,
    "eval.prompts": 2,
    "eval.samples": 2,
    "eval.every": 5,
    "prompts_per_step": 2,
    "rollout.group_size": 4,
    "checkpoint_every": 3,
    "self_checks": "false",
    "threads": 1,
}
REWARD = "def score(prompts, completions, **columns):\n    return [sum(c.islower() for c in one) / 8 for one in completions]\n"


def start(folder, toy, out, steps):
    words = ["train", "grpo", "--model", toy, "--data", "questions.jsonl", "--reward", "mine.py:score"]
    words += ["--steps", str(steps), "--out", out, "--resume"]
    words += [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "upslope", *words], cwd=folder, env=environment, **pipes)


def finish(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def kill(process, delay, wait):
    """Kills the process `delay` seconds after its first step is told (or after its start, if not `wait`); whether it lived."""
    if wait:
        next((line for line in process.stdout if line.startswith("step ")), None)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


def killed_and_resumed(folder, toy, kills, seed):
    """Trains "straight" without a stop and "killed" with them; returns the number of steps and the steps found at each start."""
    chance, steps = random.Random(seed), 15 * kills
    (folder / "mine.py").write_text(REWARD)
    straight = start(folder, toy, "straight", steps)
    done, starts = 0, []
    while done < kills:
        process = start(folder, toy, "killed", steps)
        if kill(process, chance.uniform(0, 0.7), wait=chance.random() < 0.8):
            done += 1
        log = folder / "killed" / "metrics.jsonl"
        starts.append(len(read_metrics(log)) if log.exists() else 0)
    finish(straight)
    finish(start(folder, toy, "killed", steps))
    return steps, starts


def check_same(folder, steps):
    one, two = folder / "straight", folder / "killed"
    last = f"checkpoints/step-{steps:06d}"
    for name in (f"{last}/model.safetensors", f"{last}/trainer/tensors.safetensors", "samples.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    rows = [
        [
            {k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_second"))}
            for row in read_metrics(run / "metrics.jsonl")
        ]
        for run in (one, two)
    ]
    assert [row["step"] for row in rows[0]] == list(range(steps + 1))
    assert rows[0] == rows[1]
    assert json.loads((two / "status.json").read_text())["state"] == "finished"


def test_three_kills(tmp_path, toy, questions):
    steps, _ = killed_and_resumed(tmp_path, toy, kills=3, seed=1)
    check_same(tmp_path, steps)


@pytest.mark.learning
def test_twenty_kills(tmp_path, toy, questions):
    steps, starts = killed_and_resumed(tmp_path, toy, kills=20, seed=2)
    check_same(tmp_path, steps)
    assert len(set(starts)) > 5  # the kills came at different places
    print(f"rows at each kill: {starts}")
