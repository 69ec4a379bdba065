"""The local engine against transformers' `generate`: tokens per second and peak memory, same model, prompts and lengths.

    python benchmarks/generation.py [--pairs 5] [--hidden 128] [--layers 4] [--threads 1] [--new 32]

Both sample at temperature 1 without truncation and without end token, so every row gets `--new` tokens. Times alternate pair
by pair; the medians are printed, and the median of the pairs' ratios. Memory is what a fresh process adds to its peak during
one call (Linux).
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from upslope.engines.local import LocalEngine
from upslope.rollout import Sampling

VOCABULARY = 1024


@dataclass(frozen=True)
class Shape:
    """`prompts` prompts of `length` tokens (or of half to all of that, where ragged), `group` rows each."""

    prompts: int
    length: int
    group: int
    ragged: bool = False

    def __str__(self) -> str:
        return f"{self.prompts} x {f'{self.length // 2}-' if self.ragged else ''}{self.length}, G={self.group}"

    def ids(self) -> list[list[int]]:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(3, VOCABULARY, (self.prompts, self.length), generator=draw).tolist()
        cut = torch.linspace(0.5, 1.0, self.prompts) if self.ragged else torch.ones(self.prompts)
        return [prompt[: int(self.length * share)] for prompt, share in zip(ids, cut.tolist(), strict=True)]


SHAPES = (Shape(8, 16, 8), Shape(8, 256, 16), Shape(8, 512, 16), Shape(8, 512, 16, ragged=True), Shape(32, 64, 1))


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
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def local(model: Any, shape: Shape, new: int) -> Callable[[], None]:
    no_text = SimpleNamespace(all_special_tokens=[], eos_token_id=None, decode=lambda ids, **_: "")
    policy = SimpleNamespace(
        model=model, tokenizer=no_text, device=torch.device("cpu"), dtype=torch.float32, context_length=1024
    )
    engine, generator = LocalEngine(policy), torch.Generator().manual_seed(0)
    prompts, counts, sampling = shape.ids(), [shape.group] * shape.prompts, Sampling(max_tokens=new)

    def run() -> None:
        rollouts = engine.generate(prompts, counts, sampling, generator)
        assert rollouts.tokens.shape == (shape.prompts * shape.group, new)

    return run


def transformers(model: Any, shape: Shape, new: int) -> Callable[[], None]:
    prompts = [prompt for prompt in shape.ids() for _ in range(shape.group)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = (ids != 0).long()

    def run() -> None:
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=new, pad_token_id=0
            )
        assert found.shape == (len(prompts), width + new)

    return run


SIDES = {"upslope": local, "transformers": transformers}


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory() -> float:
    """MiB of resident memory at the highest since the counter was last reset (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def added_peak(side: str, shape: Shape, options: argparse.Namespace) -> float:
    """MiB that one call, after a small one to warm up, adds to the peak of a fresh process."""
    torch.set_num_threads(options.threads)
    model = build(options.hidden, options.layers)
    SIDES[side](model, Shape(1, 4, 2), options.new)()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    SIDES[side](model, shape, options.new)()
    return peak_memory() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"pairs": 5, "hidden": 128, "layers": 4, "threads": 1, "new": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(options.hidden, options.layers)
    print(
        f"Llama of {model.num_parameters() / 1e6:.1f}M parameters, {options.threads} threads, {options.new} new tokens"
    )
    print(f"upslope / transformers{'tokens/s':>24} {'ratio':>6} {'MiB':>12} {'ratio':>6}")
    fresh = multiprocessing.get_context("spawn")
    for shape in SHAPES:
        runs = {name: side(model, shape, options.new) for name, side in SIDES.items()}
        pairs = [[seconds(run) for run in runs.values()] for _ in range(options.pairs + 1)][1:]
        ratio = statistics.median(theirs / ours for ours, theirs in pairs)
        tokens = shape.prompts * shape.group * options.new
        rates = [tokens / statistics.median(side) for side in zip(*pairs, strict=True)]
        with fresh.Pool(1, maxtasksperchild=1) as pool:
            memory = [pool.apply(added_peak, (name, shape, options)) for name in SIDES]
        print(
            f"{shape!s:<26} {f'{rates[0]:.0f} / {rates[1]:.0f}':>19} {ratio:>6.2f} "
            f"{f'{memory[0]:.0f} / {memory[1]:.0f}':>12} {memory[1] / max(memory[0], 0.1):>6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
