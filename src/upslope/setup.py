"""From a Config to the parts of a run: recipe, task, policy, engine, reference, critic, learners."""

import hashlib
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upslope.batch import COLUMNS
from upslope.collect import SAMPLED_COLUMNS
from upslope.config import Config
from upslope.errors import UsageError
from upslope.given import GIVEN_COLUMNS
from upslope.learner import Learner
from upslope.parts.data import FromData
from upslope.parts.sampling import Curriculum
from upslope.recipe import Part, Recipe
from upslope.registry import make
from upslope.rollout import Example
from upslope.tasks.scorers import VERDICT_COLUMNS
from upslope.teaching import comparisons, informing, reads_teacher
from upslope.threads import use_threads
from upslope.update import MODEL_COLUMNS, SCORED_COLUMNS, Actors, Measures

logger = logging.getLogger("upslope")
DEFAULT_MAX_TOKENS = 64
EMA_RATE = 0.01  # share of the newest weights in every step, of a teacher that averages the policy's


@dataclass
class Parts:
    """What a run works with. `prompt_limit`: tokens that a prompt may have."""

    recipe: Recipe
    task: Any
    train_examples: Sequence[Example]
    eval_examples: list[Example]
    actors: Actors
    engine: Any
    max_tokens: int
    prompt_limit: int
    fingerprint: str


def open_parts(config: Config, *, recipe: Recipe | None, task: Any, policy: Any, weights: Path | None) -> Parts:
    """Opens everything that `config` names; `weights` is the checkpoint's folder of a resumed run.

    Raises UsageError naming the setting to change.
    """
    from transformers.utils import logging as transformers_logging

    from upslope.engines.local import LocalEngine

    transformers_logging.disable_progress_bar()  # one per checkpoint, over the run's own progress
    if config.threads is not None:
        use_threads(config.threads)
    recipe = recipe or make(config.method, **config.settings)
    for stage in ("curriculum", "rollout", "update"):
        if getattr(recipe, stage) is None:
            raise UsageError(
                f"'{recipe.name}' has no part for {stage}, which training needs. Add e.g. {DEFAULT_PARTS[stage]}."
            )
    check_columns(recipe)
    data = _open_completions(config, recipe, task)
    task = (task if data is not task else None) or _open_task(config, data)
    try:
        actors, fingerprint = _open_actors(config, recipe, policy, weights)
        max_tokens = config.max_tokens or getattr(task, "max_tokens", None) or DEFAULT_MAX_TOKENS
        limit = _limit(actors.policy, max_tokens if data is None else config.max_tokens or 1)
        train = (data or task).examples("train")
        fitting(train, actors.policy.encode, limit, 1, "training")
        eval_limit = limit if task is data else _limit(actors.policy, max_tokens)
        held_out, long = fitting(
            task.examples("eval"), actors.policy.encode, eval_limit, config.eval.prompts, "held-out"
        )
        if long:
            logger.warning("%d held-out prompts are longer than %d tokens and are passed over.", long, eval_limit)
        return Parts(recipe, task, train, held_out, actors, LocalEngine(actors.policy), max_tokens, limit, fingerprint)
    except BaseException:
        task.close()
        raise


def _limit(policy: Any, max_tokens: int) -> int:
    """Tokens that a prompt may have beside `max_tokens` of a completion."""
    limit: int = policy.context_length - max_tokens
    if limit < 1:
        raise UsageError(
            f"max_tokens={max_tokens} leaves no room for a prompt in the model's context of "
            f"{policy.context_length} tokens. Set max_tokens below that."
        )
    return limit


