"""SePPO: only preferred completions are given; what an earlier checkpoint writes to their prompts is the other side.

    s     sum over the completion's tokens of logp - ref_logp, ref the checkpoint that wrote the step's samples      [R]
    f     +1 where s of the given completion >= 0, else -1, constant                [pairs]
    z     beta * (s of the given completion - f * s of the sample)                  [pairs]
    loss  mean over given completions of log(1 + exp(-z)), a prompt's samples averaged

Differs from dpo:  the rejected completion is sampled, by a checkpoint drawn anew in every step, which is the reference too; f.
Limits:  f = +1 (flip=False) with a fixed reference, rollout.sampler="reference", is dpo with the reference's samples as rejected
    ones; with rollout.sampler="policy", whose log-probs at the step's start are then the reference, it is SPIN with an iterate per
    step. At the reference f = +1 and the loss is log 2.
Expects:  data with prompt and completion, all of them good; rollout.samples completions of up to max_tokens to every prompt of a
    step. The given completion is the anchor: where the checkpoint finds it more likely than the policy does, the checkpoint is
    taken to be the better model, and its sample is reinforced as well. One forward pass of the checkpoint over the given
    completions; no frozen model. A checkpoint of the trained weights is kept every rollout.pool_every steps, pool_size of them.
Source:  Zhang et al. 2024 (arXiv:2410.05255), eqs. 7 and 8 as public reviews quote them: the authors published inference and
    scoring only. A checkpoint every 30 updates, 7 in the pool. beta is dpo's.
Deviations:  a reconstruction, in text. The paper's models are diffusion models: there an error of denoising at a random noise
    level stands for -logp, with beta times the number of levels around 2000 to 5000, and f is that of a level; here it is that of
    the whole completion. At a tie (within rounding) f is +1, so that the first step, in which both models are the same, learns.
Not this:  sft on the given completions, which says nothing of what the policy writes otherwise.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.preference.dpo import dpo
from upslope.parts.aggregate import RowMean
from upslope.parts.data import FromData
from upslope.parts.expert import ExpertRows, is_expert
from upslope.parts.iterate import IterateReference
from upslope.parts.preference import Pairs, sequence_score
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method

ROUNDING = 1e-4
"""Nats by which sampler, checkpoint and policy may differ on a completion though their weights are the same."""


@dataclass(frozen=True)
class AnchoredPreference(Part):
    """The loss of each given completion against the samples of its prompt, on its row, [R]. `flip` False: f = +1 everywhere."""

    beta: float = 0.1
    flip: bool = True
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp", "source", "prompt"})

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"AnchoredPreference(beta={self.beta:g}): it must be positive, e.g. 0.1.")

    def describe(self) -> str:
        flip = "f s_sample), f = +1 where s_given >= 0, else -1" if self.flip else "s_sample)"
        return f"log(1 + exp(-z)), z = {self.beta:g} (s_given - {flip}, s = sum of logp - ref_logp"

    def __call__(self, batch: Batch) -> Tensor:
        pairs, given, sampled = self._scores(batch)
        z = self.beta * (given - self._side(given) * sampled)
        return pairs.on_winner(F.softplus(-z), len(batch))

    def stats(self, batch: Batch) -> Stats:
        """How often, and by how much, the given completion gained more than the sample; how often f is -1."""
        pairs, given, sampled = self._scores(batch)
        gap = given - sampled
        values = {
            "pairs/accuracy": (gap.where(gap.abs() > ROUNDING, 0.0).sign() + 1) / 2,
            "pairs/margin": self.beta * gap,
            "pairs/flipped": (1 - self._side(given)) / 2,
        }
        return {name: pairs.on_both(value, len(batch)) for name, value in values.items()}

    def _side(self, given: Tensor) -> Tensor:
        """f of each pair, from s of its given completion [P]."""
        return torch.where((given.detach() >= -ROUNDING) | (not self.flip), 1.0, -1.0).to(given.dtype)

    @staticmethod
    def _scores(batch: Batch) -> tuple[Pairs, Tensor, Tensor]:
        """Every given completion with every sample of its prompt, and s of both, [P] each."""
        fit, expert = batch.trained & batch.valid, is_expert(batch)
        mates = batch.prompt.unsqueeze(1) == batch.prompt
        given, sampled = (mates & (fit & expert).unsqueeze(1) & (fit & ~expert)).nonzero(as_tuple=True)
        count = torch.bincount(given, minlength=len(batch))
        share = 1 / count[given].to(batch.dtype)
        score = sequence_score(batch, reference=True, normalized=False)
        return Pairs(given, sampled, torch.ones_like(share), share), score[given], score[sampled]


@method(paper="2410.05255", title="SePPO: Semi-Policy Preference Optimization for Diffusion Alignment", parent="dpo")
def seppo() -> Recipe:
    return dpo().replace(
        rollout=FromData(kind="demonstrations", samples=1, sampler="pool", pool_every=30, pool_size=7),
        control=IterateReference(),
        rows=ExpertRows(),
        surrogate=AnchoredPreference(beta=0.1),
        aggregate=RowMean(),
    )
