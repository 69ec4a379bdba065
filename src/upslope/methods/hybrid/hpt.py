"""HPT: prompts that the policy solves are trained on by its own completions, the others by the demonstration.

    solved    number of the prompt's own completions with a reward over correct_above                      [G]
    A_i       R_i - mean of the policy's rewards in the group                                              [R]
    solved > gate    sum over the policy's tokens / 8192 of -A r; the demonstration is dropped
    else             mean over the demonstrations' tokens of -logp; the policy's completions are dropped
    and, over all that is kept, less 0.001 times the mean of the entropy

Differs from dr_grpo:  the gate; the demonstrations' likelihood; no clip; the sum over tokens; the entropy bonus; two
    updates.
Limits:  gate=-1 is dr_grpo without a clip, gate=8 (all own completions) is sft. With gate=0 the prompts that turn to
    likelihood are those that have no policy gradient.
Expects:  rewards in {0, 1}; a demonstration per prompt: the task's reference answer, or the column that
    rollout.reference_column names. group_size=9 are 8 of the policy and the demonstration. What is dropped is computed
    all the same, the entropy with gradient, too, and the demonstrations take a forward pass of their own before.
Source:  Lv et al. 2025 (arXiv:2509.04419); the authors' code (TsinghuaC3I/Unify-Post-Training, mix_trainer.py
    select_on_off_ada_balance, train.sh): gate 0 for Qwen2.5-Math, 2 for Llama; terms[0].coefficient 0.3 at 1.5B; lr 5e-6,
    gradients clipped at 80.
Deviations:  denominators are those of the mini-batch, theirs of the micro-batch. 8192 is theirs and weighs the policy
    gradient against the likelihood: set aggregate.scale to 1 / your max_tokens. Without the code's third zone (luffy's
    row between two gates) and its table of soft coefficients.
Not this:  chord, which mixes both in every step by a schedule.
Claim:  better than imitation, rewards, and one after the other: reproduced in the study "demonstrations" (5 seeds, 200
    demonstrations and a verifier): 0.569 [0.542, 0.585] beside grpo's 0.410, sft's 0.521 and 0.489 for sft, then grpo.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.dr_grpo import dr_grpo
from upslope.parts.aggregate import TokenMean, TokenSum
from upslope.parts.expert import MixedBaseline, is_expert
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.parts.sampling import Sample, Update
from upslope.parts.surrogate import EntropyLoss, ImportanceRatio
from upslope.recipe import Part, Recipe, Stats, Term
from upslope.registry import method


@dataclass(frozen=True)
class SolveGate(MixedBaseline):
    """A [R], and the column imitates [R] bool: whether the prompt's demonstration is learned, as above."""

    gate: int = 0
    correct_above: float = 0.5
    makes: ClassVar[frozenset[str]] = frozenset({"imitates"})

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads `source`, to tell who solved."""
        return super().needs | {"source"}

    def describe(self) -> str:
        unsolved = f"at most {self.gate} of the policy's rewards are over {self.correct_above:g}"
        return f"{super().describe()}; a group is unsolved where {unsolved}"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]
        solved = batch.valid & ~is_expert(batch) & (batch.reward > self.correct_above)
        count = torch.zeros(int(batch.group.max()) + 1, dtype=torch.int64, device=solved.device)
        count.index_add_(0, batch.group, solved.to(torch.int64))
        return {"advantage": super().__call__(batch), "imitates": count[batch.group] <= self.gate}

    def stats(self, batch: Batch) -> Stats:
        return {"hpt/imitates": batch.imitates.to(batch.dtype)}


@dataclass(frozen=True)
class Routed(Part):
    """A term's `rows`, [R] bool: the policy's of prompts that do not imitate, demonstrations of those that do, or both."""

    which: Literal["policy", "expert", "both"] = "both"
    needs: ClassVar[frozenset[str]] = frozenset({"source", "imitates"})

    def describe(self) -> str:
        policy, expert = "the policy's completions of solved groups", "the demonstrations of unsolved groups"
        return {"policy": policy, "expert": expert, "both": f"{policy} and {expert}"}[self.which]

    def __call__(self, batch: Batch) -> Tensor:
        expert = is_expert(batch)
        kept = expert == batch.imitates
        return {"policy": kept & ~expert, "expert": kept & expert, "both": kept}[self.which]


@method(paper="2509.04419", title="Towards a Unified View of Large Language Model Post-Training", parent="dr_grpo")
def hpt() -> Recipe:
    return dr_grpo().replace(
        rollout=Sample(group_size=9, reference_rows=1),
        advantage=SolveGate(scale=None, among="policy", gate=0),
        rows=Routed("policy"),
        surrogate=ImportanceRatio(),
        aggregate=TokenSum(scale=1 / 8192),
        terms=(
            Term(NegativeLogLikelihood(), TokenMean(), rows=Routed("expert")),
            Term(EntropyLoss(coefficient=0.001), TokenMean(), rows=Routed("both")),
        ),
        update=Update(minibatches=2),
    )
