"""PPO-max: RLHF-PPO whose scores are divided by the running deviation of all scores seen so far.

    n, m, s   number, mean and population deviation of all valid scores of the run, this step's included
    R_i       score_i / s, or (score_i - m) / s; perhaps kept within [-clip, clip]                         [R]
    A         as in rlhf_ppo, not whitened; perhaps whitened and kept within [-bound, bound]               [R, T]
    loss      rlhf_ppo's, perhaps + c |mean over tokens of the entropy - target|, perhaps + w times the mean negative
              log-prob of the tokens of given completions (PPO-ptx)
    the rest  rlhf_ppo's: the KL penalty per token, the clips of ratio and value

Differs from rlhf_ppo:  the running scale; no whitening; beta = 0.01; two further losses, which are off.
Limits:  scale=False, shift=False, whiten=True and beta=0.05 is rlhf_ppo. Scores multiplied by a positive constant, in all
    steps, give the same R. An entropy that stays below its target is what an entropy bonus of c rewards.
Expects:  as rlhf_ppo; scores whose scale is unknown or drifts, such as a reward model's (--reward-model). Watch length, kl and
    entropy rather than the score. Every trick is a setting (in brackets: theirs):
    reward scaling and normalization: scale (on), shift (off); reward clip: reward.RunningScale.clip (off); KL penalty per token:
    reward.KLInReward.beta (0.01); GAE: gamma (1), lam (0.95); advantage normalization and clip: whiten (off), bound (off);
    clip of the ratio: ratio_low, ratio_high (0.8, 1.2); clip of the value: critic.clip (0.2); critic from the reward model:
    critic_from=reward_model (on); entropy loss: regularizer.coefficient (off), weight.target (35); PPO-ptx: terms[0].coefficient
    (off) with reference_rows=1 and group_size=2; gradient clip: optimizer.grad_clip; schedule: optimizer.schedule=inverse_sqrt
    with optimizer.warmup (100); rates: optimizer.lr (5e-7), optimizer.critic_lr (1.5e-6); optimizer.betas (0.9, 0.95); replay
    buffer: prompts_per_step, minibatches, epochs (one step per rollout); sampling: temperature (0.8), top_p (0.9).
Source:  Zheng et al. 2023 (arXiv:2307.04964); the authors' code (OpenLMLab/MOSS-RLHF, ppo_trainer.py, utils.py
    RunningMoments, train_ppo_en.sh), whose script switches on the scale and the clips of ratio and value.
Deviations:  the moments are the pooled population's (a deviation of 0 counts as 1). Sampling at temperature 1 without
    top_p, so that ratios are exact; theirs score at 1 what they sample otherwise, with a penalty on repetition, which is not
    here. Passes over the data: rlhf_ppo's four, theirs one. The critic starts from the policy unless critic_from=reward_model. The
    schedule's warm-up begins at lr / (warmup + 1), theirs at lr / 10. PPO-ptx learns from the reference answers of the step's own
    prompts, theirs from another set; they are in neither the moments nor the whitening, and their values teach the critic nothing.
    The side of its target on which the entropy is, is that of the policy which sampled the step; theirs is that of each pass.
Not this:  an entropy bonus per token; the entropy loss with theirs, a target of 35 nats, is one, since no policy gets there.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlhf.rlhf_ppo import MissingEnd, UnitSpread, rlhf_ppo
from upslope.parts.aggregate import TokenMean
from upslope.parts.expert import ExpertRows, PolicyRows, is_expert
from upslope.parts.gae import GAE
from upslope.parts.kl import KLInReward
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.parts.value import ClippedValue
from upslope.recipe import Part, Recipe, State, Stats, Term
from upslope.registry import method


@dataclass(frozen=True)
class RunningScale(Part):
    """R [R], as above. The state: number, mean and sum of squared distances of the scores, merged by Chan's formula."""

    scale: bool = True
    shift: bool = False
    clip: float | None = None
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "source"})

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"RunningScale(clip={self.clip:g}): it bounds |R|, so it must be positive, e.g. 5.")

    def init(self) -> State:
        return {"count": 0, "mean": 0.0, "squares": 0.0}

    def describe(self) -> str:
        score = "(reward - running mean)" if self.shift else "reward"
        scaled = f"{score} / running deviation" if self.scale else score
        return scaled if self.clip is None else f"clip({scaled}, -{self.clip:g}, {self.clip:g})"

    def __call__(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        own = batch.valid & ~is_expert(batch)
        state = merged(state, batch.reward[own if own.any() else batch.valid].double())
        deviation = (state["squares"] / state["count"]) ** 0.5
        reward = batch.reward - state["mean"] if self.shift else batch.reward
        if self.scale:
            reward = reward / (deviation or 1.0)
        return reward if self.clip is None else reward.clamp(-self.clip, self.clip), state


def merged(state: State, values: Tensor) -> State:
    """The moments of everything in `state` and of `values` [n], n > 0."""
    known, new = state["count"], len(values)
    count, mean = known + new, float(values.mean())
    gap = mean - state["mean"]
    squares = state["squares"] + float(((values - mean) ** 2).sum()) + gap**2 * known * new / count
    return {"count": count, "mean": state["mean"] + gap * new / count, "squares": squares}


@dataclass(frozen=True)
class BoundedGAE(GAE):
    """GAE of the policy's completions, whose advantages are kept within [-bound, bound], after whitening if there is any.

    Given completions have advantage 0, and their old values as returns.
    """

    bound: float | None = None
    needs: ClassVar[frozenset[str]] = GAE.needs | {"source"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound is not None and not self.bound > 0:
            raise UsageError(f"BoundedGAE(bound={self.bound:g}): it bounds |A|, so it must be positive, e.g. 5.")

    def describe(self) -> str:
        return super().describe() + ("" if self.bound is None else f", within -+{self.bound:g}")

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        own = ~is_expert(batch).unsqueeze(1)
        if not (batch.mask & own).any():
            return {"advantage": torch.zeros_like(batch.old_value), "returns": batch.old_value}
        made = super().__call__(batch.replace(mask=batch.mask & own))
        if self.bound is not None:
            made["advantage"] = made["advantage"].clamp(-self.bound, self.bound)
        return {
            "advantage": torch.where(own, made["advantage"], 0.0),
            "returns": torch.where(own, made["returns"], batch.old_value),
        }


@dataclass(frozen=True)
class OwnValue(ClippedValue):
    """ClippedValue at the tokens that the policy wrote, 0 at those of given completions, which count in the mean."""

    needs: ClassVar[frozenset[str]] = ClippedValue.needs | {"source"}

    def __call__(self, batch: Batch) -> Tensor:
        return torch.where(is_expert(batch).unsqueeze(1), 0.0, super().__call__(batch))


@dataclass(frozen=True)
class EntropySide(Part):
    """`entropy_side` [R]: 1 where the mean entropy of the step's sampled tokens was above `target` (nats), else -1.

    `target` None is one that no policy reaches.
    """

    target: float | None = None
    makes: ClassVar[frozenset[str]] = frozenset({"entropy_side"})

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads the entropies where they are compared with something."""
        return frozenset() if self.target is None else frozenset({"entropy", "source"})

    def describe(self) -> str:
        return "side = -1" if self.target is None else f"side = sign(mean entropy - {self.target:g})"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        side = -torch.ones_like(batch.logp[:, 0])
        if self.target is not None:
            own = batch.mask & ~is_expert(batch).unsqueeze(1)
            if own.any() and float(batch.entropy[own].mean()) > self.target:
                side = -side
        return {"entropy_side": side}


@dataclass(frozen=True)
class EntropyToTarget(Part):
    """coefficient * side * entropy per token [R, T]; up to a constant its mean is coefficient |mean entropy - target|."""

    coefficient: float = 0.0

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads nothing where it is off."""
        return frozenset({"entropy", "entropy_side"} if self.coefficient else ())

    def describe(self) -> str:
        return f"{self.coefficient:g} * side * entropy" if self.coefficient else "0"

    def __call__(self, batch: Batch) -> Tensor:
        if not self.coefficient:
            return torch.zeros_like(batch.logp)
        return self.coefficient * batch.entropy_side.unsqueeze(1) * batch.entropy

    def stats(self, batch: Batch) -> Stats:
        return {"entropy/now": batch.entropy} if self.coefficient else {}


@method(paper="2307.04964", title="Secrets of RLHF in Large Language Models Part I: PPO", parent="rlhf_ppo")
def ppo_max() -> Recipe:
    return rlhf_ppo().replace(
        reward=(MissingEnd(), RunningScale(), KLInReward(beta=0.01, level="token"), UnitSpread()),
        critic=OwnValue(clip=0.2),
        advantage=BoundedGAE(gamma=1.0, lam=0.95, whiten=False, eps=1e-6),
        weight=EntropySide(),
        rows=PolicyRows(),
        regularizer=EntropyToTarget(coefficient=0.0),
        terms=(Term(NegativeLogLikelihood(coefficient=0.0), TokenMean(), rows=ExpertRows()),),
    )
