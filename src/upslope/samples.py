"""What is sampled beside given completions: whether a recipe can tell it from these, and who judges it."""

from collections.abc import Sequence
from typing import Any

from upslope.config import Config
from upslope.errors import UsageError
from upslope.parts.data import FromData
from upslope.parts.expert import ExpertRows
from upslope.recipe import Recipe
from upslope.rollout import Example
from upslope.tasks.columns import REFERENCES, VERL_REFERENCE, dig


def has_samples(recipe: Recipe) -> bool:
    """Whether the recipe samples beside completions that the data gives."""
    return isinstance(recipe.rollout, FromData) and recipe.rollout.samples > 0


def reads_samples(recipe: Recipe) -> bool:
    """Whether it reads the rewards of those samples: some part reads rewards that is not a term's about given rows."""
    of_given = {id(term.surrogate) for term in recipe.all_terms() if isinstance(term.rows, ExpertRows)}
    return has_samples(recipe) and any("reward" in p.needs and id(p) not in of_given for _, p in recipe.stages())


def check_samples(recipe: Recipe) -> None:
    """Raises UsageError where a term would take samples for given completions, or the other way round."""
    for index, term in enumerate(recipe.all_terms()):
        if term.rows is None and "source" not in term.surrogate.needs:
            name, where = type(term.surrogate).__name__, f"terms[{index - 1}]" if index else "the main term"
            raise UsageError(
                f"'{recipe.name}' samples beside given completions (rollout.samples={recipe.rollout.samples}), but "  # type: ignore[union-attr]
                f"{where}, {name}, is not told which rows are its own, so it would take and count both. Give it "
                "rows=ExpertRows() (given) or rows=PolicyRows() (sampled), of upslope.parts.expert; on the command line: "
                "--set rows=hypo_online_kl. Or set samples=0."
            )


def open_verifier(config: Config, recipe: Recipe, task: Any, examples: Sequence[Example]) -> Any:
    """Who judges the samples: --reward, on the data's rows `examples`; or the task's judge, where the recipe reads rewards.

    None: nobody does. Raises UsageError where the recipe reads rewards and there is nobody to give them.
    """
    if config.reward is not None:
        return open_reward(config, examples) if task.judge is None or config.task is not None else task.judge
    if not reads_samples(recipe):
        return None
    if task.judge is None:
        raise UsageError(
            f"'{recipe.name}' reads the rewards of what it samples beside given completions: give --reward FILE.py:FUNCTION, "
            "math, exact or regex:PATTERN; or a --task whose verifier can judge answers to the data's prompts."
        )
    return task.judge


def open_reward(config: Config, examples: Sequence[Example]) -> Any:
    """A judge by --reward, of rows with given completions.

    Their reference answer is the first column that is named like one; without one, of a demonstration, its completion.
    """
    from upslope.tasks.judge import Judge
    from upslope.tasks.rewards import parse_reward

    columns = tuple(dict.fromkeys(name for example in examples for name in example.data if name != "completions"))
    named = [name for name in (*REFERENCES, VERL_REFERENCE) if name != "label"]
    key = next((name for name in named if dig(examples[0].data, name) is not None), None)

    def reference(example: Example) -> Any:
        given = example.data["completions"]
        if key is None and len(given) == 1 and given[0].label == 1 and isinstance(given[0].text, str):
            return given[0].text
        return None if key is None else dig(example.data, key)

    parts = parse_reward(config.reward)  # type: ignore[arg-type]
    for part in parts:
        if part.needs_reference and any(reference(example) is None for example in examples):
            raise UsageError(
                f"the reward {part.name} compares with a reference answer, but {config.data} has none in every row"
                f"{f' ({key})' if key else ''}; its columns: {', '.join(columns)}. Fill it in, or give a function: "
                "--reward FILE.py:FUNCTION."
            )
    judge = Judge(parts, reference=reference, timeout=config.reward_timeout, workers=config.reward_workers)
    try:
        judge.check(columns, str(config.data))
    except BaseException:
        judge.close()
        raise
    return judge
