"""The sampler gap is the difference of log-probs over the mask, and nothing else."""

from dataclasses import replace

import pytest
import torch

from upslope.engines.gap import sampler_gap
from upslope.engines.local import LocalEngine
from upslope.errors import UsageError
from upslope.rollout import Sampling

from .models import Policy, build, plain_logp


def test_gap_is_rounding_until_something_is_off():
    policy = Policy(build("Llama"))
    generator = torch.Generator().manual_seed(0)
    rollouts = LocalEngine(policy).generate([[5, 6], [7]], [2, 3], Sampling(max_tokens=8), generator)
    logp = plain_logp(policy.model, rollouts)
    assert sampler_gap(rollouts, {"logp": logp})["sampler_gap/max"] < 2e-5
    off = logp - 0.5 * rollouts.mask
    off[0, 0] += 2.0
    off[~rollouts.mask] = 99.0
    gap = sampler_gap(rollouts, {"logp": off})
    assert gap["sampler_gap/max"] == pytest.approx(1.5, abs=1e-3)
    tokens = int(rollouts.mask.sum())
    assert gap["sampler_gap/mean"] == pytest.approx((0.5 * (tokens - 1) + 1.5) / tokens, abs=1e-3)
    empty = replace(rollouts, mask=torch.zeros_like(rollouts.mask))
    assert sampler_gap(empty, {"logp": off}) == {"sampler_gap/mean": 0.0, "sampler_gap/max": 0.0}
    with pytest.raises(UsageError, match='column "logp"'):
        sampler_gap(rollouts, {"entropy": logp})
    with pytest.raises(UsageError, match="score the same rows"):
        sampler_gap(rollouts, {"logp": logp[:2]})
