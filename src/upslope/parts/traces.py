"""Learning through known dynamics: whole traces of exogenous noise, and a loss that is the environment's own cost."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.parts.steps import Optimizer, Playing, _at_least_one
from upslope.recipe import Part, Stats


@dataclass(frozen=True)
class Traces(Playing):
    """`steps` steps on each of `environments` traces: first states and noise of episodes, drawn before anything is done.

    Rows of the batch are traces [N, S]. The policy's mode is played, so an update may replay a trace with other actions: the
    noise does not depend on them. `fresh`: other traces in every step of the run; False: the same ones, drawn once.
    """

    environments: int = 1024
    steps: int = 50
    fresh: bool = False
    formula: ClassVar[str] = "{steps} steps on {environments} traces of noise"
    makes: ClassVar[frozenset[str]] = frozenset({"cost"})

    def __post_init__(self) -> None:
        _at_least_one(self, "environments", "steps")

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
