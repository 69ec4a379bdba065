"""HAPO: each token's temperature, advantage and clip bounds follow the entropy of its next-token distribution.

    u       ln H - q, H the entropy under the sampling policy, q the 0.8-quantile of ln H over the batch's tokens     [R, T]
    h       u / max(u) where u > 0, u / |min(u)| where not: in [-1, 1]                                                [R, T]
    T_t     temperature * (1 + 0.05 h), with q, max and min of the step before, h kept within +-1 (1st step: temperature)
    A_i     (R_i - mu) / (sd + eps), mu and sd (population) over the tokens of the group; grpo's A for a group with |A| >= 5
    A'      A (1 + h) where h > 0 and r outside [0.9, 1.1], or h <= 0 and r inside; A elsewhere; r constant here      [R, T]
    bounds  0.8 - 0.2 |h| and 1.2 where h <= 0, 0.8 and 1.2 + 0.2 h where h > 0
    loss    mean over the batch's tokens of max(-A' r, -A' clip(r, bounds)), at most -10 A' where A' < 0

Differs from dapo:  the four uses of h or tokens above; dual clip at 10; the upper bound 1.2 in place of 1.28.
Limits:  where all entropies are equal (h = 0) and the group's lengths too, it is dapo with the population deviation, the same
    upper bound and dual clip. Over the tokens of a group A sums to 0, but for groups that take grpo's.
Expects:  what dapo expects (max_length, cache); entropies that differ. The adaptive temperature costs an entropy per sampled
    token, and no forward pass.
Source:  Liu et al. 2025 (arXiv:2509.16591) and the authors' core_algos.py, sampler.py; 16 completions and updates per step.
Deviations:  their code divides a negative u by min(u), which makes it positive: tokens of low entropy are treated as those of
    high entropy, in the loss and in the sampler. hapo@released does so, and takes the zone around r = 1 from the adapted
    bounds. Both measure q over the step, under the sampling policy; their code does in each micro-batch, under the current
    one. There u is also divided by its deviation, which cancels in h.
Not this:  high_entropy_20, which drops the tokens of low entropy. An entropy bonus: H is constant here.
Claim:  above DAPO-like baselines: as grpo in the study "length" (5 seeds, spell_backward), +0.001 [-0.005, +0.007], at
    lower entropy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlvr.dapo import dapo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.sampling import Sample
from upslope.parts.surrogate import ClippedRatio, clip_loss, clip_stats, dual_clip, dual_text, token_ratio
from upslope.recipe import Part, Recipe, State, Stats
from upslope.registry import method, preset

LowEntropy = Literal["negative", "positive"]
SMALLEST = 1e-8  # of an entropy, before its logarithm, and of an extent by which is divided


@dataclass(frozen=True)
class EntropyScale:
    """What turns an entropy into h: the quantile of ln H, and how far ln H reaches `above` and `below` it."""

    quantile: float
    above: float
    below: float

    @staticmethod
    def of(entropy: Tensor, share: float) -> "EntropyScale":
        """From entropies [n]: the nearest order statistic at `share`, so that their order does not matter."""
        log_entropy = entropy.clamp(min=SMALLEST).log()
        at = log_entropy.kthvalue(round(share * (len(log_entropy) - 1)) + 1).values
        above, below = float(log_entropy.max() - at), float(at - log_entropy.min())
        return EntropyScale(float(at), max(above, SMALLEST), max(below, SMALLEST))

    def level(self, entropy: Tensor, low: LowEntropy) -> Tensor:
        """h; entropies under the quantile have a negative one, or with "positive" its absolute value."""
        u = entropy.clamp(min=SMALLEST).log() - self.quantile
        return torch.where(u > 0, u / self.above, (u if low == "negative" else -u) / self.below)


@dataclass(frozen=True)
class EntropyTemperature(Sample):
    """Samples each token at temperature * (1 + strength * h), h by the entropies of the step before, as above."""

    group_size: int = 16
    strength: float = 0.05
    quantile: float = 0.8
    low: LowEntropy = "negative"
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def adapt(self, state: State) -> Callable[[Tensor], Tensor] | None:
        """Temperatures [r] by entropies [r]; None in the first step, and where sampling is greedy."""
        if not state or self.temperature == 0:
            return None
        scale = EntropyScale(**state)
        return lambda entropy: self.temperature * (1 + self.strength * scale.level(entropy, self.low).clamp(-1, 1))

    def observe(self, batch: Batch, state: State) -> State:
        """The scale of this step's entropies, for the next one."""
        return vars(EntropyScale.of(batch.entropy[batch.mask], self.quantile))