def check_columns(recipe: Recipe) -> None:
    """Raises UsageError where the recipe reads columns that nothing in the training of a language model makes.

    A curriculum that tells something of the prompts may make any.
    """
    parts = [part for _, part in recipe.stages()]
    sampled = not isinstance(recipe.rollout, FromData)
    made = SAMPLED_COLUMNS if sampled else GIVEN_COLUMNS
    made = made | SCORED_COLUMNS | MODEL_COLUMNS | recipe.observes().keys() | (VERDICT_COLUMNS if sampled else set())
    made = made.union(comparisons(recipe), *(part.needs for part in parts if isinstance(part, Measures)))
    if recipe.critic is not None:
        made |= {"old_value"}
    if any(type(part).alter_prompt is not Part.alter_prompt for part in parts):
        made |= {"masked_logp"}
    absent = sorted(recipe.needs - made)
    curriculum = recipe.curriculum
    tells = isinstance(curriculum, Curriculum) and type(curriculum).track is not Curriculum.track
    if absent and not (sampled and tells):
        listed = ", ".join(f"'{name}'{_meaning(name)}" for name in absent)
        source = "sampling" if sampled else "the data"
        raise UsageError(
            f"'{recipe.name}' reads {listed}, and neither {source}, nor the policy, nor the verifier makes "
            f"{'that column' if len(absent) == 1 else 'those columns'}. It cannot be trained here; call the recipe on a Batch "
            f"that has {'it' if len(absent) == 1 else 'them'}."
        )


def _meaning(name: str) -> str:
    return f" ({COLUMNS[name].meaning})" if name in COLUMNS else ""


DEFAULT_PARTS = {
    "curriculum": "curriculum=Uniform()",
    "rollout": "rollout=Sample(group_size=8)",
    "update": "update=Update()",
}


def task_facts(parts: Parts) -> dict[str, Any]:
    """What must be the same when a run is resumed although no setting shows it: the data and the first weights."""
    first = parts.train_examples[0]
    return {
        "first example": first.key,
        "training examples": len(parts.train_examples),
        "weights of the model": parts.fingerprint,
    }


def _open_completions(config: Config, recipe: Recipe, task: Any) -> Any:
    """The data of a recipe that learns from given completions; None for one that samples them."""
    if not isinstance(recipe.rollout, FromData):
        return None
    if getattr(task, "kind", None) == recipe.rollout.kind:
        return task
    if config.data is None:
        raise UsageError(
            f"'{recipe.name}' learns from {recipe.rollout.kind} that a file gives, and samples nothing: give --data FILE. A --task "
            "beside it is what the run is evaluated on."
        )
    if config.reward is not None:
        raise UsageError(
            f"'{recipe.name}' learns from completions that the data gives, so --reward would not be read. Leave it out."
        )
    from upslope.tasks.completions import open_completions

    settings = dict(config.task_settings) if config.task is None else {}
    return open_completions(config.data, recipe.rollout.kind, settings)


def _open_task(config: Config, data: Any) -> Any:
    """What the run is evaluated on, and trained on unless `data` is given: the named task, the file, or `data` itself."""
    from upslope.tasks.base import open_task

    if data is not None and config.task is None:
        return data
    if config.task is None and config.data is None:
        raise UsageError("no task: give --task NAME (`upslope tasks` lists them) or --data FILE.")
    if data is None and config.task is not None and config.data is not None:
        raise UsageError(f"both task '{config.task}' and data '{config.data}' are given; a run trains on one of them.")
    return open_task(
        config.task,
        data=config.data if data is None else None,
        reward=config.reward,
        settings=dict(config.task_settings),
        seed=config.seed,
        for_model=config.model,
        timeout=config.reward_timeout,
        workers=config.reward_workers,
        eval_size=max(config.eval.prompts, 1) if config.task else None,
        solved_at=config.eval.solved_at,
    )


