"""What a run learns from and what it is evaluated on: given completions, a task, or both."""

import logging
from dataclasses import replace
from typing import Any

from upslope.config import Config
from upslope.errors import UsageError
from upslope.parts.data import FromData
from upslope.recipe import Recipe
from upslope.references import reference_text
from upslope.reward_models import open_judge, trains_reward_model
from upslope.runs.checkpoint import model_folder
from upslope.samples import has_samples, open_reward
from upslope.unjudged import NotJudged, learns_unjudged

logger = logging.getLogger("upslope")


def open_sources(config: Config, recipe: Recipe, task: Any, learned: Any) -> tuple[Any, Any]:
    """(the given completions, None where all are sampled; the task that the run is evaluated on, and else trained on).

    `task` as given from Python, perhaps the completions themselves. Without a verifier for the prompts of a file, the reward
    model `learned` judges in its place. Given completions are evaluated by --task, by --reward on held-out prompts of the
    same data, or by the recipe's own loss on held-out ones: then data and task are the same object, without a judge.
    """
    data = _open_completions(config, recipe, task)
    if task is not None and data is not task:
        return data, task
    if data is None or config.task is not None:
        return data, _open_task(config, recipe, data, learned)
    if config.reward is None:
        return data, data
    return data, replace(data, judge=open_reward(config, data.examples("train")), solved_at=config.eval.solved_at)


def _open_completions(config: Config, recipe: Recipe, task: Any) -> Any:
    """The data of a recipe that learns from given completions; None for one that samples them."""
    if not isinstance(recipe.rollout, FromData):
        return None
    if getattr(task, "kind", None) == recipe.rollout.kind:
        return _selected(task, recipe.rollout, said=False)
    if config.data is None:
        raise UsageError(
            f"'{recipe.name}' learns from {recipe.rollout.kind} that a file gives: give --data FILE. A --task beside it is what "
            "the run is evaluated on."
        )
    if config.reward is not None and trains_reward_model(recipe):
        raise UsageError(
            f"'{recipe.name}' trains a reward model on completions that the data gives, so --reward would not be read. Leave it "
            "out."
        )
    if config.reward is not None and config.task is not None and not has_samples(recipe):
        raise UsageError(
            f"'{recipe.name}' learns from completions that the data gives and is evaluated by the verifier of {config.task}, so "
            "--reward would not be read. Leave one of them out."
        )
    from upslope.tasks.completions import open_completions

    settings = dict(config.task_settings) if config.task is None else {}
    opened = open_completions(config.data, recipe.rollout.kind, settings)
    return _selected(opened, recipe.rollout, said=config.task is not None)


def _selected(data: Any, rollout: FromData, said: bool) -> Any:
    """The data with the training examples that the recipe selects; `said`: in the log, since another task describes the run."""
    examples, notes = rollout.select(data.examples("train"))
    if not notes:
        return data
    if said:
        logger.warning("%s: %s.", data.name, "; ".join(notes))
    return replace(data, splits={**data.splits, "train": examples}, notes=[*data.notes, *notes])


def _open_task(config: Config, recipe: Recipe, data: Any, learned: Any) -> Any:
    """The named task, or the file's prompts with their verifier; with `data`, what it is evaluated on.

    A recipe that learns from a teacher alone needs no verifier: without --reward nobody judges.
    """
    from upslope.tasks.base import open_task
    from upslope.tasks.files import open_prompts

    if config.task is None and config.data is None:
        raise UsageError("no task: give --task NAME (`upslope tasks` lists them) or --data FILE.")
    if data is None and config.task is not None and config.data is not None:
        raise UsageError(f"both task '{config.task}' and data '{config.data}' are given; a run trains on one of them.")
    if learned is not None and config.task is None and config.reward is None:
        task: Any = open_prompts(str(config.data), dict(config.task_settings), None)
        task.judge, task.solved_at = open_judge(config, learned, None), None
        return task
    if config.task is None and config.reward is None and learns_unjudged(recipe):
        task = open_prompts(str(config.data), dict(config.task_settings), None)
        task.judge, task.solved_at = NotJudged(task.judge.reference), None
        if recipe.rollout.reference_rows:  # type: ignore[union-attr]
            for example in task.examples("train"):
                reference_text(task.judge, example, recipe.rollout.reference_column)  # type: ignore[union-attr]
        return task
    return open_task(
        config.task,
        data=config.data if data is None else None,
        reward=config.reward if data is None else None,
        settings=dict(config.task_settings),
        seed=config.seed,
        for_model=model_folder(config.model),
        timeout=config.reward_timeout,
        workers=config.reward_workers,
        eval_size=max(config.eval.prompts, 1) if config.task else None,
        solved_at=config.eval.solved_at,
    )
