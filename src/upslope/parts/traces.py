"""Learning through known dynamics: whole traces of exogenous noise, and a loss that is the environment's own cost."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.parts.steps import Optimizer, Playing, _at_least_one
from upslope.recipe import Part, Stats


@dataclass(frozen=True)
class Traces(Playing):
    """`steps` steps on each of `environments` traces: first states and noise of episodes, drawn before anything is done.

    Rows of the batch are traces [N, S]. The policy's mode is played, so an update may replay a trace with other actions: the
    noise does not depend on them. `fresh`: other traces in every step of the run; False: the same ones, drawn once.
    `reach`: rows are pieces of `reach` steps [N S / reach, reach] instead, and gradients end with a piece. A trace is played once
    from its first state to its end, and each piece begins where the policy came to: long traces without long gradients, which
    leave out what an action does after its piece. None: whole traces.
    Raises UsageError where the pieces do not fill the trace.
    """

    environments: int = 1024
    steps: int = 50
    fresh: bool = False
    reach: int | None = None
    formula: ClassVar[str] = "{steps} steps on {environments} traces of noise"
    makes: ClassVar[frozenset[str]] = frozenset({"cost"})

    def __post_init__(self) -> None:
        _at_least_one(self, "environments", "steps")
        if self.reach is not None and not (self.reach >= 1 and self.steps % self.reach == 0):
            raise UsageError(
                f"Traces.reach is {self.reach}; it must be at least 1 and divide steps={self.steps}, or None for whole traces."
            )

    def pieces(self, column: Tensor) -> Tensor:
        """A column [N, S, ...] of whole traces as rows of the batch [R, T, ...]."""
        return column if self.reach is None else column.unflatten(1, (-1, self.reach)).flatten(0, 1)

    def player(self, environments: Any, policy: Any, critic: Any) -> Any:
        """A `TracePlayer`."""
        from upslope.control.pathwise import TracePlayer

        return TracePlayer(environments, policy, critic, self)


@dataclass(frozen=True)
class PathwiseCost(Part):
    """The cost of each step [N, S] as the simulation gives it, minus the reward: its gradient goes through every earlier state."""

    formula: ClassVar[str] = "cost"
    needs: ClassVar[frozenset[str]] = frozenset({"cost"})

    def __call__(self, batch: Batch) -> Tensor:
        return batch.cost

    def stats(self, batch: Batch) -> Stats:
        return {"cost": batch.cost.detach()}


@dataclass(frozen=True)
class Pathwise(Optimizer):
    """An Optimizer whose gradient is that of the simulated cost: traces are played again under the parameters as they are."""

    def updater(self) -> Any:
        """A `PathwiseUpdater`."""
        from upslope.control.pathwise import PathwiseUpdater

        return PathwiseUpdater
