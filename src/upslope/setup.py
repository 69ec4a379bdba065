"""From a Config to the parts of a run: recipe, task, policy, engine, reference, critic, learners."""

import functools
import hashlib
import logging
import random
from collections.abc import Callable, Sequence
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
from upslope.reward_models import (
    SCORE_COLUMNS,
    check_reward_model,
    open_judge,
    open_reward_model,
    require_kind,
    trains_reward_model,
)
from upslope.rollout import Example
from upslope.runs.checkpoint import model_folder
from upslope.samples import check_samples, has_samples, open_verifier
from upslope.sources import open_sources
from upslope.stored import check_stored, stored_column, stored_note, takes_stored
from upslope.tasks.reward_model import RewardModelJudge
from upslope.tasks.scorers import VERDICT_COLUMNS
from upslope.teaching import comparisons, informing, reads_teacher
from upslope.threads import use_threads
from upslope.update import MODEL_COLUMNS, SCORED_COLUMNS, Actors, Measures

logger = logging.getLogger("upslope")
DEFAULT_MAX_TOKENS = 64
EMA_RATE = 0.01  # share of the newest weights in every step, of a teacher that averages the policy's


@dataclass
class Parts:
    """What a run works with. `prompt_limit`: tokens that a prompt may have.

    judge   scores what is trained on: the task's, which is also the evaluation's, or a reward model; None where nothing is sampled
    stored  the data's column with the log-probs of a teacher that is not asked; None: there is no such, or a teacher is asked
    """

    recipe: Recipe
    task: Any
    train_examples: Sequence[Example]
    eval_examples: list[Example]
    actors: Actors
    engine: Any
    max_tokens: int
    prompt_limit: int
    fingerprint: str
    judge: Any = None
    stored: str | None = None

    def close(self) -> None:
        """Ends the workers of the task's judge, and of a judge that is not the task's; a second call does nothing."""
        self.task.close()
        if self.judge is not None and self.judge is not self.task.judge:
            self.judge.close()


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
    if trains_reward_model(recipe):
        check_reward_model(recipe, config, task)
    require_kind(recipe, policy)
    learned = open_reward_model(config, recipe)
    data, task = open_sources(config, recipe, task, learned)
    try:
        stored = stored_column(config, recipe, data)
        actors, fingerprint = _open_actors(config, recipe, policy, weights, learned, asks=stored is None)
        max_tokens = config.max_tokens or getattr(task, "max_tokens", None) or DEFAULT_MAX_TOKENS
        limit = _limit(actors.policy, max_tokens if data is None else config.max_tokens or 1)
        train = (data or task).examples("train")
        if stored is not None:
            check_stored([*train, *(data.examples("eval") if task is data else ())], actors.policy, stored)
        if (note := stored_note(config, recipe, data, stored)) and task is data:
            data.notes = [*data.notes, note]
        elif note:
            logger.warning("%s: %s.", data.name, note)
        fitting(train, actors.policy.encode, limit, 1, "training")
        eval_limit = limit if task.judge is None else _limit(actors.policy, max_tokens)
        held_out, long = fitting(
            task.examples("eval"), actors.policy.encode, eval_limit, config.eval.prompts, "held-out"
        )
        if long:
            logger.warning("%d held-out prompts are longer than %d tokens and are passed over.", long, eval_limit)
        verifier = open_verifier(config, recipe, task, train) if has_samples(recipe) else task.judge
        judge = open_judge(config, learned, verifier, train[0])
        engine = None if trains_reward_model(recipe) else LocalEngine(actors.policy)
        return Parts(recipe, task, train, held_out, actors, engine, max_tokens, limit, fingerprint, judge, stored)
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
    if has_samples(recipe):
        check_samples(recipe)
        made |= {"old_logp"}
    if trains_reward_model(recipe):
        made = made | SCORE_COLUMNS
    else:
        made = (
            made | SCORED_COLUMNS | MODEL_COLUMNS | recipe.observes().keys() | (VERDICT_COLUMNS if sampled else set())
        )
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
    facts = {
        "first example": first.key,
        "training examples": len(parts.train_examples),
        "weights of the model": parts.fingerprint,
    }
    if isinstance(parts.judge, RewardModelJudge):
        facts["weights of the reward model"] = weights_fingerprint(parts.judge.model.model)
    return facts


