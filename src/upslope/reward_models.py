"""Runs that train a reward model, and runs that are trained on one."""

from typing import TYPE_CHECKING, Any

from upslope.config import Config
from upslope.errors import UsageError
from upslope.parts.data import FromData
from upslope.recipe import Recipe
from upslope.rollout import Example
from upslope.samples import has_samples
from upslope.tasks.reward_model import RewardModelJudge

if TYPE_CHECKING:
    from upslope.policies.reward_model import RewardModel

SCORE_COLUMNS = frozenset({"value"})
"""Columns that a reward model computes, with gradient."""


def gives_all(recipe: Recipe) -> bool:
    """Whether all completions are the data's, and none is sampled."""
    return isinstance(recipe.rollout, FromData) and not has_samples(recipe)


def trains_reward_model(recipe: Recipe) -> bool:
    """Whether the recipe's actor is a reward model: it learns a value of given completions, and has no critic that gives one."""
    return gives_all(recipe) and recipe.critic is None and "value" in recipe.needs_each_pass


def check_reward_model(recipe: Recipe, config: Config, task: Any) -> None:
    """Raises UsageError where a run that trains a reward model is asked for what only a language model can do."""
    for term in recipe.all_terms():
        for part in (term.surrogate, *term.regularizer):
            if "value" not in part.needs:
                raise UsageError(
                    f"'{recipe.name}' trains a reward model, which has no log-probs, but {type(part).__name__} does not read its "
                    "score (the column 'value'). Leave that part out."
                )
    kind = recipe.rollout.kind  # type: ignore[union-attr]
    if config.task is not None or (task is not None and getattr(task, "kind", None) != kind):
        name = config.task or getattr(task, "name", "")
        raise UsageError(
            f"'{recipe.name}' trains a reward model, which writes nothing, so it cannot be evaluated on --task {name}. "
            f"Leave it out: it is evaluated on held-out {kind} of the data."
        )
    if config.vocab_chunk is not None:
        raise UsageError(f"'{recipe.name}' trains a reward model, which has no vocabulary: leave vocab_chunk out.")


def require_kind(recipe: Recipe, policy: Any) -> None:
    """Raises UsageError where the model given from Python is not of the kind that the recipe trains."""
    from upslope.policies.reward_model import RewardModel

    if policy is not None and isinstance(policy, RewardModel) != trains_reward_model(recipe):
        wanted = "RewardModel" if trains_reward_model(recipe) else "LanguagePolicy"
        raise UsageError(f"'{recipe.name}' trains a {wanted}, but model is a {type(policy).__name__}.")


def open_reward_model(config: Config, recipe: Recipe) -> "RewardModel | None":
    """The model of --reward-model, which is not trained; None without one.

    Raises UsageError where nothing would read it, or it cannot be loaded.
    """
    if config.critic_from == "reward_model" and (config.reward_model is None or recipe.critic is None):
        lacks = "has no critic" if recipe.critic is None else "is given no --reward-model"
        raise UsageError(f"critic_from=reward_model, but '{recipe.name}' {lacks}. Set critic_from=policy.")
    if config.reward_model is None:
        return None
    if gives_all(recipe):
        raise UsageError(
            f"'{recipe.name}' learns from completions that the data gives, so --reward-model would not be read. Leave it out."
        )
    from upslope.policies.reward_model import RewardModel
    from upslope.runs.checkpoint import model_folder

    try:
        model = RewardModel.load(
            model_folder(config.reward_model),
            device=config.device,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
            packing=config.packing,
        )
    except UsageError as error:
        raise UsageError(f"--reward-model: {error}") from error
    model.model.requires_grad_(False)
    return model


def open_judge(config: Config, model: "RewardModel | None", verifier: Any, example: Example | None = None) -> Any:
    """Who judges what is trained on: the verifier, or the reward model beside it.

    `example` is one of the training examples. Raises UsageError where the reward model cannot read it.
    """
    if model is None:
        return verifier
    if example is not None:
        try:
            model.encode(example.prompt)
        except UsageError as error:
            raise UsageError(f"--reward-model {config.reward_model} cannot read the data: {error}") from error
    if isinstance(verifier, RewardModelJudge):
        return verifier
    return RewardModelJudge(model, str(config.reward_model), verifier, tokens_per_pass=config.tokens_per_pass)
