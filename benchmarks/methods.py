"""Whole training steps of every method against grpo's, in one process: python benchmarks/methods.py [METHOD ...] [--pairs 5]

A pair trains grpo and then the method from the same weights on the same prompts, and divides the medians of their steps.
"""

import argparse
import copy
import statistics
import zlib

from step import NEW_TOKENS, prompts_of, tiny_llama, word_tokenizer

from upslope import UsageError, find, list_methods, make
from upslope.policies.language import LanguagePolicy
from upslope.recipe import Recipe
from upslope.rollout import Example, Outcome
from upslope.trainer import Trainer

COMPLETIONS, PROMPT_TOKENS, STEPS = 64, 16, 4  # the first step is not counted


class Judge:
    """A reward of 0 or 1 that looks random, and everything else that a method may read of a verdict."""

    def score(self, examples, completions, completion_ids=None):
        numbers = [zlib.crc32(text.encode()) for text in completions]
        return [
            Outcome(float(n % 2), columns={"answer": n % 3, "prediction": n % 5, "stratum": n % 4 // 2})
            for n in numbers
        ]


class Words:
    """Prompts of random words; the answer is a word, too."""

    name, solved_at, judge = "words", 2.0, Judge()

    def examples(self, split):
        texts = prompts_of(PROMPT_TOKENS, COMPLETIONS * STEPS)
        return [Example(f"{split}{i}", text, {"answer": "w2"}) for i, text in enumerate(texts)]

    def close(self):
        pass


def equalized(name: str) -> Recipe:
    """The method with grpo's group size and one update per step, so that what remains is what its parts cost."""
    recipe = make(name)
    size = {} if recipe.rollout.group_size == 1 else {"rollout.group_size": 8}
    return make(name, **size, **{"update.minibatches": 1, "update.epochs": 1})


def prompts(recipe: Recipe) -> int:
    """Groups of a step."""
    return max(1, COMPLETIONS // recipe.rollout.group_size)


def seconds(name: str, policy: LanguagePolicy) -> float:
    """Median time of a step of `COMPLETIONS` completions. Raises UsageError where the method did not learn in each."""
    recipe = equalized(name)
    twin = copy.copy(policy)
    twin.network = policy.network.twin(copy.deepcopy(policy.model))
    skipped: list[str] = []
    trainer = Trainer(
        recipe, model=twin, task=Words(), steps=STEPS, max_tokens=NEW_TOKENS, optimizer={"lr": 1e-4},
        prompts_per_step=prompts(recipe),
        eval={"every": 0, "prompts": 1, "samples": 1},
        on_event=lambda step, event: skipped.append(event.message) if event.kind == "step skipped" else None,
    )  # fmt: skip
    with trainer:
        rows = trainer.train().rows
    if skipped:
        raise UsageError(skipped[0])
    return statistics.median(row["time/total"] - row.get("time/eval", 0.0) for row in rows[2:])


def against_grpo(pairs: int, names: list[str]) -> list[str]:
    """Rows of the table: each method's step time over grpo's."""
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    policy = LanguagePolicy(model, word_tokenizer())
    policy.tokenizer.eos_token = None  # every completion has all its tokens
    lines = ["| method | step time, method / grpo | of the pairs | its own updates a step |", "|---|---|---|---|"]
    for name in names:
        recipe = make(name)
        ratios = []
        try:
            for _ in range(pairs):
                base = seconds("grpo", policy)
                ratios.append(seconds(name, policy) / base)
                print(f"{name}: {ratios[-1]:.2f} times grpo's step", flush=True)
        except UsageError as error:
            lines.append(f"| {name} | not measured: {error} | | |")
            continue
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        updates = recipe.update.minibatches * recipe.update.epochs
        lines.append(f"| {name} | **{statistics.median(ratios):.2f}** | {spread} | {updates} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="METHOD", help="default: all of the family rlvr")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    names = [find(name).name for name in arguments.names] or list_methods(family="rlvr")
    print("\n".join(against_grpo(arguments.pairs, names)))


if __name__ == "__main__":
    main()
