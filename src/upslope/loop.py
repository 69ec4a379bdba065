"""Who collects a run's rows and who learns from them."""

from typing import Any

import torch

from upslope.collect import Collector
from upslope.config import Config
from upslope.given import GivenCollector
from upslope.parts.data import FromData
from upslope.prompts import PromptStream
from upslope.samples import has_samples
from upslope.setup import Parts
from upslope.update import Updater
from upslope.writers import Writers


def open_loop(config: Config, parts: Parts) -> tuple[Any, Updater]:
    """The collector, of given completions where the recipe's `rollout` says so, and the updater."""
    recipe, policy = parts.recipe, parts.actors.policy
    recompute = config.old_logp == "recompute" or (config.old_logp == "auto" and policy.dtype != torch.float32)
    rollout: Any = recipe.rollout
    kept = rollout.replay > 0 or has_samples(recipe)  # log-probs that the collector gives
    updater = Updater(
        recipe,
        parts.actors,
        tokens_per_pass=config.tokens_per_pass,
        recompute_old_logp=recompute and not kept,  # an older policy's log-probs cannot be computed again
    )
    if isinstance(rollout, FromData):
        return open_given(config, parts, rescore=recompute), updater
    collector = Collector(
        engine=parts.engine,
        judge=parts.judge,
        encode=policy.encode,
        stream=PromptStream(parts.train_examples, config.seed),
        recipe=recipe,
        limit=parts.prompt_limit,
        tokens_per_pass=config.tokens_per_pass,
        rescore=recompute and kept,
    )
    return collector, updater


def open_given(config: Config, parts: Parts, *, rescore: bool = False) -> GivenCollector:
    """The collector of completions that the data gives, and of samples beside them where the recipe has any."""
    sampled = has_samples(parts.recipe)
    return GivenCollector(
        policy=parts.actors.policy,
        stream=PromptStream(parts.train_examples, config.seed),
        recipe=parts.recipe,
        limit=parts.prompt_limit,
        max_tokens=config.max_tokens,
        writers=Writers(parts.actors, parts.engine, tokens_per_pass=config.tokens_per_pass) if sampled else None,
        judge=parts.judge if sampled else None,
        rescore=rescore,
        stored=parts.stored,
    )
