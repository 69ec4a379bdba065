"""Methods that go from iterate to iterate: the policy at the start of a step as the reference of that step."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.recipe import Part


@dataclass(frozen=True)
class IterateReference(Part):
    """A `control` part: the column ref_logp becomes share * ref_logp + (1 - share) * old_logp.

    The reference is then ref^share * pi_t^(1 - share), up to a constant per prompt, pi_t the policy that sampled the step's
    rollouts; with share 0 it is pi_t alone, and no frozen model is needed. A step is one iteration of the method: its size is
    prompts_per_step, its optimizer steps are update.minibatches and update.epochs.
    """

    share: float = 0.0
    makes: ClassVar[frozenset[str]] = frozenset({"ref_logp"})

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(
                f"IterateReference(share={self.share:g}): it must be in [0, 1]; 0 is the last iterate alone."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Reads ref_logp unless its share is 0, old_logp unless that is all."""
        return frozenset({name for name, on in (("ref_logp", self.share > 0), ("old_logp", self.share < 1)) if on})

    def describe(self) -> str:
        return {0.0: "ref_logp = old_logp", 1.0: "ref_logp as it is"}.get(
            self.share, f"ref_logp = {self.share:g} ref_logp + {1 - self.share:g} old_logp"
        )

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        if not self.share:
            return {"ref_logp": batch.old_logp}
        if self.share == 1:
            return {"ref_logp": batch.ref_logp}
        return {"ref_logp": self.share * batch.ref_logp + (1 - self.share) * batch.old_logp}
