"""Lite PPO: two tricks only, the deviation of the whole batch under the group's centered rewards, and the token mean.

    A_i   (R_i - mean of group) / (standard deviation of all rewards of the batch + eps), copied to the tokens   [R]
    loss  mean over the batch's tokens of max(-A r, -A clip(r, 0.8, 1.2))

Differs from grpo:  the deviation is that of the batch's raw rewards (n - 1); the token mean; no KL.
Limits:  one prompt per batch and equal lengths is grpo with beta = 0. Up to the one factor 1 / std it is dr_grpo's A: a
    prompt that is solved with rate p weighs p (1 - p), where grpo's weighs the root of it.
Expects:  two or more completions per prompt, and prompts of differing difficulty in a batch. The study's other tricks are
    settings. Normalization: baseline=batch_mean (global mean); scale=sample_std (local deviation), batch_std (global) or
    none. Clip-higher: ratio_high=1.28. Overlong filter: drop_truncated=true. Sequence mean: aggregate=grpo. By the study,
    clip-higher helps aligned models, the filter medium lengths, and the token mean base models but not aligned ones.
Source:  "Part I: Tricks or Traps?" (arXiv:2508.08221); ROLL's reward_norm with norm_mean_type=group, norm_std_type=batch.
Deviations:  temperature and top-p are 1, theirs 0.99.
Not this:  PPO: there is no critic. whiten, which takes the deviation of the centered rewards, over tokens:
    reinforce_pp_baseline. lite_ppo@trl is TRL's scale_rewards="batch".
"""

from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import TokenMean
from upslope.parts.overlong import OverlongFilter
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(
    paper="2508.08221",
    title="Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning",
    parent="grpo",
)
def lite_ppo() -> Recipe:
    return grpo().replace(
        advantage=GroupBaseline(baseline="mean", scale="batch_std", eps=1e-6),
        rows=OverlongFilter(drop_truncated=False),
        regularizer=None,
        aggregate=TokenMean(),
    )


@preset("trl", version="1.16.0")
def lite_ppo_trl() -> Recipe:
    return lite_ppo().replace(advantage=GroupBaseline(scale="batch_std", eps=1e-4))
