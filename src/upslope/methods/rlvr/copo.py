"""COPO: where a prompt's answers agree, the prompt is compared with the batch's other prompts, not its answers with each other.

    H_q    -sum over answers a of p_a ln p_a, p_a the share of the prompt's completions that end in a     [G]
    L_i    (R_i - mean of group) / (standard deviation of group + eps)                                    [R]
    M_q    (mean R of prompt q - mean over prompts) / (standard deviation over prompts + eps)             [G]
    w_q    sigmoid(gamma (H_q - rho))                                                                     [G]
    loss   mean over sequences of the mean over tokens of w l(L) + (1 - w) l(M),  l(A) = max(-A r, -A clip(r, 0.8, 1.2))

Differs from grpo:  the second loss and its share, by the entropy of the answers; groups of 6; no KL.
Limits:  w = 1 (rho far below 0) is grpo with beta = 0; w = 0 is a baseline over prompts alone. One prompt per batch: M =
    0. A prompt that is always wrong has L = 0 and M <= 0: every answer to it is pushed down.
Expects:  several prompts per batch. H is at most ln(group_size), so rho = 1.5 belongs to groups of 6: for others take
    0.84 ln(group_size). Answers are the completions' last lines, or what the reward function gives as `answer`. M has no
    contrast within the prompt, so it moves probability to whatever is done on easy prompts, with more variance. The
    paper's own ablation gives M alone (w = 0) 60.35 and the blend 60.38.
Source:  Han et al. 2025 (arXiv:2508.04138), by notes on the paper; the authors' code (hijih/copo-code), verl/trainer/ppo.
Deviations:  M is taken over the step's whole batch, as in their code; the paper's notes say mini-batch. Deviations have n
    - 1.
Not this:  their reward_coef_flg, off in their script, which multiplies the prompt's mean reward by 1 - lambda H.
    copo@released has their script's gamma = 5, rho = 1 and entropy in bits, dual clip 3, and M alone for a completion
    with reward 0.
Claim:  uses groups without variance: does, and does not help in the study "degenerate" (5 seeds): -0.050 [-0.075, -0.025]
    on very easy prompts; on very hard ones no method learns.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline, split_groups
from upslope.parts.sampling import Sample, Update
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method, preset


@dataclass(frozen=True)
class ConsistencyAdvantage(Part):
    """L as `advantage`, M as `global_advantage` and w as `local_share`, [R] each, as above.

    `bits` measures H in bits. `local_for` narrows the rows that have a share of L: "rewarded", those whose reward is not 0
    ("soft with zero" in the authors' code), or "contrasted", those whose L is not 0 ("soft with forced"); the others have
    M alone.
    """

    gamma: float = 20.0
    rho: float = 1.5
    bits: bool = False
    local_for: Literal["all", "rewarded", "contrasted"] = "all"
    eps: float = 1e-6
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "answer"})
    makes: ClassVar[frozenset[str]] = frozenset({"global_advantage", "local_share"})

    def describe(self) -> str:
        share = f"w = sigmoid({self.gamma:g} (entropy of the group's answers - {self.rho:g}))"
        overall = "M = mean of the group, standardized over the batch's groups"
        return f"{GroupBaseline(eps=self.eps).describe()}; {overall}; {share}"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        local = GroupBaseline(eps=self.eps)(batch)
        share = torch.sigmoid(self.gamma * (answer_entropy(batch) / (log(2) if self.bits else 1.0) - self.rho))
        if self.local_for != "all":
            share = share * ((batch.reward if self.local_for == "rewarded" else local) != 0)
        return {"advantage": local, "global_advantage": prompt_advantage(batch, self.eps), "local_share": share}


def answer_entropy(batch: Batch) -> Tensor:
    """Entropy in nats of the final answers of each row's group, over its valid rows, [R]."""
    count = batch.group_mean(batch.reward)[1][batch.group]
    alike = split_groups(batch, batch.answer)
    same = alike.group_mean(batch.reward)[1][alike.group]
    surprise = (count.clamp(min=1) / same.clamp(min=1)).log()
    return batch.group_mean(surprise)[0][batch.group]


def prompt_advantage(batch: Batch, eps: float) -> Tensor:
    """Mean reward of each row's group, against the mean over groups and over their standard deviation (n - 1), [R]."""
    mean, count = batch.group_mean(batch.reward)
    present = mean[count > 0]
    spread = present.std() if len(present) > 1 else torch.zeros_like(present.sum())
    return ((mean - present.mean()) / (spread + eps))[batch.group]


@dataclass(frozen=True)
class BlendedClip(ClippedRatio):
    """local_share * l(advantage) + (1 - local_share) * l(global_advantage) per token, l ClippedRatio's loss."""

    needs: ClassVar[frozenset[str]] = ClippedRatio.needs | {"global_advantage", "local_share"}
    vanishes_without_advantage: ClassVar[bool] = False

    def describe(self) -> str:
        loss = super().describe()
        return f"w {loss} + (1 - w) {loss.replace('A', 'M')}"

    def __call__(self, batch: Batch) -> Tensor:
        share = batch.local_share.unsqueeze(1)
        overall = super().__call__(batch.replace(advantage=batch.global_advantage))
        return share * super().__call__(batch) + (1 - share) * overall

    def stats(self, batch: Batch) -> Stats:
        return {**super().stats(batch), "copo/local_share": batch.local_share}


@method(paper="2508.04138", title="COPO: Consistency-Aware Policy Optimization", parent="grpo")
def copo() -> Recipe:
    return grpo().replace(
        rollout=Sample(group_size=6),
        advantage=ConsistencyAdvantage(),
        surrogate=BlendedClip(ratio_low=0.8, ratio_high=1.2),
        regularizer=None,
        update=Update(minibatches=16),
    )


@preset("released", version="095afa5")
def copo_released() -> Recipe:
    return copo().replace(
        advantage=ConsistencyAdvantage(gamma=5.0, rho=1.0, bits=True, local_for="rewarded"),
        surrogate=BlendedClip(ratio_low=0.8, ratio_high=1.2, dual=3.0),
    )
