"""Log-probs of preference pairs under a language model and its reference: what the ranking diagnostics are computed from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.diagnostics.ranking import PairScores
from upslope.errors import UsageError
from upslope.policies.plans import score_in_passes
from upslope.rollout import Example, Rollouts

CHUNK = 512  # pairs that are scored together, so that memory does not grow with the file


@dataclass(frozen=True)
class ScoredPairs:
    """The scores, and what was left out: ties (label 1/2), prompts without room for a completion; `cut` completions."""

    scores: PairScores
    ties: int
    long: int
    cut: int


def score_pairs(
    policy: Any,
    reference: Any,
    examples: Sequence[Example],
    *,
    tokens_per_pass: int = 16384,
    max_tokens: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> ScoredPairs:
    """Log-probs of both completions of every example, as `upslope.tasks.completions.open_completions` gives them for pairs.

    policy, reference   LanguagePolicy with the same tokens
    max_tokens          of a completion; what is longer is cut, as in training; None: what the context leaves
    progress            called with the number of pairs done

    Of labels that are probabilities, the likelier completion counts as chosen. Raises UsageError where no pair is left.
    """
    kept, ties, long = [], 0, 0
    for example in examples:
        if len(policy.encode(example.prompt)) >= policy.context_length:
            long += 1
        elif example.data["completions"][0].label == 0.5:
            ties += 1
        else:
            kept.append(example)
    if not kept:
        raise UsageError(
            f"no pair is left to rank: of {len(examples)}, {ties} are ties (label 0.5) and {long} have a prompt that fills the "
            "model's context. Give pairs with a preferred completion, or a model with a longer context."
        )
    columns: list[Tensor] = []
    cut = 0
    for start in range(0, len(kept), CHUNK):
        part = kept[start : start + CHUNK]
        rollouts, label = _rows(policy, part, max_tokens)
        cut += sum(finish == "length" for finish in rollouts.finish)
        scored = [_total(model, rollouts, tokens_per_pass) for model in (policy, reference)]
        columns.append(torch.stack([*scored, rollouts.mask.sum(1).double(), label.double()], 1))
        progress(start + len(part))
    table = torch.cat(columns).view(len(kept), 2, 4)
    swapped = table[:, 0, 3] < table[:, 1, 3]
    table = torch.where(swapped[:, None, None], table.flip(1), table)
    chosen, rejected = table[:, 0], table[:, 1]
    scores = PairScores(
        chosen[:, 0], rejected[:, 0], chosen[:, 1], rejected[:, 1], chosen[:, 2], rejected[:, 2], chosen[:, 3]
    )
    return ScoredPairs(scores, ties, long, cut)


def _rows(policy: Any, examples: Sequence[Example], max_tokens: int | None) -> tuple[Rollouts, Tensor]:
    """The examples' completions as rows, and their labels, [2 P]."""
    from upslope.given import GivenCollector
    from upslope.prompts import PromptStream
    from upslope.registry import make

    collector = GivenCollector(
        policy=policy,
        stream=PromptStream(examples, 0),
        recipe=make("dpo"),
        limit=policy.context_length,
        max_tokens=max_tokens,
    )
    found = collector.rows(examples)
    assert found.batch is not None
    return found.rollouts, found.batch.label


@torch.no_grad()
def _total(policy: Any, rollouts: Rollouts, tokens_per_pass: int) -> Tensor:
    """Log-prob of each completion, [R] float64."""
    logp = score_in_passes(policy, rollouts, frozenset({"logp"}), tokens_per_pass=tokens_per_pass)["logp"]
    return (logp.double() * rollouts.mask).sum(1)
