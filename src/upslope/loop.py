"""Who collects a run's rows and who learns from them."""

from typing import Any

import torch

from upslope.collect import Collector
from upslope.config import Config
from upslope.given import GivenCollector
from upslope.parts.data import FromData
from upslope.prompts import PromptStream
from upslope.setup import Parts
from upslope.update import Updater


def open_loop(config: Config, parts: Parts) -> tuple[Any, Updater]:
    """The collector, of given completions where the recipe's `rollout` says so, and the updater."""
    recipe, policy = parts.recipe, parts.actors.policy
    recompute = config.old_logp == "recompute" or (config.old_logp == "auto" and policy.dtype != torch.float32)
    rollout: Any = recipe.rollout
    replays = rollout.replay > 0
    updater = Updater(
        recipe,
        parts.actors,
        tokens_per_pass=config.tokens_per_pass,
        recompute_old_logp=recompute and not replays,  # an older policy's log-probs cannot be computed again
    )
    stream = PromptStream(parts.train_examples, config.seed)
    if isinstance(rollout, FromData):
        given = GivenCollector(
            policy=policy, stream=stream, recipe=recipe, limit=parts.prompt_limit, max_tokens=config.max_tokens
        )
        return given, updater
    collector = Collector(
        engine=parts.engine,
        judge=parts.task.judge,
        encode=policy.encode,
        stream=stream,
        recipe=recipe,
        limit=parts.prompt_limit,
        tokens_per_pass=config.tokens_per_pass,
        rescore=recompute and replays,
    )
    return collector, updater
