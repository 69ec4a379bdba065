"""Preference pairs from a model's own completions, labelled by a task's verifier."""

from typing import Any

from upslope.collect import seeded
from upslope.engines.local import LocalEngine
from upslope.rollout import Sampling


def sample_pairs(
    policy: Any, task: Any, *, prompts: int, samples: int = 8, max_tokens: int = 64, seed: int = 0
) -> list[dict[str, str]]:
    """One pair {"prompt", "chosen", "rejected"} for every training prompt that the model answers both rightly and wrongly.

    policy      a LanguagePolicy, which writes `samples` completions of each of the first `prompts` training prompts
    task        its judge tells right (a value of at least `task.solved_at`) from wrong; the first of each make the pair.
                Completions that are blank, or that the judge failed on, are in no pair

    The same arguments give the same pairs.
    """
    examples = task.examples("train")[:prompts]
    ids = [policy.encode(example.prompt) for example in examples]
    sampling, generator = Sampling(max_tokens), seeded("pairs", seed)
    rollouts = LocalEngine(policy).generate(ids, [samples] * len(ids), sampling, generator)
    outcomes = task.judge.score([examples[index] for index in rollouts.prompt.tolist()], rollouts.text)
    found: dict[int, dict[bool, str]] = {}
    for prompt, text, outcome in zip(rollouts.prompt.tolist(), rollouts.text, outcomes, strict=True):
        if text.strip() and outcome.value is not None:
            found.setdefault(prompt, {}).setdefault(outcome.value >= task.solved_at, text)
    return [
        {"prompt": examples[prompt].prompt, "chosen": texts[True], "rejected": texts[False]}
        for prompt, texts in found.items()
        if len(texts) == 2
    ]
