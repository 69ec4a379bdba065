"""Rollouts of earlier steps, kept with their rewards and log-probs for steps that use them again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.recipe import State
from upslope.rollout import TOKEN_COLUMNS, Example, Outcome, Rollouts


@dataclass(frozen=True)
class Kept:
    """What a step trained on, aligned: rollouts, the example and outcome of each row, where it came from [R] int64."""

    rollouts: Rollouts
    examples: Sequence[Example]
    outcomes: Sequence[Outcome]
    source: Tensor


def remember(kept: Sequence[State], new: Kept, *, step: int, window: int) -> list[State]:
    """The steps that later ones may use, as plain state: those of `kept` that are not too old for the next step, and `new`."""
    return [one for one in kept if step + 1 - one["step"] <= window] + [{"step": step, **_packed(new)}]


def recall(
    kept: Sequence[State], *, chance: float, window: int, step: int, generator: torch.Generator
) -> tuple[Kept, int] | None:
    """With probability `chance` one of the steps kept, each as likely, and its age in steps; None: sample anew."""
    if not chance:
        return None
    drawn, which = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    fitting = [one for one in kept if step - one["step"] <= window]
    if not fitting or drawn >= chance:
        return None
    chosen = fitting[int(which * len(fitting))]
    return _unpacked(chosen), step - chosen["step"]


def _packed(kept: Kept) -> State:
    rollouts, number = kept.rollouts, dict[str, int]()
    of_row = [number.setdefault(example.key, len(number)) for example in kept.examples]
    return {
        "prompts": [torch.tensor(list(ids), dtype=torch.int64) for ids in rollouts.prompts],
        "finish": list(rollouts.finish),
        "text": list(rollouts.text),
        "observed": dict(rollouts.observed),
        **{name: getattr(rollouts, name) for name in (*TOKEN_COLUMNS, "prompt", "length")},
        "examples": [
            {"key": one.key, "prompt": _plain(one.prompt)} for one in {e.key: e for e in kept.examples}.values()
        ],
        "example": torch.tensor(of_row),
        "outcomes": [
            {"value": o.value, "parts": dict(o.parts), "failure": o.failure, "columns": dict(o.columns)}
            for o in kept.outcomes
        ],
        "source": kept.source,
    }


def _unpacked(state: Mapping[str, Any]) -> Kept:
    rollouts = Rollouts(
        prompts=[ids.tolist() for ids in state["prompts"]],
        finish=state["finish"],
        text=state["text"],
        observed=state["observed"],
        **{name: state[name] for name in (*TOKEN_COLUMNS, "prompt", "length")},
    )
    examples = [Example(one["key"], one["prompt"]) for one in state["examples"]]
    outcomes = [Outcome(o["value"], o["parts"], o["failure"], o["columns"]) for o in state["outcomes"]]
    return Kept(rollouts, [examples[index] for index in state["example"].tolist()], outcomes, state["source"])


def _plain(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
