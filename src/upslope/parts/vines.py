"""Vines: several trajectories from one state, whose sets are scored by what they earn and by how they differ."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError, check_within
from upslope.parts.gae import GAE
from upslope.parts.sets import ClippedRatioPerSet, SetAdvantage
from upslope.parts.steps import Steps
from upslope.parts.surrogate import clip_loss, clip_stats, token_ratio
from upslope.recipe import State, Stats

VINE_COLUMNS = frozenset({"vine", "group", "prompt_key", "trajectory", "answer"})


@dataclass(frozen=True)
class Vines(Steps):
    """Steps, and from `states` of the states that each copy was in, drawn anew for every update, `vines` trajectories each.

    The environment is put back into the state, and the policy plays on to the episode's end: rows of the batch behind those of
    the copies, [N + N * states * vines, T], column `vine`. `group` is the state, `reward` what was earned from there on, without
    discount, `answer` a number for what the vine did:
    behavior   "final": the last observation that it led to; "visited": the set of all that it led to
    decimals   to which observations are rounded before they are compared
    """

    environments: int = 4
    states: int = 2
    vines: int = 8
    behavior: Literal["final", "visited"] = "final"
    decimals: int = 3
    formula: ClassVar[str] = (
        "{steps} steps of {environments} copies, {vines} vines from each of {states} states of a copy"
    )
    makes: ClassVar[frozenset[str]] = VINE_COLUMNS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.states <= self.steps:
            raise UsageError(f"Vines.states is {self.states}; it must be from 1 to steps={self.steps}.")
        if self.vines < 1:
            raise UsageError(f"Vines.vines is {self.vines}; it must be at least 1, e.g. 8.")
        if self.observation_noise:
            raise UsageError(
                "Vines cannot be played under observation_noise, which would not be put back. Set it to 0."
            )

    def player(self, environments: Any, policy: Any, critic: Any) -> Any:
        """A `VinePlayer`."""
        from upslope.control.vines import VinePlayer

        return VinePlayer(environments, policy, critic, self)


@dataclass(frozen=True)
class VineAdvantage(SetAdvantage):
    """GAE on the rows of the copies [N, S]; on the first `window` steps of a vine the advantages of the sets that hold it.

    The M = `sets` sets of n = `size` vines of a state are drawn and scored as `SetAdvantage` does it: mean return of the members,
    mapped from reward_range to [0, 1], times the share that did different things; less the mean over the state's sets. What a
    vine does after its window is not trained on (`mask`). `returns` of all that is trained on are A + V of GAE.
    Raises UsageError for returns of vines outside `reward_range`.
    """

    window: int = 5
    gamma: float = 0.99
    lam: float = 0.95
    reward_range: tuple[float, float] = (0.0, 1.0)
    formula: ClassVar[str] = (
        "GAE(gamma={gamma}, lam={lam}); in the first {window} steps of a vine the sum over {sets} random sets of {size} vines "
        "of (mean return * diversity - mean over sets)"
    )
    needs: ClassVar[frozenset[str]] = VINE_COLUMNS | {"reward", "old_value"}
    makes: ClassVar[frozenset[str]] = frozenset({"advantage", "set_gains", "set_losses", "mask"})

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.reward_range
        if not low < high:
            raise UsageError(f"VineAdvantage.reward_range is {self.reward_range}; give (lowest, highest), e.g. (0, 1).")
        if self.window < 1:
            raise UsageError(f"VineAdvantage.window is {self.window}; it must be at least 1, e.g. 5.")
        check_within(self, 0, 1, "gamma", "lam")

    def __call__(self, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        found = GAE(gamma=self.gamma, lam=self.lam, whiten=False)(batch)
        vine = batch.vine.bool()
        found["set_gains"], found["set_losses"] = torch.zeros_like(batch.reward), torch.zeros_like(batch.reward)
        if not vine.any():
            return found, {"step": state["step"] + 1}
        low, high = self.reward_range
        vines = batch.select(vine)
        vines.reward_within(low, high, part=self)
        sets, state = super().__call__(vines.replace(reward=(vines.reward - low) / (high - low)), state)
        for name in ("set_gains", "set_losses"):
            found[name][vine] = sets[name]
        found["advantage"] = torch.where(vine.unsqueeze(1), 0.0, found["advantage"])
        found["advantage"][vine] = sets["advantage"].unsqueeze(1)
        found["mask"] = batch.mask & (~vine.unsqueeze(1) | (batch.mask.cumsum(1) <= self.window))
        return found, state


@dataclass(frozen=True)
class ClippedRatioPerVine(ClippedRatioPerSet):
    """PPO's clip [R, T]: of the advantage on the rows of the copies, and summed over the sets of a vine on its row."""

    needs: ClassVar[frozenset[str]] = ClippedRatioPerSet.needs | {"advantage", "vine"}

    def describe(self) -> str:
        return f"max(-A r, -A clip(r, {self.ratio_low:g}, {self.ratio_high:g})), of a vine summed over its sets"

    def __call__(self, batch: Batch) -> Tensor:
        plain = clip_loss(batch.advantage, token_ratio(batch), self.ratio_low, self.ratio_high)
        return torch.where(batch.vine.bool().unsqueeze(1), super().__call__(batch), plain)

    def stats(self, batch: Batch) -> Stats:
        return clip_stats(batch.advantage, token_ratio(batch), self.ratio_low, self.ratio_high)
