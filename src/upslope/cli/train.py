"""upslope train METHOD [--task NAME | --data FILE] [...]"""

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from upslope.config import Config, config_from, merge_overrides, read_config
from upslope.errors import UsageError

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
GIVEN = ("task", "model", "data", "reward", "reward_model", "teacher", "steps", "seed")


def command(
    method: tyro.conf.Positional[str] = "",
    *,
    task: str | None = None,
    model: str | None = None,
    data: str | None = None,
    reward: str | None = None,
    reward_model: str | None = None,
    teacher: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    out: Path | None = None,
    resume: Flag = False,
    config: Path | None = None,
    hyperparameters: str | None = None,
    set: Repeated = (),
) -> int:
    """Train by a method: a language model on a task by name or on your own data and reward, or a policy in an environment.

    Examples:
      upslope train grpo --task chain_sum
      upslope train dr_grpo --data questions.jsonl --reward my_reward.py:score --model ./my-model
      upslope train grpo --task chain_sum --set ratio_high=1.28 --set optimizer.lr=3e-4
      upslope train dpo --data pairs.jsonl --task chain_sum
      upslope train rm --data pairs.jsonl
      upslope train rlhf_ppo --task chain_sum --reward-model runs/rm-pairs
      upslope train ppo --task CartPole-v1 --hyperparameters ppo.yml
      upslope train grpo --out runs/first --resume

    Args:
        method: a name that `upslope methods` lists, `grpo@trl` for a system's preset, or the path of a method's file.
        task: a name that `upslope tasks` lists; with a method that learns from --data, what it is evaluated on.
        model: tiny (the embedded model), a Hugging Face folder, a run's folder (its newest checkpoint), or a hub id.
        data: JSONL, JSON, CSV or Parquet, or a datasets folder, with the columns of TRL, verl, OpenRLHF or question/answer; pairs,
            labelled completions or demonstrations for methods that learn from them.
        reward: FILE.py:FUNCTION, math, exact or regex:PATTERN; sums as `a.py:f*0.5+exact*1.0`. Methods that learn from given
            completions or from a teacher alone need none.
        reward_model: a reward model to train on, as `upslope train rm` makes them: a folder, a run's folder (its newest checkpoint)
            or a hub id. The task's reward then only measures; --data needs none.
        teacher: a model as for --model, for methods that distill; or the policy itself: frozen, live or ema.
        steps: optimizer steps' worth of rollouts to train for.
        seed: seed of prompts, sampling and initial adapters.
        out: the run's folder; a new one under runs/ where not given.
        resume: go on with the run in --out.
        config: YAML with settings, as a run's config.yaml.
        hyperparameters: for ppo, a2c, trpo, sac and td3, a YAML file as rl-baselines3-zoo has them: the entry of --task, or of
            FILE:ENTRY. What has no counterpart is told, and nothing in it is run.
        set: path=value, for any setting of the run (optimizer.lr=1e-4) or of the method (ratio_high=1.28); repeatable.
    """
    given = {name: value for name, value in locals().items() if name in GIVEN}
    base = None
    if hyperparameters is not None:
        if config is not None or resume:
            raise UsageError(
                "train: --hyperparameters starts a run, and --config or --resume has its settings. Leave one out."
            )
        method, base = _from_zoo(hyperparameters, method, task)
    resolved = resolve(method, given, set, config=config, out=out, resume=resume, base=base)
    folder = out or _new_folder(resolved)
    return train(resolved, folder, resume)


def resolve(
    method: str,
    given: dict[str, Any],
    overrides: tuple[str, ...],
    *,
    config: Path | None,
    out: Path | None,
    resume: bool,
    base: dict[str, Any] | None = None,
) -> Config:
    """The run's Config: `base`, or a file (or the resumed run's own), then the options given, then --set."""
    values: dict[str, Any] = dict(base or {})
    if resume:
        if out is None:
            raise UsageError("train: --resume needs the run's folder: --out DIR.")
        if config is None and (out / "config.yaml").exists():
            values = read_config(out / "config.yaml")
    if config is not None:
        values = read_config(config)
    options = {name: value for name, value in given.items() if value is not None}
    if method:
        options["method"] = method
    if not method and "method" not in values:
        raise UsageError(
            "train: which method? Example: upslope train grpo --task chain_sum. `upslope methods` lists them."
        )
    if "data" in options and "task" not in options:
        values.pop("task", None)
    if "task" in options and "data" not in options:
        values.pop("data", None)
    merged = config_from(merge_overrides({**values, **options}, overrides), where=str(config) if config else "train")
    from upslope.embedded import with_embedded

    resolved = with_embedded(merged)
    if resolved.task is None and resolved.data is None:
        raise UsageError("no task: give --task NAME (`upslope tasks` lists them) or --data FILE.")
    return resolved


def _from_zoo(file: str, method: str, task: str | None) -> tuple[str, dict[str, Any]]:
    """The method and the values that a file of hyper-parameters gives; prints what is done otherwise than it says."""
    from upslope.hyperparameters import read_hyperparameters

    if task is None or not method:
        raise UsageError(
            "train: --hyperparameters needs a method and a task: upslope train ppo --task CartPole-v1 --hyperparameters FILE."
        )
    found = read_hyperparameters(file, method, task)
    print(f"{file}: the entry {found.entry}, over {found.method}")
    for note in found.notes:
        print(f"  {note}")
    values: dict[str, Any] = {"settings": found.settings, "task_settings": found.task_settings}
    return found.method, values if found.steps is None else {**values, "steps": found.steps}


def train(config: Config, folder: Path, resume: bool) -> int:
    """Runs the training with its live view, self-checks, report and summary; returns the exit status."""
    from upslope.threads import use_threads

    use_threads(config.threads)
    from upslope.progress import progress
    from upslope.session import run_session

    with progress(config) as view:
        summary = run_session(config, folder, resume=resume, view=view)
    outcome, *lines = summary.lines
    print(outcome if summary.ok else f"upslope: {outcome}", file=sys.stdout if summary.ok else sys.stderr)
    for line in lines:
        print(line)
    return 0 if summary.ok else 1


def _new_folder(config: Config) -> Path:
    """runs/METHOD-TASK, or with the first free number behind it."""
    what = config.task or Path(config.data or "data").stem
    base = f"{Path(config.method).stem}-{what}".replace("@", "-").replace("/", "-").replace(":", "-")
    names = [base, *(f"{base}-{number}" for number in range(2, 10_000))]
    return next(path for name in names if not (path := Path("runs", name)).exists())
