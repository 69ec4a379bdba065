"""upslope eval MODEL --task NAME [-k K]"""

import json
from typing import TYPE_CHECKING, Annotated

import tyro

from upslope.cli.train import Flag, Repeated, resolve
from upslope.errors import UsageError
from upslope.rollout import Sampling

if TYPE_CHECKING:
    from upslope.evaluate import Evaluation


def command(
    model: tyro.conf.Positional[str],
    *,
    task: str | None = None,
    data: str | None = None,
    reward: str | None = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 1,
    samples: int | None = None,
    prompts: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    as_json: Annotated[Flag, tyro.conf.arg(name="json")] = False,
    set: Repeated = (),
) -> None:
    """pass@k of a model on a task's held-out prompts, by the unbiased estimator, with a bootstrap interval over prompts.

    Args:
        model: tiny, a Hugging Face folder (a checkpoint of a run is one), or a hub id.
        task: a name that `upslope tasks` lists.
        data: your own data, as for train.
        reward: your own reward, as for train.
        k: completions of which one must pass.
        samples: completions drawn per prompt; the larger of 4 and k where not given.
        prompts: held-out prompts, at most.
        temperature: of the sampling; 0 is greedy.
        seed: of task and sampling.
        as_json: print one JSON object.
        set: path=value, as for train; repeatable.
    """
    from upslope.evaluate import evaluate
    from upslope.setup import open_parts
    from upslope.threads import use_threads

    drawn = max(4, k) if samples is None else samples
    if not 1 <= k <= drawn:
        raise UsageError(
            f"eval: pass@{k} needs k between 1 and the {drawn} samples per prompt. Lower -k or raise --samples."
        )
    if prompts < 1:
        raise UsageError(f"eval: --prompts is {prompts}; it must be at least 1.")
    overrides = (f"eval.prompts={prompts}", f"eval.samples={drawn}", *set)
    given = {"model": model, "task": task, "data": data, "reward": reward, "seed": seed}
    config = resolve("reinforce", given, overrides, config=None, out=None, resume=False)
    use_threads(config.threads)
    parts = open_parts(config, recipe=None, task=None, policy=None, weights=None)
    try:
        found = evaluate(
            engine=parts.engine,
            judge=parts.task.judge,
            encode=parts.actors.policy.encode,
            examples=parts.eval_examples,
            samples=drawn,
            sampling=Sampling(parts.max_tokens, temperature, config.top_p, config.top_k, config.stop),
            solved_at=parts.task.solved_at,
            seed=seed,
            ks=(1, k),
        )
    finally:
        parts.task.close()
    _tell(found, sorted({1, k}), {"model": model, "task": parts.task.name, "samples": drawn}, as_json)


def _tell(found: "Evaluation", ks: list[int], facts: dict[str, object], as_json: bool) -> None:
    metrics = found.metrics
    if as_json:
        print(json.dumps({**facts, **metrics}))
        return
    drawn = f"{metrics['eval/prompts']:.0f} prompts, {facts['samples']} samples each"
    for k in ks:
        value, low, high = (metrics[f"eval/pass@{k}{end}"] for end in ("", "_low", "_high"))
        print(f"pass@{k}  {value:.3f}  [{low:.3f}, {high:.3f}]  ({drawn})")
    if metrics["eval/failed"]:
        reasons = {outcome.failure for outcome in found.outcomes if outcome.failure}
        print(f"{metrics['eval/failed']:.0f} rewards failed and count as not passed, e.g. {sorted(reasons)[0]}")
