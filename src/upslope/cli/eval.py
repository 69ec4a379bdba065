"""upslope eval MODEL --task NAME [-k K | --win-rate OTHER]"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from upslope.cli.returns import Playing, evaluate_policy, policy_folder
from upslope.cli.train import Flag, Repeated, resolve
from upslope.errors import UsageError
from upslope.rollout import Example, Sampling

if TYPE_CHECKING:
    from upslope.config import Config
    from upslope.evaluate import Evaluation


def command(
    model: tyro.conf.Positional[str],
    *,
    task: str | None = None,
    data: str | None = None,
    reward: str | None = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 1,
    win_rate: str | None = None,
    reward_model: str | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
    judge_prompt: Path | None = None,
    out: Path | None = None,
    samples: int | None = None,
    prompts: int = 200,
    temperature: float = 1.0,
    playing: Annotated[Playing, tyro.conf.arg(name="")] = Playing(),  # noqa: B008 - frozen
    seed: int = 0,
    as_json: Annotated[Flag, tyro.conf.arg(name="json")] = False,
    set: Repeated = (),
) -> None:
    """pass@k on a task's held-out prompts, unbiased, with a bootstrap interval; of a policy for an environment its mean return.
    With --win-rate OTHER: both models answer, and a judge compares: the task's reward, a reward model or a language model.

    Examples:
      upslope eval runs/demo --task chain_sum -k 4
      upslope eval runs/cartpole --episodes 100 --video cartpole.mp4
      upslope eval runs/sac-Pendulum-v1 --data data/pendulum-medium
      upslope eval ./new --win-rate ./old --data prompts.jsonl --judge http://localhost:8000/v1 --judge-model NAME

    Args:
        model: tiny, a Hugging Face folder (a checkpoint of a run is one), a run's folder (its newest checkpoint), or a hub id.
        task: a name that `upslope tasks` lists.
        data: your own data, as for train; of a policy for an environment a log that tells what it would earn (FQE, IPS, WIS, DR).
        reward: your own reward, as for train.
        k: completions of which one must pass.
        win_rate: the other model. Each answer of the one meets each answer of the other; with --judge, sample i meets sample i.
        reward_model: a reward model's folder, whose score decides instead of the reward.
        judge: URL of an OpenAI-compatible API that decides, asked in both orders; its key is read from UPSLOPE_JUDGE_KEY.
        judge_model: name of the judge's model.
        judge_prompt: a file with {prompt}, {first} and {second} that asks the judge for [[A]], [[B]] or [[C]] (a tie).
        out: a file for all answers and comparisons, one JSON line per prompt.
        samples: completions drawn per prompt; the larger of 4 and k where not given.
        prompts: held-out prompts, at most.
        temperature: of the sampling; 0 is greedy.
        seed: of task and sampling.
        as_json: print one JSON object.
        set: path=value, as for train; repeatable; with --data of a policy discount, fqe_steps, ratio_clip.
    """
    from upslope.cli.win_rate import Deciding, play

    if (folder := policy_folder(model)) is not None:
        return evaluate_policy(folder, model, task, data, playing, seed, as_json, set)
    playing.refuse(model)
    who = Deciding(reward_model, judge, judge_model, judge_prompt)
    drawn = samples_of(k, samples, prompts, win_rate, {**who.options(), "--out": out})
    config = config_of(model, {"task": task, "data": data, "reward": reward, "seed": seed}, prompts, drawn, set)
    if win_rate is not None:
        return play(config, (model, win_rate), who, temperature, out, as_json)
    return pass_at_k(config, model, sorted({1, k}), temperature, as_json)


def config_of(model: str, given: dict[str, Any], prompts: int, samples: int, overrides: tuple[str, ...]) -> "Config":
    """The Config by which a model is evaluated."""
    from upslope.runs.checkpoint import model_folder

    overrides = (f"eval.prompts={prompts}", f"eval.samples={samples}", *overrides)
    given = {"model": model_folder(model), **given}
    return resolve("reinforce", given, overrides, config=None, out=None, resume=False)


def samples_of(k: int, samples: int | None, prompts: int, win_rate: str | None, options: dict[str, object]) -> int:
    """How many completions are drawn of each prompt. Raises UsageError as `check_options`."""
    drawn = max(4, k) if samples is None else samples
    check_options(k, drawn, prompts, win_rate, options)
    return drawn


def check_options(k: int, samples: int, prompts: int, win_rate: str | None, options: dict[str, object]) -> None:
    """Raises UsageError for a wrong number, an option that would not be read, or one that another needs."""
    if not 1 <= k <= samples:
        raise UsageError(
            f"eval: pass@{k} needs k between 1 and the {samples} samples per prompt. Lower -k or raise --samples."
        )
    if prompts < 1:
        raise UsageError(f"eval: --prompts is {prompts}; it must be at least 1.")
    if win_rate is None:
        unread = [name for name, value in options.items() if value is not None]
        if unread:
            raise UsageError(f"eval: {unread[0]} is for comparing with another model: give --win-rate OTHER.")
        return
    if k != 1:
        raise UsageError(
            f"eval: --win-rate does not read -k {k}. Leave it out; --samples says how many answers are drawn."
        )
    if options["--judge"] is None:
        unread = [name for name in ("--judge-model", "--judge-prompt") if options[name] is not None]
        if unread:
            raise UsageError(f"eval: {unread[0]} is for a language model as judge: give --judge URL.")
    elif options["--judge-model"] is None:
        raise UsageError("eval: --judge needs the name of the model behind it: give --judge-model NAME.")
    elif options["--reward-model"] is not None:
        raise UsageError("eval: --judge and --reward-model both decide which answer is better. Leave one of them out.")


def pass_at_k(config: "Config", model: str, ks: list[int], temperature: float, as_json: bool) -> None:
    from upslope.evaluate import evaluate
    from upslope.setup import open_parts
    from upslope.threads import use_threads

    use_threads(config.threads)
    parts = open_parts(config, recipe=None, task=None, policy=None, weights=None)
    try:
        require_prompts(parts.eval_examples)
        found = evaluate(
            engine=parts.engine,
            judge=parts.task.judge,
            encode=parts.actors.policy.encode,
            examples=parts.eval_examples,
            samples=config.eval.samples,
            sampling=Sampling(parts.max_tokens, temperature, config.top_p, config.top_k, config.stop),
            solved_at=parts.task.solved_at,
            seed=config.seed,
            ks=ks,
        )
    finally:
        parts.task.close()
    _tell(found, ks, {"model": model, "task": parts.task.name, "samples": config.eval.samples}, as_json)


def require_prompts(examples: Sequence[Example]) -> None:
    if not examples:
        raise UsageError("eval: there is no held-out prompt. Give more rows, or --set task_settings.eval_data=FILE.")


def _tell(found: "Evaluation", ks: list[int], facts: dict[str, object], as_json: bool) -> None:
    metrics = found.metrics
    if as_json:
        print(json.dumps({**facts, **metrics}))
        return
    drawn = f"{metrics['eval/prompts']:.0f} prompts, {facts['samples']} samples each"
    for k in [k for k in ks if f"eval/pass@{k}" in metrics]:
        value, low, high = (metrics[f"eval/pass@{k}{end}"] for end in ("", "_low", "_high"))
        print(f"pass@{k}  {value:.3f}  [{low:.3f}, {high:.3f}]  ({drawn})")
    if "eval/reward_low" in metrics:  # nothing says what is solved, as with a reward model alone
        value, low, high = (metrics[f"eval/reward{end}"] for end in ("", "_low", "_high"))
        print(f"mean reward  {value:.3f}  [{low:.3f}, {high:.3f}]  ({drawn})")
    if metrics["eval/failed"]:
        reasons = {outcome.failure for outcome in found.outcomes if outcome.failure}
        print(f"{metrics['eval/failed']:.0f} rewards failed and count as not passed, e.g. {sorted(reasons)[0]}")
