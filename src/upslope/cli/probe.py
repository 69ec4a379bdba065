"""upslope probe A B ... --task NAME"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from upslope.cli.train import Flag, Repeated, resolve
from upslope.errors import UsageError

if TYPE_CHECKING:
    from upslope.assembly import Assembly
    from upslope.config import Config
    from upslope.probe import ProbeResult
    from upslope.recipe import Recipe
    from upslope.setup import Parts


def command(
    methods: tyro.conf.Positional[tuple[str, ...]],
    *,
    task: str | None = None,
    data: str | None = None,
    reward: str | None = None,
    model: str = "tiny",
    batches: int = 24,
    prompts: int = 8,
    group_size: int = 8,
    episodes: int = 8,
    seed: int = 0,
    as_json: Annotated[Flag, tyro.conf.arg(name="json")] = False,
    set: Repeated = (),
) -> None:
    """What each method's update would be on your task: one frozen policy, one large batch of rollouts, no training.

    Signal-to-noise ratio, cosine with the gradient of the expected reward, entropy change, KL and effective sample size.

    Examples:
      upslope probe grpo dr_grpo grpo:ratio_high=1.28 --task chain_sum
      upslope probe ppo a2c ppo:lam=1 --task CartPole-v1 --model runs/ppo-CartPole-v1

    Args:
        methods: names, each perhaps with settings of its own: NAME:SETTING=VALUE,SETTING=VALUE
        task: a name that `upslope tasks` lists.
        data: your own data, as for train.
        reward: your own reward, as for train.
        model: tiny, a Hugging Face folder, or a hub id; in an environment a run's folder, whose policy and critic are taken, or
            nothing: those that the first method begins with.
        batches: parts of the large batch, each of the size of a training step; at least 4.
        prompts: prompts of each part.
        group_size: completions of each prompt, for every method alike.
        episodes: in an environment: whole episodes of each part.
        seed: of task and sampling.
        as_json: print one JSON object.
        set: path=value, as for train; repeatable.
    """
    from upslope.cli.probe_control import print_probe

    _check(methods, batches, prompts, group_size, episodes)
    given = {"model": model, "task": task, "data": data, "reward": reward, "seed": seed}
    if _plays(methods):
        print_probe(methods, given, batches, episodes, as_json, set)
    else:
        _print_sampled(methods, given, (batches, prompts, group_size), as_json, set)


def _print_sampled(
    methods: tuple[str, ...],
    given: dict[str, Any],
    sizes: tuple[int, int, int],
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Of methods for language models."""
    from upslope.compare import plan_jobs
    from upslope.registry import make
    from upslope.threads import use_threads

    batches, prompts, group_size = sizes
    fixed = (f"prompts_per_step={prompts}", "eval.prompts=1")
    recipes: list[tuple[str, Recipe]] = []
    configs: list[Config] = []
    for job in plan_jobs(methods, 1, Path("probe")):
        config = resolve(job.method, given, (*fixed, *overrides, *job.overrides), config=None, out=None, resume=False)
        recipes.append((job.label, _sampling(make(job.method, **config.settings))))
        configs.append(config)
    use_threads(configs[0].threads)
    results = _measure(configs[0], recipes, batches, group_size, quiet=as_json)
    facts = {"model": given["model"], "task": given["task"] or given["data"]}
    facts |= {"batches": batches, "prompts": prompts, "group_size": group_size}
    if as_json:
        print(json.dumps({**facts, "methods": [dataclasses.asdict(result) for result in results]}))
        return
    for line in table(results):
        print(line)


def _sampling(recipe: "Assembly") -> "Recipe":
    """The recipe, if it can learn from the sampled rollouts of a task."""
    from upslope.parts.data import FromData
    from upslope.recipe import Recipe
    from upslope.setup import check_columns

    if not isinstance(recipe, Recipe):
        raise UsageError(
            f"probe: '{recipe.name}' learns from stored transitions by a critic: it has no gradient of fresh rollouts to measure. "
            "Compare what it learns: upslope compare."
        )
    if isinstance(recipe.rollout, FromData):
        raise UsageError(
            f"probe: '{recipe.name}' learns from {recipe.rollout.kind} that a file gives; probe compares methods that sample."
        )
    check_columns(recipe)
    return recipe


def _plays(methods: tuple[str, ...]) -> bool:
    """Whether any of them learns from what it has just played in an environment."""
    from upslope.compare import parse_entry
    from upslope.parts.steps import Playing
    from upslope.registry import make

    return any(isinstance(getattr(make(parse_entry(one)[0]), "rollout", None), Playing) for one in methods)


