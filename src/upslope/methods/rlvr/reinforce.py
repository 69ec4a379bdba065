"""REINFORCE: the score-function gradient of the expected reward, with an optional baseline.

    g     discounted sum of the rewards from token t on; the bare reward at every token if gamma = 1         [R, T]
    b     0; or the mean return of the batch, of the batch's other rows, or of the steps before              [R]
    A     g - b                                                                                              [R, T]
    loss  mean over sequences of the sum over tokens of -A logp

Limits:  with baseline="none", "leave_one_out" or "moving_average" it is unbiased; "batch_mean" shrinks the gradient's expectation
    by (R - 1) / R, since a row is in its own baseline. A constant added to every reward then changes nothing but the noise.
Expects:  any reward; fresh rollouts, since nothing corrects for a policy that has moved: one update per rollout.
Source:  Williams 1992, sections 4 and 5; the return-to-go is the policy gradient theorem's (Sutton et al. 2000).
Deviations:  the moving average starts as if empty (bias-corrected), so the first step has no baseline. A lone row with
    baseline="leave_one_out" has A = 0.
Not this:  a mean over the sequence's tokens (aggregate=SequenceMean()) is biased against long completions. A baseline for each
    prompt: rloo.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError, check_within
from upslope.parts.aggregate import SequenceSum
from upslope.parts.gae import return_to_go
from upslope.parts.network import MLP
from upslope.parts.sampling import Sample, Uniform, Update
from upslope.parts.steps import Episodes, Optimizer, StepUpdate
from upslope.parts.surrogate import PolicyGradient
from upslope.recipe import Part, Recipe, State
from upslope.registry import method, preset


@dataclass(frozen=True)
class ReturnBaseline(Part):
    """A = g - b [R, T], as above. A row's return is g at its first trained token; `decay` belongs to "moving_average".

    Rows without a trained token are in no baseline. The state of "moving_average": the decayed sum of returns and its weight.
    """

    baseline: Literal["none", "batch_mean", "leave_one_out", "moving_average"] = "none"
    gamma: float = 1.0
    decay: float = 0.9
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UsageError(
                f"ReturnBaseline(decay={self.decay:g}): the share of the past must be in [0, 1), e.g. 0.9."
            )
        check_within(self, 0, 1, "gamma")

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """The moving average remembers."""
        return self.baseline == "moving_average"

    def init(self) -> State:
        return {"total": 0.0, "weight": 0.0}

    def describe(self) -> str:
        return "return" if self.baseline == "none" else f"return - {self.baseline.replace('_', ' ')} of the returns"

    def __call__(self, batch: Batch, state: State | None = None) -> Any:
        earned = return_to_go(batch, self.gamma)
        first = batch.mask.to(torch.int64).argmax(1, keepdim=True)
        returns = earned.gather(1, first).squeeze(1)  # 0 in a row without trained tokens
        if state is None:
            return self._advantage(batch, earned, self._baseline(returns, batch.trained))
        past = state["total"] / state["weight"] if state["weight"] else 0.0
        mean, share = float(returns[batch.trained].mean()), 1 - self.decay
        following = {key: self.decay * state[key] + share * new for key, new in (("total", mean), ("weight", 1.0))}
        return self._advantage(batch, earned, torch.full_like(returns, past)), following

    def _baseline(self, returns: Tensor, trained: Tensor) -> Tensor:
        count = trained.sum()
        if self.baseline == "batch_mean":
            return (returns.sum() / count).expand_as(returns)
        if self.baseline == "leave_one_out":
            return torch.where(count > 1, (returns.sum() - returns) / (count - 1).clamp(min=1), returns)
        return torch.zeros_like(returns)

    @staticmethod
    def _advantage(batch: Batch, earned: Tensor, baseline: Tensor) -> Tensor:
        return torch.where(batch.mask, earned - baseline.unsqueeze(1), 0.0)


@method(
    paper="Williams 1992, Machine Learning 8:229-256",
    title="Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
)
def reinforce() -> Recipe:
    return Recipe(
        curriculum=Uniform(),
        rollout=Sample(group_size=8),
        advantage=ReturnBaseline(baseline="none"),
        surrogate=PolicyGradient(),
        aggregate=SequenceSum(),
        update=Update(),
    )


@preset("control", version="whole episodes of an environment")
def reinforce_control() -> Recipe:
    return reinforce().replace(
        curriculum=None,
        policy=MLP(hidden=(64, 64), activation="tanh"),
        rollout=Episodes(episodes=16, environments=16),
        advantage=ReturnBaseline(baseline="leave_one_out", gamma=0.99),
        update=StepUpdate(transitions=False),
        optimizer=Optimizer(lr=1e-3),
    )
