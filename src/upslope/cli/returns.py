"""`upslope eval RUN` for a policy that acts in an environment: the return of whole episodes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.config import merge_overrides, read_config
from upslope.errors import UsageError
from upslope.offline.found import PUBLISHED, normalized_score
from upslope.offline.minari import reference_scores

if TYPE_CHECKING:
    from upslope.policies.control import ControlPolicy


def policy_folder(name: str) -> Path | None:
    """The folder of a saved control policy that a run's folder or a checkpoint stands for; None for anything else."""
    from upslope.runs.checkpoint import model_folder

    folder = Path(model_folder(name))
    return folder if (folder / "policy.json").is_file() else None


@dataclass(frozen=True)
class Playing:
    """How a policy is played in its environment."""

    episodes: int = 20
    """played by a policy in its environment, or in --task."""
    video: Path | None = None
    """an .mp4 or .gif of such episodes."""
    video_episodes: int = 3
    """how many of them are filmed."""
    reference: tuple[float, float] | None = None
    """returns of random actions and of an expert, for a normalized score; those of the log that it learned from, or D4RL's, where
    not given."""

    def refuse(self, model: str) -> None:
        """Raises UsageError where one of these is given for a language model."""
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if given:
            option = given[0].replace("_", "-")
            there = Path(model).expanduser().exists()
            what = f"{model} is a language model" if there or model == "tiny" else f"there is no folder {model}"
            remedy = (
                "Leave it out"
                if there or model == "tiny"
                else "Give a run's folder, or leave it out for a model's name"
            )
            raise UsageError(f"eval: --{option} is of a policy in an environment, and {what}. {remedy}.")


def evaluate_policy(
    folder: Path,
    name: str,
    task: str | None,
    data: str | None,
    playing: Playing,
    seed: int,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Prints the mean return of episodes, or where `data` is given what a log says of it."""
    if data is None:
        return print_returns(folder, name, task, seed, as_json, overrides, playing)
    from upslope.cli.policy_value import print_estimates

    if playing != Playing() or task is not None:
        raise UsageError(
            "eval: --data estimates by a log, without playing: --task, --episodes, --video and --reference are not read. "
            "Leave them out."
        )
    return print_estimates(folder, name, data, seed, as_json, overrides)


def print_returns(
    folder: Path,
    name: str,
    task: str | None,
    seed: int,
    as_json: bool,
    overrides: Sequence[str],
    playing: Playing,
) -> None:
    """Prints the mean return of `playing.episodes` episodes with its interval, and its normalized score where that is known.

    Without a task, that of the run the policy is of.
    """
    from upslope.collect import key_number
    from upslope.control.certifying import trained_noise
    from upslope.control.evaluation import play_episodes, return_metrics
    from upslope.policies.control import ControlPolicy
    from upslope.tasks.noise import noisy
    from upslope.tasks.opening import open_environments
    from upslope.threads import use_threads

    episodes, references = playing.episodes, playing.reference
    if references is not None and not references[1] > references[0]:
        raise UsageError(
            f"eval: --reference {references[0]:g} {references[1]:g}: the expert's must be above that of random actions."
        )
    if episodes < 1:
        raise UsageError(f"eval: --episodes is {episodes}; it must be at least 1.")
    use_threads(1)
    policy = ControlPolicy.load(folder)
    values = merge_overrides(_settings_of(folder), overrides)
    what = values.get("task") if task is None else task
    if what is None:
        raise _unknown(name, values.get("data"))
    own = values.get("task_settings", {}) if what == values.get("task") else {}
    starts = key_number(f"{seed}/evaluation") % 2**32
    noise = trained_noise(values)
    environments = open_environments(what, min(episodes, 32), starts, settings=own, convention=policy.convention)
    environments = noisy(environments, noise)
    try:
        if (environments.observations, environments.actions) != (policy.observations, policy.actions):
            raise UsageError(f"eval: {name} was trained on other observations or actions than those of {what}.")
        deterministic = bool(values.get("eval", {}).get("deterministic", True))
        chosen: dict[str, Any] = {"deterministic": deterministic, "noise": noise, "copies": environments.count}
        shown = _film(policy, what, own, playing, starts, chosen)
        found = return_metrics(play_episodes(policy, environments, episodes, deterministic=deterministic, seed=seed))
    finally:
        environments.close()
    scored = _score(found, values, what, playing.reference)
    if as_json:
        print(json.dumps({"model": name, "task": what, **found}))
        return
    value, low, high = (found[f"eval/return{end}"] for end in ("", "_low", "_high"))
    how = "its likeliest actions" if deterministic else "drawn actions"
    how += f", noise {noise:g} on observations" if noise else ""
    print(f"return  {value:.2f}  [{low:.2f}, {high:.2f}]  ({episodes} episodes of {what}, {how})")
    print(f"standard deviation {found['eval/return_std']:.2f}, mean length {found['eval/length']:.1f}")
    for line in (*scored, *shown):
        print(line)


def _score(found: dict[str, Any], values: Mapping[str, Any], task: str, given: tuple[float, float] | None) -> list[str]:
    """Adds eval/normalized_score and what it is measured by; a line that says so. [] where no references are known."""
    references, whose = _references(values, task, given)
    if references is None:
        return []
    score = {end: normalized_score(found[f"eval/return{end}"], references) for end in ("", "_low", "_high")}
    found |= {f"eval/normalized_score{end}": value for end, value in score.items()}
    found |= {"random_return": references[0], "expert_return": references[1]}
    interval = f"[{score['_low']:.1f}, {score['_high']:.1f}]"
    return [
        f"normalized score {score['']:.1f}  {interval}  "
        f"(0: random actions, {references[0]:.4g}; 100: an expert, {references[1]:.4g}; {whose})"
    ]


def _unknown(name: str, data: object) -> UsageError:
    of_log = f" It learned from the log {data}, which names no environment, or is not there." if data else ""
    return UsageError(f"eval: {name} does not say what it plays: give --task.{of_log}")


def _references(
    values: Mapping[str, Any], task: str, given: tuple[float, float] | None
) -> tuple[tuple[float, float] | None, str]:
    """(random, expert) and whose they are: those given, the training log's, or D4RL's."""
    if given is not None:
        return given, "as given"
    data = values.get("data")
    if data is not None and task == values.get("task", task) and (of_log := reference_scores(Path(str(data)))):
        return of_log, f"of the log {data}"
    name, _, version = task.partition("-v")
    known = PUBLISHED.get(name) if version.isdigit() else None
    return known, f"D4RL's, of {name}-v2"


def _film(
    policy: "ControlPolicy", what: str, settings: Any, playing: Playing, seed: int, how: Mapping[str, Any]
) -> list[str]:
    """Writes the video, if one is asked for, and says what it shows. Raises UsageError."""
    from upslope.control.video import film_episodes

    file, count = playing.video, playing.video_episodes
    if file is None:
        return []
    if count < 1:
        raise UsageError(f"eval: --video-episodes is {count}; it must be at least 1.")
    shown = film_episodes(policy, what, count, file, seed=seed, settings=settings, **how)
    returns = ", ".join(f"{episode.total:.4g}" for episode in shown)
    return [f"video   {file}: {count} episode{'s' if count > 1 else ''} with a return of {returns}"]


def _settings_of(folder: Path) -> dict[str, object]:
    """The settings of the run that a checkpoint belongs to, with its log's task; {} for a policy of no run."""
    from upslope.runs.checkpoint import run_of
    from upslope.tasks.of_run import with_task

    run = run_of(folder)
    return {} if run is None else with_task(read_config(run / "config.yaml"))
