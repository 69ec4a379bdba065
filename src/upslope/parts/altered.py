"""Prompts with a part hidden, for the column `masked_logp`: how much of a completion's probability is owed to the prompt."""

from collections.abc import Sequence

import torch


def blanked(ids: Sequence[int], blank: int, probability: float, generator: torch.Generator) -> list[int]:
    """The prompt's token ids, each replaced by `blank` with the given probability, independently of the others."""
    hidden = torch.rand(len(ids), generator=generator) < probability
    return [blank if gone else token for token, gone in zip(ids, hidden.tolist(), strict=True)]
