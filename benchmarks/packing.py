"""Packed prefix trees against padded rows: log-probs and their gradient, time and peak memory.

    python benchmarks/packing.py [--pairs 7] [--hidden 128] [--layers 4] [--threads 1]

Both paths are Upslope's own and compute the same columns; the padded one repeats the prompt in every row. Times
alternate pair by pair and the medians' ratio is printed. Memory is what a fresh process adds to its peak during one
pass (Linux).
"""

import argparse
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upslope.policies.language import LanguagePolicy
from upslope.policies.network import Network
from upslope.rollout import Rollouts

VOCABULARY = 1024


@dataclass(frozen=True)
class Shape:
    """`prompts` prompts of `prompt` tokens, each with `group` responses of up to `response` tokens."""

    prompts: int
    prompt: int
    group: int
    response: int
    ragged: bool = False

    def __str__(self) -> str:
        lengths = f"{self.response // 4}-{self.response}" if self.ragged else str(self.response)
        return f"{self.prompts} x ({self.prompt} + {self.group} x {lengths})"

    def rollouts(self) -> Rollouts:
        draw = torch.Generator().manual_seed(0)
        rows = self.prompts * self.group
        shortest = self.response // 4 if self.ragged else self.response
        length = torch.randint(shortest, self.response + 1, (rows,), generator=draw)
        mask = torch.arange(self.response) < length[:, None]
        tokens = torch.randint(3, VOCABULARY, (rows, self.response), generator=draw)
        zeros = torch.zeros(rows, self.response)
        return Rollouts(
            prompts=torch.randint(3, VOCABULARY, (self.prompts, self.prompt), generator=draw).tolist(),
            prompt=torch.arange(self.prompts).repeat_interleave(self.group),
            tokens=tokens * mask,
            mask=mask,
            length=length,
            logp=zeros,
            behavior_logp=zeros,
            finish=["length"] * rows,
            text=[""] * rows,
        )


SHAPES = (
    Shape(8, 16, 8, 32),
    Shape(8, 16, 8, 32, ragged=True),
    Shape(2, 64, 8, 64),
    Shape(2, 256, 16, 32),
    Shape(2, 256, 16, 32, ragged=True),
    Shape(1, 512, 16, 32),
    Shape(1, 512, 16, 128),
)


def build(hidden: int, layers: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 32, 1),
        intermediate_size=3 * hidden,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config)


def seconds(policy: LanguagePolicy, rollouts: Rollouts) -> float:
    """Of one forward and backward pass."""
    policy.model.zero_grad()
    start = time.perf_counter()
    policy.score(rollouts)["logp"].sum().backward()
    return time.perf_counter() - start


def peak_memory() -> float:
    """MiB of resident memory at the highest since the counter was last reset (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def added_peak(packing: str, shape: Shape, hidden: int, layers: int) -> float:
    """MiB that one pass, after a small one to warm up, adds to the peak of a fresh process."""
    torch.set_num_threads(1)
    policy = LanguagePolicy(build(hidden, layers), None, packing=packing)  # type: ignore[arg-type]
    seconds(policy, Shape(1, 4, 2, 4).rollouts())
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    seconds(policy, shape.rollouts())
    return peak_memory() - before


def tokens(network: Network, rollouts: Rollouts) -> int:
    scored = network.prepare(rollouts, None)
    return 0 if scored is None else scored.ids.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(options.hidden, options.layers)
    policies = {p: LanguagePolicy(model, None, packing=p) for p in ("tree", "padded")}
    print(f"Llama of {model.num_parameters() / 1e6:.1f}M parameters, {options.threads} threads; forward and backward")
    print(
        f"{'prompts x (prompt + group x response)':<38} {'tokens':>13} {'ms':>13} {'ratio':>6} {'MiB':>13} {'ratio':>6}"
    )
    fresh = multiprocessing.get_context("spawn")
    for shape in SHAPES:
        rollouts = shape.rollouts()
        times: dict[str, list[float]] = {name: [] for name in policies}
        for _ in range(options.pairs + 1):
            for name, policy in policies.items():
                times[name].append(seconds(policy, rollouts))
        packed, padded = (statistics.median(times[name][1:]) * 1000 for name in policies)
        with fresh.Pool(1, maxtasksperchild=1) as pool:
            memory = [pool.apply(added_peak, (name, shape, options.hidden, options.layers)) for name in policies]
        sizes = "/".join(str(tokens(policy.network, rollouts)) for policy in policies.values())
        print(
            f"{shape!s:<38} {sizes:>13} {f'{packed:.0f}/{padded:.0f}':>13} {padded / packed:>6.2f} "
            f"{f'{memory[0]:.0f}/{memory[1]:.0f}':>13} {memory[1] / memory[0]:>6.2f}"
        )


if __name__ == "__main__":
    main()
