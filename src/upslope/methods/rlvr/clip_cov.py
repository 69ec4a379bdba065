"""Clip-Cov: leaves out a few random tokens among those whose advantage and log-prob are high, or low, together.

    cov   (A - mean A) (logp - mean logp), means over the mini-batch's tokens, constant                    [R, T]
    S     tokens with cov_low < cov < cov_high whose ratio PPO's clip leaves alone; share * tokens of them, one at
          least, drawn uniformly, have w = 0, all others w = 1                                            [R, T]
    loss  mean over the mini-batch's tokens of w max(-A r, -A clip(r, 0, 2))

Where A and logp are high together the entropy falls: to first order a tabular softmax policy that takes a step eta along the
gradient of the expected reward changes its entropy by -eta Cov(log pi, pi A) over actions a ~ pi.

Differs from grpo:  w; the interval 0 to 2 in place of 0.8 to 1.2; the token mean; 8 updates per batch; no KL.
Limits:  share=0 is PPO's clip with grpo's advantage and a token mean.
Expects:  long completions: of 10,000 tokens two are left out. The bounds 1 and 5 are absolute, for advantages of unit
    variance and log-probs of a large model; the statistics covariance/mean and covariance/selected say whether they act.
Source:  Cui et al. 2025 (arXiv:2505.22617), section 4; the authors' code and verl's compute_policy_loss_clip_cov.
Deviations:  cov and the draw are over the mini-batch; the code's are over each micro-batch. The draw depends on trajectory,
    position and a counter of mini-batches, not on the run's seed. The authors' runs also sample until enough groups have
    rewards that differ: curriculum="dapo" (from memory of their scripts).
Not this:  a clip of the covariance: the tokens in S lose their gradient altogether.
Claim:  keeps entropy: not seen in the study "entropy" (5 seeds, 480 updates, leg_counting), neither at the published share,
    which is one token here, nor at 2 %: entropy, pass@1 and pass@8 are those of grpo within the intervals.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.aggregate import TokenMean
from upslope.parts.sampling import Update
from upslope.parts.selection import check_share, covariance, largest, number_of, token_uniform
from upslope.parts.surrogate import ControlledClip, check_interval, token_ratio
from upslope.recipe import Part, Recipe, State, Stats
from upslope.registry import method


@dataclass(frozen=True)
class LeaveOutCovariant(Part):
    """weight [R, T] = w, as above, and the clip's bounds, which the draw has to know. The state counts mini-batches."""

    share: float = 2e-4
    cov_low: float = 1.0
    cov_high: float = 5.0
    ratio_low: float = 0.0
    ratio_high: float = 2.0
    formula: ClassVar[str] = (
        "w = 0 for a random {share} of the tokens, of those with {cov_low} < cov < {cov_high} inside the clip"
    )
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "old_logp", "trajectory"})
    makes: ClassVar[frozenset[str]] = frozenset({"weight", "ratio_low", "ratio_high", "covariance", "selected"})

    def __post_init__(self) -> None:
        check_share(self, self.share)
        check_interval(self, self.ratio_low, self.ratio_high, around=1.0)
        if self.cov_low >= self.cov_high:
            raise UsageError(
                f"LeaveOutCovariant draws tokens with a covariance between {self.cov_low:g} and {self.cov_high:g}: there is "
                "none. Set cov_low below cov_high, e.g. 1 and 5."
            )

    def init(self) -> State:
        return {"minibatch": 0}

    def __call__(self, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        cov, ratio = covariance(batch), token_ratio(batch)
        clipped = ((ratio > self.ratio_high) & (batch.advantage > 0)) | (
            (ratio < self.ratio_low) & (batch.advantage < 0)
        )
        candidates = batch.mask & ~clipped & (cov > self.cov_low) & (cov < self.cov_high)
        drawn = token_uniform(batch, state["minibatch"])
        selected = largest(-drawn, number_of(self.share, batch.mask), candidates, ties=drawn)
        columns = {
            "weight": batch.weight * ~selected,
            "ratio_low": batch.logp.new_full((len(batch),), self.ratio_low),
            "ratio_high": batch.logp.new_full((len(batch),), self.ratio_high),
            "covariance": cov,
            "selected": selected,
        }
        return columns, {"minibatch": state["minibatch"] + 1}

    def stats(self, batch: Batch) -> Stats:
        return {"covariance/mean": batch.covariance, "covariance/selected": batch.selected.to(batch.dtype)}


@method(
    paper="2505.22617",
    title="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    parent="grpo",
    aliases=("entropy_mechanism",),
)
def clip_cov() -> Recipe:
    return grpo().replace(
        control=LeaveOutCovariant(),
        surrogate=ControlledClip(),
        regularizer=None,
        aggregate=TokenMean(),
        update=Update(minibatches=8),
    )
