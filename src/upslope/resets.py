"""The reference made anew in the middle of a run, and kept in its checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def reset_reference(actors: Any) -> None:
    """The reference becomes the policy as it is; nothing happens where the recipe reads none."""
    from upslope.policies.scorer import FrozenScorer

    if actors.reference is not None:
        actors.reference = FrozenScorer(actors.policy)


def reference_weights(actors: Any) -> dict[str, Tensor]:
    """The weights of a reference that was reset, as far as the policy trains them."""
    trained = actors.policy.state_dict()
    return {n: p.detach() for n, p in actors.reference.policy.model.named_parameters() if n in trained}


@torch.no_grad()
def restore_reference(actors: Any, weights: Mapping[str, Tensor]) -> None:
    """Puts back what `reference_weights` gave."""
    reset_reference(actors)
    parameters = dict(actors.reference.policy.model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
