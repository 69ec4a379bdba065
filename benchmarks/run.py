"""All benchmarks, as ratios measured side by side in one run:

    python benchmarks/run.py [--only grpo pairs ...] [--pairs 5] [--out docs/results/bench.md]

Whole training steps and their memory against TRL's GRPOTrainer and DPOTrainer, in alternating processes; memory of distillation
at a large vocabulary; control against Stable-Baselines3; two runs beside each other; the update's share of the arithmetic that a
large matrix product reaches; start-up times; steps of every method against grpo's. Parts that --only leaves out stay in the report
as they are.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from against_sb3 import against_sb3
from child import ENVIRONMENT, measured
from distill import against_sampled_tokens
from methods import against_grpo
from pairs import against_trl_on_pairs

from upslope import list_methods

SHAPES = ((16, 8, 1.8), (256, 16, 6.0), (512, 16, 7.0))
"""Prompt tokens, group size, and by how many times a step is meant to be faster."""


def step(system: str, prompt: int, group: int) -> dict:
    """One process of benchmarks/step.py."""
    return measured("step.py", system, prompt, group)


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


HEAD = f"""# Benchmarks

Made by `make bench`, each part on a quiet machine. Ratios are medians over pairs that alternate within one run; seconds of
these machines mean little.
{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; versions of `constraints.txt`.
"""


@dataclass(frozen=True)
class Section:
    """A part of the report: what stands above the measured lines, which `measure` makes of so many pairs."""

    title: str
    text: str
    measure: Callable[[int], list[str]]


SECTIONS = {
    "grpo": Section(
        "A whole training step against TRL's GRPOTrainer",
        """A 1M-parameter Llama, 8 prompts a step, 32 new tokens for every completion, no KL, AdamW, one update a step:
sampling, scoring and the update together. Both systems with torch's default threads, on a machine with no other work.

""",
        against_trl,
    ),
    "pairs": Section(
        "A DPO step against TRL's DPOTrainer",
        """The same model, 8 pairs a step in one micro-batch, all prompts and all answers equally long, float32, AdamW: the
reference's log-probs, the policy's, backward and the optimizer's step. Before anything is timed, both train on the same pairs in
the same order, and loss and gradient norm of every step must be the same to a relative difference of 1e-4. TRL computes a prompt
twice, once with each answer, and its log-probs by its fused output layer. By `python benchmarks/pairs.py`.

""",
        against_trl_on_pairs,
    ),
    "distill": Section(
        "Distillation at a vocabulary of 32k words",
        """A student and a teacher of 5M parameters each, 32768 words by 128, 4 layers. A step samples 64 completions of 32
tokens, reads the teacher and updates, in one micro-batch of 2048 tokens: all their logits at once would be 256 MB for each model.
Memory is the peak of a whole run above that of the imported libraries, so it contains both models, the gradient and Adam's
moments. Logits of both models are made a few positions at a time, by default. By `python benchmarks/distill.py`.

""",
        lambda pairs: against_sampled_tokens(min(pairs, 2)),
    ),
    "control": Section(
        "Control against Stable-Baselines3",
        """PPO at rl-zoo's settings for CartPole (its clip constant) in all three, and `ppo@fast`, which was chosen on other seeds
(101 to 103) than these; the plain loop is PPO in 150 lines of PyTorch. HalfCheetah at the settings of `ppo@continuous` in both.
SAC and TD3: CPU time of acting once and updating once. One thread; peers in turn. By `python benchmarks/against_sb3.py`.

""",
        against_sb3,
    ),
    "two": Section("Two runs at once", "", side_by_side),
    "update": Section("The update alone", "", arithmetic),
    "start": Section("Start-up", "", start_up),
    "methods": Section(
        "What a method costs",
        """`python benchmarks/methods.py --pairs 3`: whole steps of 64 completions, method and grpo in turn. Every method has grpo's
group of 8 (a method of single completions keeps its group of 1) and one update per step, so that what remains is what its parts
cost; the last column is how many updates it makes by itself. grpo pays for a reference model. A control part costs nothing where
a mini-batch is one pass, as here, and one more forward pass where it is several. Over 1.10: `aepo_arbitrary` samples a quarter of
the prompts twice, `ppo_llm` trains a critic, `q_hawkeye` and `remix` score the completions once more, `reinforce_pp` has single
completions, whose prompts nothing shares.

""",
        lambda pairs: against_grpo(min(pairs, 3), list_methods(family="rlvr")),
    ),
}


def report(made: Mapping[str, str], before: str) -> str:
    """The whole report, by title: measured parts, and the others as they were `before`."""
    kept = dict(part.split("\n", 1) for part in ("\n" + before).split("\n## ")[1:])
    bodies = {title: body.strip("\n") for title, body in {**kept, **made}.items()}
    order = [section.title for section in SECTIONS.values()]
    titles = sorted(bodies, key=lambda title: order.index(title) if title in order else len(order))
    return "\n".join([HEAD, *(f"## {title}\n\n{bodies[title]}\n" for title in titles)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="parts to measure")
    parser.add_argument("--out", type=Path, default=None, help="written anew; parts that are not measured stay")
    arguments = parser.parse_args()
    chosen = [SECTIONS[name] for name in SECTIONS if name in arguments.only]
    made = {part.title: part.text + "\n".join(part.measure(arguments.pairs)) for part in chosen}
    if arguments.out is None:
        print(report(made, ""))
        return
    before = arguments.out.read_text(encoding="utf-8") if arguments.out.exists() else ""
    arguments.out.write_text(report(made, before), encoding="utf-8")
    print(report(made, ""))


if __name__ == "__main__":
    main()
