"""AEPO: some prompts are sampled again at a temperature that pulls the entropy to a target; what succeeds is reinforced.

    H      mean over the tokens of the step before of -old_logp, an estimate of the entropy; 0 in the first step
    T      hot if H <= target, else cold; a share of the prompts is sampled again at T
    A_i    (R_i - mean of group) / (standard deviation of group + eps)                                     [R]
           1 in the second draw, of which rows are kept whose own such advantage is over least
    loss   grpo's over the rows of both draws, with old_logp that of temperature 1 in both

Differs from grpo:  the second draw and its advantage.
Limits:  no row kept is grpo. With every reward 1 the added term's gradient in the logits is pi_T - pi: it
    flattens the policy where T > 1 and sharpens it where T < 1. At T = 1 its expectation is 0, but the selection by reward is
    then plain reinforcement of successes, which lowers the entropy.
Expects:  a target that suits the task (the paper's 0.5 or 0.75 are those of a large model); rewards that differ within groups.
    The second draw costs a share more rollouts and rewards, 0.25; the rows kept go through the update, too.
Source:  Wang et al. 2025 (arXiv:2510.08141); the authors' code (597358816/AEPO): a quarter of the prompts, 1.2 and 0.8, 0.05.
Deviations:  rows of the second draw are appended; the released code overwrites as many first rows of the batch, at most 60,
    and half of what it could where H > target: aepo_arbitrary@released. Its H is over the rows that were trained on, here over
    the first draw alone. The first prompts of a step, which come in random order, are sampled again, as there.
Not this:  importance sampling: the ratio of a row drawn at T starts at 1, so the policy moves towards the one at T, on purpose.
Claim:  steers entropy: not seen in the study "entropy" (5 seeds, leg_counting), 0.228 [0.206, 0.253] beside grpo's 0.221
    [0.205, 0.231]: the temperature of the second draw moves it too little. In the exact lab its share moves as meant,
    without a change of sign.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.batch import SOURCES, Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.parts.sampling import Sample
from upslope.recipe import Recipe, State
from upslope.registry import method, preset


@dataclass(frozen=True)
class EntropyTarget(Sample):
    """Samples a `share` of the prompts again at `hot` or `cold`, as above.

    most         rows kept of the second draw, at most (None: no bound)
    cold_share   the share of these that is kept where it was cold
    overwrite    leaves out as many of the first rows of the first draw
    """

    target: float = 0.5
    hot: float = 1.2
    cold: float = 0.8
    share: float = 0.25
    least: float = 0.05
    most: int | None = None
    cold_share: float = 1.0
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cold <= self.hot:
            raise UsageError(
                f"EntropyTarget(hot={self.hot:g}, cold={self.cold:g}): temperatures with 0 < cold <= hot, e.g. 1.2 and 0.8."
            )
        for name in ("share", "cold_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"EntropyTarget.{name} is {getattr(self, name):g}; it must be over 0 and at most 1.")

    def init(self) -> State:
        return {"entropy": 0.0}

    def second(self, state: State) -> tuple[float, float] | None:
        return self.share, self.hot if self._is_low(state) else self.cold

    def join(self, first: Batch, second: Batch, state: State) -> tuple[Tensor, Tensor]:
        comes = (GroupBaseline()(second) > self.least) & second.valid
        count = int(comes.sum()) if self.most is None else min(self.most, int(comes.sum()))
        comes = comes & (comes.cumsum(0) <= (count if self._is_low(state) else int(count * self.cold_share)))
        stays = torch.ones(len(first), dtype=torch.bool)
        if self.overwrite:
            stays[: int(comes.sum())] = False
        return stays, comes

    def observe(self, batch: Batch, state: State) -> State:
        return {"entropy": -float(batch.masked_mean(batch.old_logp))}

    def _is_low(self, state: State) -> bool:
        return bool(state["entropy"] <= self.target)


@dataclass(frozen=True)
class TwoDraws(GroupBaseline):
    """The advantage [R] of the group in the first draw, `second` in the second."""

    second: float = 1.0

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """As the group's baseline, and where a row came from."""
        return super().needs | {"source"}

    def describe(self) -> str:
        return f"{super().describe()}; {self.second:g} in the second draw"

    def __call__(self, batch: Batch) -> Tensor:
        return torch.where(batch.source == SOURCES.index("tempered"), self.second, super().__call__(batch))


@method(paper="2510.08141", title="Arbitrary Entropy Policy Optimization", parent="grpo")
def aepo_arbitrary() -> Recipe:
    return grpo().replace(rollout=EntropyTarget(group_size=8), advantage=TwoDraws(eps=1e-6))


@preset("released", version="1a3e368")
def aepo_arbitrary_released() -> Recipe:
    return aepo_arbitrary().replace(rollout=EntropyTarget(group_size=8, most=60, cold_share=0.5, overwrite=True))
