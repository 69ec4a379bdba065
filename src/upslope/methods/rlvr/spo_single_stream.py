"""SPO: one completion per prompt, against what the prompt's earlier completions earned, remembered with forgetting.

    v_p    alpha_p / (alpha_p + beta_p), the tracker of prompt p before the step, a Beta distribution
    A_i    (R_i - v_p - mean of these) / (their standard deviation + eps), over the whole batch            [R]
    loss   mean over the batch's tokens of max(-A r, -A clip(r, 0.8, 1.28)), at most -10 A where A < 0
    after  alpha = rho alpha + R, beta = rho beta + 1 - R;  rho = clip(2^(-D / 0.06), 0.875, 0.96)
    D      mean over the tokens of the prompt's last completion of |logp then - logp now|; 0 at the first visit
    Prompts are drawn without replacement, with weight sqrt(v (1 - v)) + 0.05.

Differs from grpo:  no groups: the trackers, their baseline and draw of prompts; the wider clip with a dual bound, the token
    mean, 8 mini-batches, no KL.
Limits:  rho = 1 counts successes as Bayes does; alpha + beta settles at 1 / (1 - rho), 8 to 25 completions. Equal v is the mean
    reward of the batch as baseline. No prompt is without signal, since the batch is what is compared.
Expects:  rewards in [0, 1]; prompts that come again: until then v = 1/2 and the baseline is the batch's; prompts_per_step as
    large as group methods have rows. One more forward pass, over the last completions of the prompts that come again. Trackers
    are kept in memory and in checkpoints, with one completion each (12 bytes per token).
Source:  Xu and Ding 2025 (arXiv:2509.13232); the authors' code (verl-recipe, spo_ray_trainer.py).
Deviations:  a tracker starts at alpha = beta = 1/2, as theirs without offline samples. They sample 8 completions of each prompt
    before the run: first_look=8 does so when a prompt is first drawn, by the policy of then. D is taken before a step's update,
    theirs after it. They draw by weight from a larger batch of the epoch, here from all prompts. Token mean: verl's default.
Not this:  a critic: v is of the prompt alone. A prompt that stands twice among the training examples has one tracker.
Claim:  more from the same rollouts where groups would be degenerate: reproduced on very easy prompts, +0.011 [+0.004,
    +0.019] of grpo's (study "degenerate", 5 seeds); on very hard ones no method learns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.aggregate import TokenMean
from upslope.parts.sampling import Sample, Uniform, Update
from upslope.parts.surrogate import ClippedRatio
from upslope.recipe import Part, Recipe, State
from upslope.registry import method
from upslope.rollout import Rollouts, Visit


@dataclass(frozen=True)
class PromptTracker(Uniform):
    """Draws prompts by their trackers and tells v, as above. `first_look`: completions judged when a prompt is first drawn.

    The state: by key of the prompt alpha, beta, and the tokens and log-probs of its last completion; the key by place.
    """

    rho_low: float = 0.875
    rho_high: float = 0.96
    half_drift: float = 0.06
    explore: float = 0.05
    first_look: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rho_low <= self.rho_high <= 1 or self.rho_low == 1:
            raise UsageError(
                f"PromptTracker(rho_low={self.rho_low:g}, rho_high={self.rho_high:g}): shares of the past that is kept, with "
                f"0 < rho_low <= rho_high <= 1 and rho_low under 1, e.g. 0.875 and 0.96."
            )
        if not (self.half_drift > 0 and self.explore > 0 and self.first_look >= 0):
            raise UsageError("PromptTracker: half_drift and explore must be over 0, first_look at least 0.")

    def init(self) -> State:
        return {"trackers": {}, "places": {}}

    def weights(self, size: int, state: State) -> Tensor:
        value = torch.full((size,), 0.5, dtype=torch.float64)
        for place, key in state["places"].items():
            value[place] = expected(state["trackers"].get(key, UNKNOWN))
        return (value * (1 - value)).sqrt() + self.explore

    def scout(self, keys: Sequence[str], state: State) -> list[int]:
        return [0 if key in state["trackers"] else self.first_look for key in keys]

    def scouted(self, keys: Sequence[str], rewards: Sequence[Sequence[float]], state: State) -> State:
        memory = 1 / (1 - self.rho_low)
        trackers = dict(state["trackers"])
        for key, earned in zip(keys, rewards, strict=True):
            share = (sum(earned) + 0.5) / (len(earned) + 1)
            trackers[key] = {"alpha": memory * share, "beta": memory * (1 - share)}
        return {**state, "trackers": trackers}

    def track(self, visit: Visit, state: State) -> tuple[dict[str, Tensor], State]:
        """The column expected_reward [R], and the trackers after the step. Raises UsageError for rewards outside [0, 1]."""
        reward = visit.batch.reward_within(0.0, 1.0, part=self).tolist()
        known, trackers = state["trackers"], dict(state["trackers"])
        value = torch.tensor([expected(known.get(key, UNKNOWN)) for key in visit.keys], dtype=visit.batch.dtype)
        keep = {
            key: min(max(0.5 ** (d / self.half_drift), self.rho_low), self.rho_high) for key, d in drift(visit, known)
        }
        for row, key in enumerate(visit.keys):
            if visit.batch.valid[row]:
                past, length = trackers.get(key, UNKNOWN), int(visit.rollouts.length[row])
                rho = keep.pop(key, 1.0)  # the policy has not moved between a prompt's rows of one step
                trackers[key] = {
                    "alpha": rho * past["alpha"] + reward[row],
                    "beta": rho * past["beta"] + 1 - reward[row],
                    "tokens": visit.rollouts.tokens[row, :length].clone(),
                    "logp": visit.rollouts.logp[row, :length].clone(),
                }
        return {"expected_reward": value}, {"trackers": trackers, "places": {**state["places"], **visit.places}}


UNKNOWN = {"alpha": 0.5, "beta": 0.5}


def expected(tracker: dict[str, Any]) -> float:
    """v of a tracker."""
    return tracker["alpha"] / (tracker["alpha"] + tracker["beta"])


def drift(visit: Visit, trackers: dict[str, Any]) -> list[tuple[str, float]]:
    """D of every prompt of the step: by its last completion, scored once more, or 0 where there is none."""
    prompt_of = {key: visit.rollouts.prompt[row] for row, key in enumerate(visit.keys)}
    again = [key for key in prompt_of if "tokens" in trackers.get(key, UNKNOWN)]
    found = dict.fromkeys(prompt_of, 0.0)
    if again:
        before = [(trackers[key]["tokens"], trackers[key]["logp"]) for key in again]
        tokens, then = (
            torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*before, strict=True)
        )
        length = torch.tensor([len(ids) for ids, _ in before])
        mask = torch.arange(tokens.shape[1]) < length[:, None]
        prompt = torch.stack([prompt_of[key] for key in again])
        texts = [""] * len(again)
        last = Rollouts(visit.rollouts.prompts, prompt, tokens, mask, length, then, then, ["stop"] * len(again), texts)
        moved = ((visit.score(last) - then) * mask).abs().sum(1) / length.clamp(min=1)
        found |= dict(zip(again, moved.tolist(), strict=True))
    return list(found.items())


@dataclass(frozen=True)
class TrackedBaseline(Part):
    """A [R], as above. A single row has nothing to be compared with: 0."""

    eps: float = 1e-8
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "expected_reward"})
    formula: ClassVar[str] = "(reward - expected_reward - mean) / (sample_std + {eps:g}), both over the batch"

    def __call__(self, batch: Batch) -> Tensor:
        surprise, rows = batch.reward - batch.expected_reward, batch.trained
        count = rows.sum()
        centered = torch.where(rows, surprise - torch.where(rows, surprise, 0.0).sum() / count, 0.0)
        return centered / (((centered**2).sum() / (count - 1).clamp(min=1)).sqrt() + self.eps)


@method(paper="2509.13232", title="Single-stream Policy Optimization", parent="grpo")
def spo_single_stream() -> Recipe:
    return grpo().replace(
        curriculum=PromptTracker(),
        rollout=Sample(group_size=1),
        advantage=TrackedBaseline(eps=1e-8),
        surrogate=ClippedRatio(ratio_low=0.8, ratio_high=1.28, dual=10.0),
        regularizer=None,
        aggregate=TokenMean(),
        update=Update(minibatches=8),
    )
