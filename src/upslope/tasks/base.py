"""A task: questions for training, questions held out for evaluation, and a judge of answers."""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from upslope.errors import UsageError

if TYPE_CHECKING:
    from upslope.rollout import Example
    from upslope.tasks.judge import Judge
    from upslope.tasks.rewards import RewardSpec

Split = Literal["train", "eval"]
ASSETS = Path(__file__).parents[1] / "assets"


@dataclass
class Task:
    """Questions and their judge.

    name        "chain_sum", or the file's name
    splits      "train" and "eval": sequences of examples, perhaps made when they are asked for; the two never share a
                question, except where an evaluation file repeats training rows (a note says so)
    judge       gives outcomes; `close` ends its workers
    settings    what the task was opened with, resolved, as plain JSON
    notes       what is worth a line in the log: the columns that were recognized, how the split was made
    solved_at   an outcome of at least this value counts as solved (pass@k); None: nothing says what is solved
    """

    name: str
    splits: Mapping[str, "Sequence[Example]"]
    judge: "Judge"
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    solved_at: float | None = 1.0

    def examples(self, split: Split) -> "Sequence[Example]":
        """The questions of a split: same seed, same questions, in the same order."""
        return self.splits[split]

    def describe(self) -> str:
        """The notes, and how answers are verified; one fact per line."""
        return "\n".join([*self.notes, f"reward: {self.judge.describe()}"])

    def close(self) -> None:
        self.judge.close()

    def __enter__(self) -> "Task":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_task(
    name: str | None = None,
    *,
    data: "str | os.PathLike[str] | Sequence[Mapping[str, Any]] | None" = None,
    reward: "RewardSpec | None" = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    for_model: str | None = None,
    timeout: float = 10.0,
    workers: int | None = None,
    train_size: int | None = None,
    eval_size: int | None = None,
    solved_at: float = 1.0,
) -> Task:
    """A task by its name, or from the user's own data.

    name        a task that `list_tasks` lists
    data        instead of a name: a JSONL, JSON, CSV or Parquet file, a `datasets` folder, a folder of such files, or
                rows (upslope.tasks.files)
    reward      how answers are verified (upslope.tasks.rewards); a named task has its own scorer, data needs one
    settings    of a named task: its own, see `list_tasks`; of data: input_key, label_key, eval_data
    for_model   use the settings recommended for this model where `settings` has none ("tiny": the embedded one)
    timeout     seconds that judging one completion may take (upslope.tasks.workers for whole batches)
    train_size  questions in a split, at most; None: 10,000 and 200 of a named task, all rows of a file
    solved_at   the value from which on an outcome counts as solved

    The workers start at once, in the background; a reward function of the user's is loaded before this returns.
    Raises UsageError for anything that is wrong with name, data, settings or reward.
    """
    from upslope.tasks.child import WORKER_VARIABLE

    if os.environ.get(WORKER_VARIABLE):
        raise UsageError(
            "a reward file must not open a task itself. If it is also your training script, put the training under "
            '`if __name__ == "__main__":`.'
        )
    if (name is None) == (data is None):
        raise UsageError("give either the name of a task or data" + (", not both." if name else "; neither was given."))
    check_sizes(train_size, eval_size)
    if data is not None:
        from upslope.tasks.files import open_data

        task = open_data(data, settings or {}, reward, timeout, workers, train_size, eval_size)
    else:
        from upslope.tasks.reasoning_gym import open_procedural

        assert name is not None
        merged = {**recommended(for_model).get(name, {}), **(settings or {})}
        sizes = (train_size or 10_000, eval_size or 200)
        task = open_procedural(name, merged, seed, reward, timeout, workers, sizes)
    task.solved_at = solved_at
    return task


def check_sizes(train_size: int | None, eval_size: int | None) -> None:
    for label, size in (("train_size", train_size), ("eval_size", eval_size)):
        if size is not None and size < 1:
            raise UsageError(f"{label} must be at least 1, got {size}.")


def recommended(model: str | None) -> dict[str, dict[str, Any]]:
    """Settings of tasks for a model, by task: of one in the package, or of a folder made from it; empty for any other."""
    if not model:
        return {}
    folder = ASSETS / model if Path(model).name == model and (ASSETS / model).is_dir() else Path(model).expanduser()
    try:
        return json.loads((folder / "tasks.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}


def list_tasks(query: str | None = None) -> list[dict[str, Any]]:
    """Tasks with a name: {name, source, description, settings, recommended}, sorted by name.

    query keeps those whose name or description contains it; `settings` are the defaults; `recommended` are the
    settings for models in the package, by model.
    """
    from upslope.tasks.procedural import list_procedural

    models = sorted(path.parent.name for path in ASSETS.glob("*/tasks.json"))
    rows = []
    for row in list_procedural():
        wanted = (query or "").casefold()
        if wanted in row["name"].casefold() or wanted in row["description"].casefold():
            fitting = {model: recommended(model)[row["name"]] for model in models if row["name"] in recommended(model)}
            rows.append({**row, "recommended": fitting})
    return rows


def unknown_name(name: str, names: Sequence[str], what: str = "task") -> UsageError:
    """The error for a name that is not there, with the nearest ones that are."""
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    near += [other for other in names if name and name.casefold() in other.casefold() and other not in near][:6]
    hint = f"Did you mean {', '.join(near)}?" if near else "`upslope tasks` lists all."
    if what == "task" and _is_environment(name):
        hint = "It is an environment, and this method trains language models: `upslope methods --family control` plays in it."
    return UsageError(f"there is no {what} '{name}'. {hint}")


def _is_environment(name: str) -> bool:
    try:
        import gymnasium
    except ImportError:
        return False
    return name in gymnasium.registry