def _check(methods: tuple[str, ...], batches: int, prompts: int, group_size: int, episodes: int) -> None:
    if not methods:
        raise UsageError("probe: name at least one method. Example: upslope probe grpo dr_grpo --task chain_sum")
    sizes = (("batches", batches, 4), ("prompts", prompts, 1), ("group-size", group_size, 2), ("episodes", episodes, 2))
    for name, value, least in sizes:
        if value < least:
            raise UsageError(f"probe: --{name} is {value}; it must be at least {least}.")


def _measure(
    config: "Config", recipes: "list[tuple[str, Recipe]]", batches: int, group_size: int, *, quiet: bool
) -> "list[ProbeResult]":
    """Opens model and task, samples the large batch and measures every recipe on it."""
    from upslope.probe import probe
    from upslope.registry import make
    from upslope.setup import open_parts

    union = _union([recipe for _, recipe in recipes])
    parts = open_parts(config, recipe=union, task=None, policy=None, weights=None)
    say = (lambda line: None) if quiet else (lambda line: print(f"  {line}", flush=True))
    try:
        if not quiet:
            rollouts = batches * config.prompts_per_step * group_size
            print(f"{rollouts} rollouts of {config.model} on {parts.task.name}, in {batches} batches; gradients of")
        large = _sample(parts, config, make("reinforce", group_size=group_size), batches)
        return probe(
            recipes,
            parts.actors,
            large,
            lr=parts.actors.learner.lr,
            optimizer=config.optimizer,
            tokens_per_pass=config.tokens_per_pass,
            seed=config.seed,
            say=say,
        )
    finally:
        parts.task.close()


def _union(recipes: "list[Recipe]") -> "Recipe":
    """A recipe that needs what any of them needs of a reference or a critic."""
    from upslope.registry import make

    reads = next((recipe for recipe in recipes if "ref_logp" in recipe.needs), make("reinforce"))
    critic = next((recipe.critic for recipe in recipes if recipe.critic is not None), None)
    return reads.replace(critic=critic, update=make("reinforce").update)


def _sample(parts: "Parts", config: "Config", recipe: "Recipe", batches: int) -> list[Any]:
    from upslope.collect import Collector, PromptStream
    from upslope.rollout import Sampling

    collector = Collector(
        engine=parts.engine,
        judge=parts.judge,
        encode=parts.actors.policy.encode,
        stream=PromptStream(parts.train_examples, config.seed),
        recipe=recipe,
        limit=parts.prompt_limit,
    )
    sampling = Sampling(parts.max_tokens, 1.0, config.top_p, config.top_k, config.stop)
    state: dict[str, Any] = {"cursor": 0}
    found = []
    for index in range(batches):
        collected, state = collector.collect(
            state, prompts=config.prompts_per_step, sampling=sampling, key=(config.seed, "probe", index)
        )
        found.append(collected)
    return found


COLUMNS = (
    ("signal/noise", lambda r: str(r.snr)),
    ("cosine to reward", lambda r: str(r.cosine)),
    ("batch to rest", lambda r: f"{r.alignment:.2f}"),
    ("entropy", lambda r: f"{r.entropy:+.4f}"),
    ("KL", lambda r: f"{r.kl:.2e}"),
    ("ESS", lambda r: f"{r.effective:.3f}"),
    ("rows", lambda r: f"{r.contributing:.0%}"),
    ("time", lambda r: f"{r.seconds:.2f}"),
)
LEGEND = (
    "signal/noise: |mean gradient|^2 over the variance of one batch's gradient, with a 95 % interval",
    "cosine to reward: of the mean gradient with that of the expected reward; below 1 the method pursues something else, too; an",
    "  estimate without bias, which noise may carry beyond 1",
    "batch to rest: cosine of one batch's gradient with that of all others together",
    "entropy, KL, ESS: of one optimizer step: change of token entropy, KL per token, effective sample size of other rollouts",
    "rows: rollouts that have a gradient.   time: of a gradient, relative to the first method",
)


def table(results: "list[ProbeResult]", *, legend: tuple[str, ...] = LEGEND, goal: str = "reward") -> list[str]:
    """One line per method under a heading, then what the columns mean."""
    cells = [["", *(name.replace("reward", goal) for name, _ in COLUMNS)]]
    cells += [[result.name, *(show(result) for _, show in COLUMNS)] for result in results]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [*lines, "", *legend]
