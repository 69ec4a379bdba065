"""A teacher's log-probs that the data gives beside its completions, in the place of a teacher that is asked.

The column teacher_logps holds, for every completion, a list of one log-prob (natural logarithm) per token, as the model that learns
writes it: its tokenizer's tokens of the completion alone, and the end token. `upslope diagnose teacher-logps` writes it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from upslope.config import Config
from upslope.errors import UsageError
from upslope.parts.data import FromData
from upslope.recipe import Recipe
from upslope.rollout import Example
from upslope.samples import has_samples
from upslope.tasks.columns import dig
from upslope.teaching import comparisons, informing

COLUMN = "teacher_logps"
ROUNDING = 1e-4  # by which a log-prob may be above 0
REMEDY = (
    "Write the column with `upslope diagnose teacher-logps TEACHER --data FILE --policy MODEL --out NEW.jsonl`, or give "
    "--teacher, which is asked instead."
)


def takes_stored(recipe: Recipe) -> bool:
    """Whether stored log-probs can stand for the teacher: it scores the tokens of given completions, and is told nothing."""
    given = isinstance(recipe.rollout, FromData) and recipe.rollout.kind == "demonstrations" and not has_samples(recipe)
    return given and "teacher_logp" in recipe.needs and not comparisons(recipe) and informing(recipe) is None


def column_of(settings: Mapping[str, Any]) -> str:
    """The column's name, by the settings of the data."""
    return str(settings.get("teacher_logps_key") or COLUMN)


def stored_column(config: Config, recipe: Recipe, data: Any) -> str | None:
    """The column of `data` that is read in the place of a teacher; None where one is asked, or none is needed."""
    return None if config.teacher is not None else _found(recipe, data)


def stored_note(config: Config, recipe: Recipe, data: Any, stored: str | None) -> str:
    """What is worth a line in the log: which column is read, or that one is not; "" where there is none."""
    if stored is not None:
        return f"the teacher's log-probs are those of the column {stored}; no teacher is asked"
    found = _found(recipe, data)
    return "" if found is None else f"the column {found} is not read, since --teacher {config.teacher} is asked"


def _found(recipe: Recipe, data: Any) -> str | None:
    """The data's column of stored log-probs, where it has one that the recipe can take."""
    if data is None or not takes_stored(recipe):
        return None
    column = column_of(data.settings)
    return column if any(dig(example.data, column) is not None for example in data.examples("train")) else None


def logps_of(example: Example, tokens: int, column: str) -> list[float]:
    """The stored log-probs of an example's completion of so many tokens, [tokens].

    Raises UsageError with file and row for what is missing, no list of numbers, of another length, not finite or above 0.
    """
    (completion,) = example.data["completions"]
    values, where = (
        dig(example.data, column),
        completion.place or f"the prompt that begins {str(example.prompt)[:60]!r}",
    )
    if values is None:
        raise UsageError(f"{where} has no {column}, which other rows have. {REMEDY}")
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(map(_is_number, values)):
        raise UsageError(f"{where}: {column} must be a list of numbers, one per token. {REMEDY}")
    if len(values) != tokens:
        raise UsageError(
            f"{where}: {column} has {len(values)} numbers, but the completion is {tokens} tokens of the model's, its end token "
            f"included. {REMEDY}"
        )
    wrong = next((place for place, value in enumerate(values) if not -math.inf < value <= ROUNDING), None)
    if wrong is not None:
        raise UsageError(
            f"{where}: {column} has {values[wrong]} at token {wrong + 1}. Log-probs are finite numbers of at most 0. {REMEDY}"
        )
    return [float(value) for value in values]


def check_stored(examples: Sequence[Example], policy: Any, column: str) -> None:
    """Raises UsageError as `logps_of` for the first example whose log-probs do not fit its completion as `policy` writes it."""
    for example in examples:
        (completion,) = example.data["completions"]
        logps_of(example, len(policy.encode_completion(example.prompt, completion.text)[0]), column)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
