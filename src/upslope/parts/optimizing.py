"""What an `optimizer` part of a method for environments says: who learns from what was played."""

from typing import TYPE_CHECKING, Any

from upslope.recipe import Part

if TYPE_CHECKING:
    from upslope.parts.steps import Optimizer


class Optimizing(Part):
    """How the parameters of a policy that acts in an environment move."""

    def updater(self) -> Any:
        """The class that plays and learns, made of (recipe, policy, critic, steps of the run)."""
        from upslope.control.learning import StepUpdater

        return StepUpdater

    def for_critic(self) -> "Optimizer":
        """The optimizer of a critic that has one of its own."""
        raise NotImplementedError
