"""How far the sampler's log-probs are from the trainer's."""

from collections.abc import Mapping

import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.rollout import Rollouts


def sampler_gap(rollouts: Rollouts, columns: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean and largest absolute difference between `rollouts.logp` and the trainer's `columns["logp"]`, over the mask.

    Args:
        rollouts: as sampled, with the log-probs that the engine computed.
        columns: "logp" [R, T], of the same rows under the same weights at temperature 1.

    Returns:
        {"sampler_gap/mean": ..., "sampler_gap/max": ...}, 0 where no token is masked in.

    Raises:
        UsageError: the shapes differ, or there is no "logp".
    """
    if "logp" not in columns:
        raise UsageError(f'sampler_gap needs the column "logp", but was given {sorted(columns)}.')
    logp = columns["logp"].detach().to(rollouts.logp)
    if logp.shape != rollouts.logp.shape:
        raise UsageError(
            f"sampler_gap compares rollouts.logp {list(rollouts.logp.shape)} with columns['logp'] {list(logp.shape)}: "
            "score the same rows, uncut."
        )
    gap = (logp - rollouts.logp).abs()[rollouts.mask]
    if not len(gap):
        gap = torch.zeros(1)
    return {"sampler_gap/mean": float(gap.mean()), "sampler_gap/max": float(gap.max())}