def _open_actors(config: Config, recipe: Recipe, policy: Any, weights: Path | None) -> tuple[Actors, str]:
    from upslope.policies.language import LanguagePolicy
    from upslope.policies.lora import LoraSettings
    from upslope.policies.scorer import FrozenScorer, reference_of

    lora = LoraSettings(rank=config.lora.rank, alpha=config.lora.alpha) if config.lora.rank else None
    options: dict[str, Any] = {
        "device": config.device,
        "dtype": config.dtype,
        "trust_remote_code": config.trust_remote_code,
        "packing": config.packing,
        "gradient_checkpointing": config.gradient_checkpointing,
        "vocab_chunk": config.vocab_chunk,
    }
    _seed(config.seed)
    initial = policy or LanguagePolicy.load(config.model, lora=lora, **options)
    fingerprint = weights_fingerprint(initial.model)
    actor = initial
    if weights is not None and lora is None:
        actor = LanguagePolicy.load(str(weights), **options)
    reference = teacher = None
    if reads_teacher(recipe):
        teacher = _open_teacher(config, recipe, initial, actor, options)
    if "ref_logp" in recipe.needs:
        reference = reference_of(actor) if actor is initial else FrozenScorer(initial, copy=False)
    size = sum(parameter.numel() for parameter in actor.model.parameters())
    lr = config.optimizer.lr
    if lr is None:
        lr = 1e-4 if size < 20e6 else 1e-5 if lora else 1e-6
    per_step = recipe.update.minibatches * recipe.update.epochs  # type: ignore[union-attr]
    learner = Learner(actor.parameters(), lr, config.optimizer, config.steps * per_step)
    actors = Actors(actor, learner, reference, teacher=teacher)
    if recipe.critic is not None:
        from upslope.policies.critic import LanguageCritic

        actors.critic = LanguageCritic.from_policy(actor)
        actors.critic_learner = Learner(
            actors.critic.parameters(),
            lr if config.optimizer.critic_lr is None else config.optimizer.critic_lr,
            config.optimizer,
            config.steps * per_step,
        )
    return actors, fingerprint


def _open_teacher(config: Config, recipe: Recipe, initial: Any, policy: Any, options: dict[str, Any]) -> Any:
    """The teacher: a model that is frozen and has the policy's tokens, or the policy itself. `initial`: as the run started."""
    from upslope.policies.language import LanguagePolicy
    from upslope.policies.scorer import AveragingScorer, FrozenScorer, reference_of

    told = informing(recipe)
    name = config.teacher or (told[1].teacher if told else None)
    if name is None:
        raise UsageError(
            f"'{recipe.name}' learns from a teacher: give --teacher MODEL, a folder or a hub id; or frozen, live or ema, the model "
            "itself as it was at first, as it is, or on average."
        )
    if name == "frozen":
        return reference_of(policy) if policy is initial else FrozenScorer(initial, copy=False)
    if name == "live":
        return FrozenScorer(policy, copy=False)
    if name == "ema":
        return AveragingScorer(policy, told[1].rate if told else EMA_RATE)
    teacher = LanguagePolicy.load(name, **options)
    theirs, ours = teacher.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if theirs != ours:
        differing = sorted(word for word in theirs.keys() | ours.keys() if theirs.get(word) != ours.get(word))
        raise UsageError(
            f"the teacher {name} has another vocabulary than the model {config.model}: {len(differing)} words differ, "
            f"e.g. {differing[0]!r}. Its log-probs of the model's tokens mean nothing; take a teacher of the same family."
        )
    return FrozenScorer(teacher, copy=False)


def _seed(seed: int) -> None:
    """Every global generator: what code of others draws in this process belongs to the run, too."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """A hash over a sample of every frozen and trained weight: tells another model of the same shape apart."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def fitting(examples: Sequence[Example], encode: Any, limit: int, count: int, what: str) -> tuple[list[Example], int]:
    """The first `count` examples whose prompt has at most `limit` tokens, and how many were passed over before them.

    Raises UsageError where there are examples and none fits; `what` they are is for the message.
    """
    chosen: list[Example] = []
    longest = passed_over = 0
    for index in range(len(examples)):
        if len(chosen) == count:
            break
        length = len(encode(examples[index].prompt))
        if length <= limit:
            chosen.append(examples[index])
        else:
            passed_over, longest = passed_over + 1, max(longest, length)
    if passed_over and not chosen:
        raise UsageError(
            f"no {what} prompt fits into the {limit} tokens that the model's context leaves beside max_tokens; the longest "
            f"has {longest}. Lower max_tokens, shorten the prompts or take another model."
        )
    return chosen, passed_over
