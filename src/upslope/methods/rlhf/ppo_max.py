"""PPO-max: RLHF-PPO whose scores are divided by the running deviation of all scores seen so far.

    n, m, s   number, mean and population deviation of all valid scores of the run, this step's included
    R_i       score_i / s, or (score_i - m) / s; perhaps kept within [-clip, clip]                         [R]
    A         as in rlhf_ppo, not whitened; perhaps whitened and kept within [-bound, bound]               [R, T]
    the rest  rlhf_ppo's: the KL penalty per token, the clips of ratio and value

Differs from rlhf_ppo:  the running scale; no whitening; beta = 0.01.
Limits:  scale=False, shift=False, whiten=True and beta=0.05 is rlhf_ppo. Scores multiplied by a positive constant, in all
    steps, give the same R.
Expects:  as rlhf_ppo; scores whose scale is unknown or drifts. Watch length, kl and entropy rather than the score. The
    named settings are reward.RunningScale.scale, .shift and .clip, reward.KLInReward.beta, advantage.whiten,
    advantage.bound, surrogate.ratio_low and ratio_high, critic.clip; of the run, optimizer.max_grad_norm and its
    schedule.
Source:  Zheng et al. 2023 (arXiv:2307.04964); the authors' code (OpenLMLab/MOSS-RLHF, ppo_trainer.py, utils.py
    RunningMoments, train_ppo_en.sh), whose script switches on the scale and the clips of ratio and value. beta 0.01 to
    0.02; lr 5e-7, critic 1.5e-6.
Deviations:  the moments are the pooled population's (a deviation of 0 counts as 1). Sampling at temperature 1 without
    top_p, so that ratios are exact; theirs is at 0.8, top_p 0.9, scored at 1. Passes over the data: rlhf_ppo's four.
Not this:  what needs other models or data: the critic starts from the policy, not from a reward model, and there is no
    language model loss on pre-training text (PPO-ptx).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlhf.rlhf_ppo import MissingEnd, UnitSpread, rlhf_ppo
from upslope.parts.gae import GAE
from upslope.parts.kl import KLInReward
from upslope.recipe import Part, Recipe, State
from upslope.registry import method


@dataclass(frozen=True)
class RunningScale(Part):
    """R [R], as above. The state: number, mean and sum of squared distances of the scores, merged by Chan's formula."""

    scale: bool = True
    shift: bool = False
    clip: float | None = None
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

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
        state = merged(state, batch.reward[batch.valid].double())
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
    """GAE whose advantages are kept within [-bound, bound], after whitening if there is any; the returns are not."""

    bound: float | None = None

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise UsageError(f"BoundedGAE(bound={self.bound:g}): it bounds |A|, so it must be positive, e.g. 5.")

    def describe(self) -> str:
        return super().describe() + ("" if self.bound is None else f", within -+{self.bound:g}")

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        made = super().__call__(batch)
        if self.bound is not None:
            made["advantage"] = made["advantage"].clamp(-self.bound, self.bound)
        return made


@method(paper="2307.04964", title="Secrets of RLHF in Large Language Models Part I: PPO", parent="rlhf_ppo")
def ppo_max() -> Recipe:
    return rlhf_ppo().replace(
        reward=(MissingEnd(), RunningScale(), KLInReward(beta=0.01, level="token"), UnitSpread()),
        advantage=BoundedGAE(gamma=1.0, lam=0.95, whiten=False, eps=1e-6),
    )