def _open_actors(
    config: Config, recipe: Recipe, policy: Any, weights: Path | None, learned: Any, *, asks: bool
) -> tuple[Actors, str]:
    """The models of a run, and the fingerprint of the one that is trained, as it was at first.

    `learned`: the reward model. `asks`: a teacher, where the recipe reads one.
    """
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
    load: Callable[..., Any] = LanguagePolicy.load
    if trains_reward_model(recipe):
        from upslope.policies.reward_model import RewardModel

        del options["vocab_chunk"]
        load = functools.partial(RewardModel.load, new=True)
    _seed(config.seed)
    initial = policy or load(model_folder(config.model), lora=lora, **options)
    fingerprint = weights_fingerprint(initial.model)
    actor = initial
    if weights is not None and lora is None:
        actor = load(str(weights), **options)
    reference = teacher = None
    if asks and reads_teacher(recipe):
        teacher = _open_teacher(config, recipe, initial, actor, options)
    if "ref_logp" in recipe.needs or (has_samples(recipe) and recipe.rollout.sampler == "reference"):  # type: ignore[union-attr]
        reference = reference_of(actor) if actor is initial else FrozenScorer(initial, copy=False)
    lr = config.optimizer.lr
    if lr is None:
        size = sum(parameter.numel() for parameter in actor.model.parameters())
        lr = 1e-4 if size < 20e6 else 1e-5 if lora or trains_reward_model(recipe) else 1e-6
    steps = config.steps * recipe.update.minibatches * recipe.update.epochs  # type: ignore[union-attr]
    actors = Actors(actor, Learner(actor.parameters(), lr, config.optimizer, steps), reference, teacher=teacher)
    if recipe.critic is not None:
        actors.critic = _open_critic(config, actor, learned)
        critic_lr = lr if config.optimizer.critic_lr is None else config.optimizer.critic_lr
        actors.critic_learner = Learner(actors.critic.parameters(), critic_lr, config.optimizer, steps)
    return actors, fingerprint


def _open_critic(config: Config, policy: Any, learned: Any) -> Any:
    """A critic that starts from the policy, or from the reward model, which must have the policy's tokens and context."""
    from upslope.policies.critic import LanguageCritic

    if config.critic_from == "policy":
        return LanguageCritic.from_policy(policy)
    require_same_vocabulary(
        learned.tokenizer,
        policy.tokenizer,
        f"the reward model {config.reward_model}",
        config,
        "A critic made of it cannot read the model's tokens; set critic_from=policy.",
    )
    if learned.context_length < policy.context_length:
        raise UsageError(
            f"the reward model {config.reward_model} has a context of {learned.context_length} tokens, the model {config.model} "
            f"one of {policy.context_length}: a critic made of it would not reach. Set critic_from=policy."
        )
    return LanguageCritic.from_reward_model(learned)


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
            + (" Or data with its log-probs: `upslope diagnose teacher-logps`." if takes_stored(recipe) else "")
        )
    if name == "frozen":
        return reference_of(policy) if policy is initial else FrozenScorer(initial, copy=False)
    if name == "live":
        return FrozenScorer(policy, copy=False)
    if name == "ema":
        return AveragingScorer(policy, told[1].rate if told else EMA_RATE)
    teacher = LanguagePolicy.load(model_folder(name), **options)
    require_same_vocabulary(
        teacher.tokenizer,
        policy.tokenizer,
        f"the teacher {name}",
        config,
        "Its log-probs of the model's tokens mean nothing; take a teacher of the same family.",
    )
    return FrozenScorer(teacher, copy=False)


def require_same_vocabulary(other: Any, own: Any, who: str, config: Config, consequence: str) -> None:
    """Raises UsageError where the tokenizer of another model knows other tokens than that of the run's own."""
    theirs, ours = other.get_vocab(), own.get_vocab()
    if theirs != ours:
        differing = sorted(word for word in theirs.keys() | ours.keys() if theirs.get(word) != ours.get(word))
        raise UsageError(
            f"{who} has another vocabulary than the model {config.model}: {len(differing)} words differ, e.g. {differing[0]!r}. "
            f"{consequence}"
        )


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