@dataclass(frozen=True)
class TokenGroupBaseline(Part):
    """Columns advantage [R], normalized over the tokens of the group, and entropy_level [R, T], h; as above."""

    eps: float = 1e-6
    largest: float = 5.0
    quantile: float = 0.8
    low: LowEntropy = "negative"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "entropy"})
    makes: ClassVar[frozenset[str]] = frozenset({"entropy_level"})

    def describe(self) -> str:
        grpos = f"grpo's where this reaches {self.largest:g}"
        return f"(reward - mean) / (population_std + {self.eps:g}) over the tokens of the group; {grpos}"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        tokens, rows = batch.group_mean(batch.length)

        def mean(column: Tensor) -> Tensor:
            return (batch.group_mean(batch.length * column)[0] / tokens.clamp(min=SMALLEST))[batch.group]

        centered = torch.where(rows[batch.group] > 1, batch.reward - mean(batch.reward), 0.0)
        advantage = centered / (mean(centered**2).sqrt() + self.eps)
        large = batch.trained & (advantage.abs() >= self.largest)
        replaced = batch.group_mean(large.to(batch.dtype))[0][batch.group] > 0
        level = EntropyScale.of(batch.entropy[batch.mask], self.quantile).level(batch.entropy, self.low)
        return {
            "advantage": torch.where(replaced, GroupBaseline(eps=self.eps)(batch), advantage),
            "entropy_level": level,
        }


@dataclass(frozen=True)
class HeterogeneousClip(ClippedRatio):
    """ClippedRatio [R, T] of A' between bounds that follow h, as above; `adapted_zone` takes the zone from these bounds."""

    dual: float | None = 10.0
    adapted_zone: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp", "entropy_level"})

    def describe(self) -> str:
        bounds = f"1 - {1 - self.ratio_low:g} (1 + max(-h, 0)), 1 + {self.ratio_high - 1:g} (1 + max(h, 0))"
        return dual_text(f"max(-A' r, -A' clip(r, {bounds}))", self.dual)

    def __call__(self, batch: Batch) -> Tensor:
        advantage, low, high = self._redistributed(batch)
        return dual_clip(clip_loss(advantage, token_ratio(batch), low, high), advantage, self.dual)

    def stats(self, batch: Batch) -> Stats:
        advantage, low, high = self._redistributed(batch)
        return clip_stats(advantage, token_ratio(batch), low, high)

    def _redistributed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """A', and the bounds of the clip, [R, T] each."""
        level, ratio = batch.entropy_level, token_ratio(batch).detach()
        low = 1 - (1 - self.ratio_low) * (1 - level.clamp(max=0))
        high = 1 + (self.ratio_high - 1) * (1 + level.clamp(min=0))
        zero = torch.zeros_like(level)
        ends = (low, high) if self.adapted_zone else (zero + self.ratio_low, zero + self.ratio_high)
        near = (ratio >= (1 + ends[0]) / 2) & (ratio <= (1 + ends[1]) / 2)
        changed = torch.where(level > 0, ~near, near)
        return torch.where(changed, batch.advantage * (1 + level), batch.advantage), low, high


@method(
    paper="2509.16591",
    title="From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature",
    parent="dapo",
)
def hapo() -> Recipe:
    return dapo().replace(
        rollout=EntropyTemperature(), advantage=TokenGroupBaseline(), surrogate=HeterogeneousClip(0.8, 1.2, dual=10.0)
    )


@preset("released", version="32164f0")
def hapo_released() -> Recipe:
    return hapo().replace(
        rollout=EntropyTemperature(low="positive"),
        advantage=TokenGroupBaseline(low="positive"),
        surrogate=HeterogeneousClip(0.8, 1.2, dual=10.0, adapted_zone=True),
    )
