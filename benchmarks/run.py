"""All benchmarks, as ratios measured side by side in one run: python benchmarks/run.py [--pairs 5] [--out docs/results/bench.md]

Whole training steps and their memory against TRL's GRPOTrainer, in alternating processes; steps of every method against grpo's;
two runs beside each other; the update's share of the arithmetic that a large matrix product reaches; start-up times.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from methods import against_grpo

from upslope import list_methods

HERE = Path(__file__).parent
SHAPES = ((16, 8, 1.8), (256, 16, 6.0), (512, 16, 7.0))
"""Prompt tokens, group size, and by how many times a step is meant to be faster."""
ENVIRONMENT = {**os.environ, "PYTHONHASHSEED": "0"}
"""Threads wait as each program sets it: the step benchmark's two systems by the default, the command line by its own setting."""


def step(system: str, prompt: int, group: int) -> dict:
    """One process of benchmarks/step.py."""
    command = [sys.executable, str(HERE / "step.py"), system, str(prompt), str(group)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def against_trl(pairs: int) -> list[str]:
    """Rows of the table: ratio of step times, each the median of a pair's, and of peak memory above the imports."""
    lines = [
        "| prompt + new tokens, group | step time, TRL / Upslope | of the pairs | target | peak memory, Upslope / TRL |",
        "|---|---|---|---|---|",
    ]
    for prompt, group, target in SHAPES:
        ratios, memory = [], []
        for _ in range(pairs):
            ours, theirs = step("upslope", prompt, group), step("trl", prompt, group)
            ratios.append(statistics.median(theirs["seconds"]) / statistics.median(ours["seconds"]))
            memory.append(ours["memory"] / theirs["memory"])
            print(f"{prompt} x {group}: {ratios[-1]:.2f} times faster, {memory[-1]:.2f} of the memory", flush=True)
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        faster, share = statistics.median(ratios), statistics.median(memory)
        lines.append(f"| {prompt} + 32, {group} | **{faster:.1f}** | {spread} | {target} | {share:.2f} |")
    return lines


def side_by_side(pairs: int) -> list[str]:
    """Two runs of the command line at once, with default threads, against one alone."""
    ratios = []
    for _ in range(pairs):
        alone = _train(1)
        ratios.append(_train(2) / alone)
        print(f"two runs at once take {ratios[-1]:.2f} times as long as one", flush=True)
    return [
        f"Two `upslope train` at once take **{statistics.median(ratios):.2f}** times as long as one alone (1 would be two idle",
        f"cores, 2 is taking turns); {min(ratios):.2f} to {max(ratios):.2f} over {pairs} pairs.",
    ]


def _train(count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--task",
            "chain_sum",
            "--steps",
            "12",
            "--set",
            "max_tokens=8",
            "--set",
            "eval.prompts=8",
            "--set",
            "self_checks=false",
        ]
        commands = [
            [sys.executable, "-m", "upslope", "train", "grpo", *options, "--out", f"{folder}/{i}"] for i in range(count)
        ]
        started = time.perf_counter()
        runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) for command in commands]
        if any(run.wait() for run in runs):
            sys.exit("a run of the side-by-side benchmark failed")
        return time.perf_counter() - started


def arithmetic(pairs: int) -> list[str]:
    """FLOP/s of score and backward on a 25M-parameter Llama against those of a large float32 matrix product."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from upslope.policies.language import LanguagePolicy
    from upslope.rollout import Rollouts

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
            num_key_value_heads=8, tie_word_embeddings=True,
        )
    )  # fmt: skip
    policy = LanguagePolicy(model, None)
    prompts, prompt, group, new = 4, 128, 8, 64
    rows = prompts * group
    rollouts = Rollouts(
        prompts=torch.randint(0, 1024, (prompts, prompt)).tolist(),
        prompt=torch.arange(prompts).repeat_interleave(group),
        tokens=torch.randint(0, 1024, (rows, new)),
        mask=torch.ones(rows, new, dtype=torch.bool),
        length=torch.full((rows,), new),
        logp=torch.zeros(rows, new),
        behavior_logp=torch.zeros(rows, new),
        finish=["length"] * rows,
        text=[""] * rows,
    )
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    tokens = prompts * (prompt + group * new)
    head = model.get_output_embeddings().weight.numel() * rows * new
    flops = 6 * (weights * tokens + head)  # attention's own arithmetic is left out, which favours the matrix product
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    shares = []
    for _ in range(pairs + 1):
        started = time.perf_counter()
        for _ in range(8):
            a @ b
        peak = 8 * 2 * 2048**3 / (time.perf_counter() - started)
        model.zero_grad()
        started = time.perf_counter()
        policy.score(rollouts)["logp"].sum().backward()
        shares.append(flops / (time.perf_counter() - started) / peak)
    return [
        f"Scoring and differentiating {tokens} packed tokens of a {weights / 1e6:.0f}M-parameter Llama reaches",
        f"**{statistics.median(shares[1:]):.0%}** of the FLOP/s of a 2048 x 2048 float32 matrix product (target 60 %),",
        f"{min(shares[1:]):.0%} to {max(shares[1:]):.0%} over {pairs} pairs, {torch.get_num_threads()} threads.",
    ]


def start_up(pairs: int) -> list[str]:
    """Medians of whole processes, as multiples of an empty Python's and in seconds for scale."""
    programs = {
        "an empty Python": ["-c", "pass"],
        "`import upslope`": ["-c", "import upslope"],
        "`upslope methods`": ["-m", "upslope", "methods"],
        "`import torch`": ["-c", "import torch"],
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(pairs):
        for name, arguments in programs.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True, env=ENVIRONMENT)
            times[name].append(time.perf_counter() - started)
    torch_time = statistics.median(times["`import torch`"])
    return [
        f"- {name}: {statistics.median(found) / torch_time:.2f} of the time of `import torch`"
        for name, found in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`. Ratios are medians over pairs that alternate within one run; seconds of these machines mean little.",
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; versions of `constraints.txt`.",
        "",
        "## A whole training step against TRL's GRPOTrainer",
        "",
        "A 1M-parameter Llama, 8 prompts a step, 32 new tokens for every completion, no KL, AdamW, one update a step:",
        "sampling, scoring and the update together. Both systems with torch's default threads, on a machine with no other work.",
        "",
        *against_trl(arguments.pairs),
        "",
        "## What a method costs",
        "",
        "Whole steps of 64 completions, method and grpo in turn. Every method has grpo's group of 8 (a method of single",
        "completions keeps its group of 1) and one update per step; the last column is how many it makes by itself. grpo pays for",
        "a reference model. A control part costs nothing where a mini-batch is one pass, and one more forward pass elsewhere.",
        "",
        *against_grpo(arguments.pairs, list_methods(family="rlvr")),
        "",
        "## Two runs at once",
        "",
        *side_by_side(arguments.pairs),
        "",
        "## The update alone",
        "",
        *arithmetic(arguments.pairs),
        "",
        "## Start-up",
        "",
        *start_up(arguments.pairs),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
