"""A recipe's objective in words and symbols, for `describe`, the report and the method pages."""

import re

from upslope.recipe import Part, Recipe, Term, as_tuple


def objective(recipe: Recipe) -> list[str]:
    """Lines such as `loss = mean over rows of [ ... + 0.04 * k3(logp, ref_logp) ]`, then one per stage before it."""
    main, *further = recipe.all_terms()
    weights = any(_is_weight(part) for part in as_tuple(recipe.weight))
    lines = [f"loss = {_term(main, weighted=weights)}"]
    lines += [f"     + {term.coefficient:g} * {_term(term, weighted=term.weighted and weights)}" for term in further]
    for symbol, stage in (("R", "reward"), ("A", "advantage"), ("w", "weight")):
        for part in as_tuple(getattr(recipe, stage)):
            text = part.describe()
            if stage != "reward" and recipe.reward is not None:
                text = re.sub(r"\breward\b", "R", text)
            lines.append(f"  {symbol} = {text}" if stage != "weight" or _is_weight(part) else f"  {text}")
    lines += [f"  each mini-batch: {part.describe()}" for part in as_tuple(recipe.control) if part.describe()]
    if any(re.search(r"\br\b", line) for line in lines):
        lines.append("  r = exp(logp - old_logp)")
    if recipe.critic is not None:
        lines.append(f"critic loss = mean over tokens of {recipe.critic.describe()}")
    return lines


def _is_weight(part: Part) -> bool:
    """Whether a part of the stage `weight` gives one, and not columns of its own."""
    return not part.makes or "weight" in part.makes


def _term(term: Term, *, weighted: bool) -> str:
    inner = " + ".join(
        [("w * " if weighted else "") + term.surrogate.describe(), *(part.describe() for part in term.regularizer)]
    )
    rows = f" on {term.rows.describe()}" if term.rows is not None else ""
    return f"{term.aggregate.describe()}{rows} of [ {inner} ]"
