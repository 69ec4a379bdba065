"""ReMix: steps that use an earlier step's rollouts, a clip around the policy of now, and a second start on-policy.

    mu     policy that wrote the rollouts: that of now, or with probability replay that of up to replay_window steps ago
    c, r   pi_start / mu and pi / mu; pi_start is the policy at the start of the step, mu is old_logp         [R, T]
    loss   mean over sequences of the mean over tokens of max(-A r, -A clip(r, c - eps, c + eps)) + K
    K      beta * [lam k3(logp, ref_logp) + (1 - lam) k3(logp, anchor_logp)], anchor_logp that of pi_start    [R, T]
    lam    max(1 - 0.1 ceil(max(step - 50, 0) / 10), 0.5)
    After reincarnate_at steps the reference becomes the policy, the optimizer forgets, replay and the second epoch end.

Differs from grpo:  replayed steps, the center c of the clip; the second KL; two epochs; the second start.
Limits:  with new rollouts c = 1, the clip of grpo. replay = 0, one epoch and lam = 1 is grpo. At pi = pi_start nothing is
    clipped, and the gradient is that of -c A logp.
Expects:  sampling that costs more than learning: the promise is fewer rollouts for a reward, so compare by groups/sampled, not
    by steps. One more forward pass per step, for pi_start. After the second start checkpoints hold the reference's weights.
Source:  Liang et al. 2025 (arXiv:2507.06892): replay 0.4, window 2, 2 epochs, eps 0.2, second start after 50 or 100 steps.
Deviations:  from notes of the paper, whose code was not out. KL to "the policy before" is to pi_start, since one further back
    would be a third model; beta is grpo's. A replayed step is drawn from the steps of the window that sampled: two replayed
    ones in a row leave none, so the share of replayed steps is below 0.4. lam's schedule goes on after the second start.
Not this:  the rewards and advantages are those of then: no staleness penalty. Off-policy differences favour short answers.
Claim:  the same reward from fewer rollouts: not seen in the study "stale" (5 seeds, chain_sum), where steps that replay
    count as steps that sample: -0.023, -0.029 and -0.019 of PPO's clip at 1, 4 and 16 updates. At equal sampled rollouts it
    was not compared.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.kl import kl_estimate
from upslope.parts.sampling import Sample, Update
from upslope.parts.surrogate import clip_loss, clip_stats, token_ratio
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class CenteredClip(Part):
    """max(-A r, -A clip(r, c - eps, c + eps)) per token [R, T], as above; both log-ratios within +-20."""

    eps: float = 0.2
    formula: ClassVar[str] = "max(-A r, -A clip(r, c - {eps:g}, c + {eps:g})), c = exp(anchor_logp - old_logp)"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp", "anchor_logp"})
    vanishes_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise UsageError(f"CenteredClip(eps={self.eps:g}): half the width of the clip must be over 0, e.g. 0.2.")

    def __call__(self, batch: Batch) -> Tensor:
        return clip_loss(batch.advantage, token_ratio(batch), *self._bounds(batch))

    def stats(self, batch: Batch) -> Stats:
        center = self._center(batch)
        return {**clip_stats(batch.advantage, token_ratio(batch), *self._bounds(batch)), "ratio/center": center}

    def _bounds(self, batch: Batch) -> tuple[Tensor, Tensor]:
        center = self._center(batch)
        return center - self.eps, center + self.eps

    @staticmethod
    def _center(batch: Batch) -> Tensor:
        return (batch.anchor_logp - batch.old_logp).clamp(-20.0, 20.0).exp()


@dataclass(frozen=True)
class ConvexKL(Part):
    """beta times the two estimates per token [R, T], lam by the column step, as above."""

    beta: float = 0.04
    decay: float = 0.1
    decay_after: int = 50
    decay_every: int = 10
    lowest: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp", "anchor_logp"})

    def describe(self) -> str:
        share = f"{self.decay:g} less every {self.decay_every} steps after {self.decay_after}, down to {self.lowest:g}"
        return f"{self.beta:g} * [lam k3(logp, ref_logp) + (1 - lam) k3(logp, anchor_logp)], lam = 1, {share}"

    def lam(self, step: Tensor) -> Tensor:
        """The reference's share at steps [R], from 1."""
        times = ((step - self.decay_after).clamp(min=0) / self.decay_every).ceil()
        return (1 - self.decay * times).clamp(min=self.lowest)

    def __call__(self, batch: Batch) -> Tensor:
        lam = self.lam(batch.step).to(batch.dtype).unsqueeze(1)
        before, start = (kl_estimate(batch.logp, c, "k3") for c in (batch.ref_logp, batch.anchor_logp))
        return self.beta * (lam * before + (1 - lam) * start)

    def stats(self, batch: Batch) -> Stats:
        return {"kl": kl_estimate(batch.logp, batch.ref_logp, "k3")}


@dataclass(frozen=True)
class Reincarnation(Update):
    """After `reincarnate_at` steps (None: never) the second start, as above."""

    epochs: int = 2
    reincarnate_at: int | None = 100

    def before_step(self, step: int) -> frozenset[str]:
        again = self.reincarnate_at is not None and step == self.reincarnate_at + 1
        return super().before_step(step) | ({"reset_optimizer", "reset_reference"} if again else set())

    def recipe_at(self, recipe: Recipe, step: int) -> Recipe:
        if self.reincarnate_at is None or step <= self.reincarnate_at:
            return recipe
        assert isinstance(recipe.rollout, Sample)
        return recipe.replace(rollout=replace(recipe.rollout, replay=0.0), update=replace(self, epochs=1))


@method(
    paper="2507.06892",
    title="Squeeze the Soaked Sponge: Efficient Off-policy Reinforcement Finetuning for Large Language Model",
    parent="grpo",
)
def remix() -> Recipe:
    return grpo().replace(
        rollout=Sample(group_size=8, replay=0.4, replay_window=2),
        surrogate=CenteredClip(eps=0.2),
        regularizer=ConvexKL(),
        update=Reincarnation(epochs=2, reincarnate_at=100),
    )
