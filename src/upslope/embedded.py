"""What stands in for what a run of the embedded model does not name: its preference pairs, its task, its teacher."""

from dataclasses import replace
from typing import Any

from upslope.config import Config
from upslope.parts.data import FromData
from upslope.recipe import Recipe
from upslope.registry import find, make
from upslope.reward_models import trains_reward_model
from upslope.stored import column_of, takes_stored
from upslope.tasks.columns import dig
from upslope.tasks.files import read
from upslope.teaching import informing, reads_teacher

MODEL, TEACHER, TASK, PAIRS = "tiny", "tiny-teacher", "chain_sum", "tiny-preferences"


def with_embedded(config: Config) -> Config:
    """The config with the data and the teacher of the embedded model, where it trains that and names none.

    A method that learns from given completions gets the shipped pairs, evaluated on sums; one that distills from a teacher gets
    the model's stronger sibling. Raises UsageError for an unknown method.
    """
    if config.model != MODEL:
        return config
    recipe = make(config.method, **config.settings)
    if not isinstance(recipe, Recipe):
        return config
    changes: dict[str, Any] = {}
    if isinstance(recipe.rollout, FromData) and config.data is None and config.task in (None, TASK):
        evaluated = None if trains_reward_model(recipe) or config.reward else TASK
        changes |= {"data": PAIRS, "task": config.task or evaluated}
    asks = (
        config.teacher is None and reads_teacher(recipe) and informing(recipe) is None and not _stored(config, recipe)
    )
    if asks and find(config.method).family == "distill":  # elsewhere it is another model: a soup, what was fine-tuned
        changes["teacher"] = TEACHER
    return replace(config, **changes)


def _stored(config: Config, recipe: Recipe) -> bool:
    """Whether the data has a teacher's log-probs, so that none is asked."""
    if config.data is None or not takes_stored(recipe):
        return False
    column = column_of({} if config.task is not None else config.task_settings)
    return any(dig(row.columns, column) is not None for row in read(config.data)[1])
