"""`upslope eval RUN` for a policy that acts in an environment: the return of whole episodes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.config import merge_overrides, read_config
from upslope.errors import UsageError

if TYPE_CHECKING:
    from upslope.policies.control import ControlPolicy


def policy_folder(name: str) -> Path | None:
    """The folder of a saved control policy that a run's folder or a checkpoint stands for; None for anything else."""
    from upslope.runs.checkpoint import model_folder

    folder = Path(model_folder(name))
    return folder if (folder / "policy.json").is_file() else None


def print_returns(
    folder: Path,
    name: str,
    task: str | None,
    episodes: int,
    seed: int,
    as_json: bool,
    overrides: Sequence[str],
    film: tuple[Path | None, int] = (None, 0),
) -> None:
    """Prints the mean return of `episodes` episodes, with its interval. Without a task, that of the run the policy is of.

    film   a file for a video, or None, and how many episodes it shows
    """
    from upslope.collect import key_number
    from upslope.control.evaluation import play_episodes, return_metrics
    from upslope.policies.control import ControlPolicy
    from upslope.tasks.opening import open_environments
    from upslope.threads import use_threads

    if episodes < 1:
        raise UsageError(f"eval: --episodes is {episodes}; it must be at least 1.")
    use_threads(1)
    policy = ControlPolicy.load(folder)
    values = merge_overrides(_settings_of(folder), overrides)
    what = values.get("task") if task is None else task
    if what is None:
        raise UsageError(f"eval: {name} does not say what it plays: give --task.")
    own = values.get("task_settings", {}) if what == values.get("task") else {}
    starts = key_number(f"{seed}/evaluation") % 2**32
    environments = open_environments(what, min(episodes, 32), starts, settings=own, convention=policy.convention)
    try:
        if (environments.observations, environments.actions) != (policy.observations, policy.actions):
            raise UsageError(f"eval: {name} was trained on other observations or actions than those of {what}.")
        deterministic = bool(values.get("eval", {}).get("deterministic", True))
        shown = _film(policy, what, own, film, starts, deterministic)
        found = return_metrics(play_episodes(policy, environments, episodes, deterministic=deterministic, seed=seed))
    finally:
        environments.close()
    if as_json:
        print(json.dumps({"model": name, "task": what, **found}))
        return
    value, low, high = (found[f"eval/return{end}"] for end in ("", "_low", "_high"))
    how = "its likeliest actions" if deterministic else "drawn actions"
    print(f"return  {value:.2f}  [{low:.2f}, {high:.2f}]  ({episodes} episodes of {what}, {how})")
    print(f"standard deviation {found['eval/return_std']:.2f}, mean length {found['eval/length']:.1f}")
    for line in shown:
        print(line)


def _film(
    policy: "ControlPolicy", what: str, settings: Any, film: tuple[Path | None, int], seed: int, deterministic: bool
) -> list[str]:
    """Writes the video, if one is asked for, and says what it shows. Raises UsageError."""
    from upslope.control.video import film_episodes

    file, count = film
    if file is None:
        return []
    if count < 1:
        raise UsageError(f"eval: --video-episodes is {count}; it must be at least 1.")
    shown = film_episodes(policy, what, count, file, seed=seed, settings=settings, deterministic=deterministic)
    returns = ", ".join(f"{episode.total:.4g}" for episode in shown)
    return [f"video   {file}: {count} episode{'s' if count > 1 else ''} with a return of {returns}"]


def _settings_of(folder: Path) -> dict[str, object]:
    """The settings of the run that a checkpoint belongs to; {} for a policy of no run."""
    for place in (folder.parent.parent, folder):
        if (place / "config.yaml").is_file():
            return read_config(place / "config.yaml")
    return {}
