"""Settings that act on nothing in a run: named at its start, since nothing is silently ignored."""

from upslope.config import Config
from upslope.recipe import Recipe
from upslope.teaching import reads_teacher


def without_effect(recipe: Recipe, config: Config, max_tokens: int) -> list[str]:
    """What was set and will not act, with what to do: lengths beyond `max_tokens`, a reset of no reference, an unasked teacher."""
    never = [
        f"{stage}.max_length={length} is beyond max_tokens={max_tokens}, so it never acts. Set it to {max_tokens}"
        for stage, part in recipe.stages()
        if isinstance(length := getattr(part, "max_length", None), int) and length > max_tokens
    ]
    every = getattr(recipe.update, "fresh_reference", 0)
    if every and not recipe.needs & {"ref_logp", "mismatched_ref_logp"}:
        never.append(f"update.fresh_reference={every}: '{recipe.name}' reads no frozen reference. Set it to 0")
    if config.teacher is not None and not reads_teacher(recipe):
        never.append(f"teacher={config.teacher}: '{recipe.name}' asks no teacher. Leave it out")
    return never
