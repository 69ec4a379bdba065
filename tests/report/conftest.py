"""Synthetic run folders, written by hand as the trainer writes them, and a headless browser where there is one."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import yaml

CONFIG = {
    "method": "grpo",
    "model": "tiny",
    "task": {"name": "countdown", "settings": {"min_numbers": 3, "max_numbers": 4}},
    "seed": 0,
    "steps": 60,
    "sampling": {"max_tokens": 64, "temperature": 1.0},
    "optimizer": {"lr": 3e-5, "weight_decay": 0.0},
}
OBJECTIVE = """grpo: Group Relative Policy Optimization (arXiv:2402.03300)

  L = - 1/N Σ_i 1/|o_i| Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i) + 0.04 k3(π ‖ π_ref)
  A_i = (r_i - mean_g r) / (std_g r + 1e-6)
"""


def write_rows(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metric_rows(steps=60, start=0.38, end=0.91, every=10, instances=256, seed=0):
    """A plausible run that goes from `start` to `end`; a step-0 row with the evaluation before training."""
    rng = random.Random(seed)
    rows = []
    for step in range(steps + 1):
        progress = 1 / (1 + math.exp(-8 * (step / max(steps, 1) - 0.4)))
        p = start + (end - start) * progress
        row = {"step": step}
        if step:
            reward = min(max(p + rng.gauss(0, 0.05), 0), 1)
            row |= {
                "reward": reward, "reward_std": (reward * (1 - reward)) ** 0.5, "entropy": 1.4 * math.exp(-step / 40) + 0.2,
                "kl": 0.002 * step * rng.uniform(0.8, 1.2), "ratio/clip_fraction": rng.uniform(0, 0.06), "loss": rng.gauss(0, 0.02),
                "grad_norm": math.exp(rng.gauss(-0.5, 0.5)) * (30 if step == 41 else 1),
                "length/mean": 18 + rng.gauss(0, 1) + step / 20,
                "length/truncated": max(0.0, rng.gauss(0.02, 0.01)), "groups/zero_variance": min(1.0, 0.2 + 0.5 * progress),
                "rewards/failed": int(rng.random() < 0.1), "sampler_gap/mean": 1e-7, "sampler_gap/max": 4e-6,
                "tokens": 8000 + rng.randrange(500), "time/rollout": rng.uniform(1.0, 1.3), "time/reward": rng.uniform(0.05, 0.1),
                "time/update": rng.uniform(0.8, 0.9), "tokens_per_second": rng.uniform(3000, 4000),
            }  # fmt: skip
        if step % every == 0 or step == steps:
            q = min(max(p + rng.gauss(0, 0.01), 0), 1)
            half = 1.96 * math.sqrt(q * (1 - q) / instances)
            row |= {"eval/pass@1": q, "eval/pass@1_low": max(q - half, 0), "eval/pass@1_high": min(q + half, 1)}
            row |= {"eval/pass@4": 1 - (1 - q) ** 2, "eval/prompts": instances, "time/eval": 2.5}
        rows.append(row)
    return rows


def sample_rows(steps=60, every=10, prompts=24, seed=0):
    rng = random.Random(seed)
    rows = []
    for step in range(steps + 1):
        chance = 0.35 + 0.55 * step / max(steps, 1)
        split = "eval" if step % every == 0 else "train"
        for index in range(prompts if split == "eval" else 4):
            numbers = [
                random.Random(f"{split}{step if split == 'train' else 0}{index}").randint(1, 50) for _ in range(4)
            ]
            right = rng.random() < chance
            failed = split == "train" and rng.random() < 0.02
            rows.append(
                {
                    "step": step, "split": split, "key": f"countdown-{split}-{index}",
                    "prompt": f"Using the numbers {numbers}, make {sum(numbers[:3])}. Use each number at most once.",
                    "completion": f"I add them up: {numbers[0]} + {numbers[1]} + {numbers[2 if right else 3]}",
                    "reward": None if failed else float(right), "parts": {"format": 1.0, "correct": float(right)},
                    "failure": "timed out after 5 s" if failed else None, "finish": "length" if rng.random() < 0.1 else "stop",
                }
            )  # fmt: skip
    return rows


@pytest.fixture(scope="session")
def make_run():
    """make_run(path, metrics=rows, samples=rows, config={...}, files={name: text}) writes a run folder."""

    def make(path: Path, metrics=None, samples=None, config=None, files=None, complete=True) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.yaml").write_text(yaml.safe_dump(CONFIG | (config or {}), sort_keys=False), encoding="utf-8")
        write_rows(path / "metrics.jsonl", metric_rows() if metrics is None else metrics)
        write_rows(path / "samples.jsonl", sample_rows() if samples is None else samples)
        if complete:
            (path / "describe.txt").write_text(OBJECTIVE, encoding="utf-8")
            (path / "status.json").write_text(json.dumps({"state": "finished", "message": None}))
            checks = [
                {"name": "tokens round-trip", "ok": True, "value": 0, "limit": 0, "message": "256 of 256 prompts"},
                {"name": "sampler/trainer gap", "ok": True, "value": 3.8e-6, "limit": 1e-3, "message": ""},
                {
                    "name": "micro-batch invariance",
                    "ok": False,
                    "value": 0.02,
                    "limit": 1e-4,
                    "message": "gradients differ",
                },
            ]
            (path / "self_checks.json").write_text(json.dumps(checks))
            events = [
                {
                    "step": 4,
                    "kind": "zero-variance groups",
                    "message": "9 of 16 groups: all completions earn 0",
                    "count": 9,
                },
                {"step": 5, "kind": "zero-variance groups", "message": "8 of 16 groups", "count": 8},
                {"step": 41, "kind": "step skipped", "message": "gradient norm is not finite", "count": 1},
            ]
            write_rows(path / "events.jsonl", events)
        for name, content in (files or {}).items():
            (path / name).write_bytes(
                content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
            )
        return path

    make.metrics, make.samples = metric_rows, sample_rows
    return make


@pytest.fixture(scope="session")
def chromium() -> str:
    """A Chromium on this machine, or the test is skipped."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here; on Debian: apt-get install -y chromium")
    return found
