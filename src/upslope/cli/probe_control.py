"""`upslope probe` for methods that learn in an environment."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.train import resolve
from upslope.errors import UsageError

if TYPE_CHECKING:
    from upslope.config import Config
    from upslope.recipe import Recipe

LEGEND = (
    "signal/noise: |mean gradient|^2 over the variance of one batch's gradient, with a 95 % interval",
    "cosine to return: of the mean gradient with that of the expected return, undiscounted and up to the time limit; below 1 the",
    "  method pursues something else, too (a discount, an entropy); an estimate without bias, which noise may carry beyond 1",
    "batch to rest: cosine of one batch's gradient with that of all others together",
    "entropy, KL, ESS: of one optimizer step: change of the entropy, KL per action, effective sample size of other episodes",
    "rows: actions whose log-prob has a gradient.   time: of a gradient, relative to the first method",
)


def print_probe(
    methods: Sequence[str],
    given: Mapping[str, Any],
    batches: int,
    episodes: int,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Measures the methods on episodes of one frozen policy and prints the table. Raises UsageError for one that does not play."""
    from upslope.cli.probe import table
    from upslope.compare import plan_jobs
    from upslope.control.on_policy import OnPolicyAgent
    from upslope.control.probing import load_run, probe_control
    from upslope.registry import make
    from upslope.threads import use_threads

    start = given["model"] if given["model"] != "tiny" else None
    seed: int = given["seed"]
    options = {name: given[name] for name in ("task", "data", "reward", "seed")}
    recipes: list[tuple[str, Recipe]] = []
    configs: list[Config] = []
    for job in plan_jobs(methods, 1, Path("probe")):
        config = resolve(job.method, options, (*overrides, *job.overrides), config=None, out=None, resume=False)
        recipes.append((job.label, _on_policy(make(job.method, **config.settings))))
        configs.append(config)
    use_threads(configs[0].threads or 1)
    agent = OnPolicyAgent(configs[0], _with_critic([recipe for _, recipe in recipes]))
    try:
        if start is not None:
            load_run(agent, start)
        name = agent.environments.name
        if not as_json:
            whose = f"of {start}" if start is not None else f"that {methods[0]} begins with"
            print(f"{batches} batches of {episodes} episodes of {name}, played with the policy {whose}; gradients of")
        say = (lambda line: None) if as_json else (lambda line: print(f"  {line}", flush=True))
        results = probe_control(recipes, agent, batches=batches, episodes=episodes, seed=seed, say=say)
    finally:
        agent.close()
    if as_json:
        facts = {"model": start, "task": name, "batches": batches, "episodes": episodes}
        print(json.dumps({**facts, "methods": [dataclasses.asdict(result) for result in results]}))
        return
    for line in table(results, legend=LEGEND, goal="return"):
        print(line)


def _on_policy(recipe: Any) -> "Recipe":
    from upslope.parts.steps import Playing
    from upslope.recipe import Recipe

    if not isinstance(recipe, Recipe):
        raise UsageError(
            f"probe: '{recipe.name}' learns from stored transitions by a critic: it has no gradient of fresh rollouts to measure. "
            "Compare what it learns: upslope compare."
        )
    if not isinstance(recipe.rollout, Playing):
        raise UsageError(
            f"probe: '{recipe.name}' does not play in an environment, and others here do. Probe it by itself."
        )
    return recipe


def _with_critic(recipes: "Sequence[Recipe]") -> "Recipe":
    """The first recipe, with a critic if any of them has one."""
    critic = next((recipe.critic for recipe in recipes if recipe.critic is not None), None)
    return recipes[0] if recipes[0].critic is not None else recipes[0].replace(critic=critic)
