"""Where completions come from when the policy does not sample them: the data; and samples beside those."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from upslope.errors import UsageError
from upslope.recipe import Part
from upslope.rollout import Example

OF_SAMPLES = ("temperature", "sampler", "pool_every", "pool_size", "pool_keep")


@dataclass(frozen=True)
class FromData(Part):
    """A `rollout` part: every prompt comes with its completions, in the run's data; beside them, completions may be sampled.

    kind    "pairs": two per prompt, the preferred one's `label` 1, the other's 0, or probabilities that add up to 1
            "labels": one, `label` 1 if it is desirable, else 0
            "demonstrations": one, `label` 1
    The given rows of a prompt are a group. There are the columns of the data and of the models (logp, ref_logp, entropy ...), but
    no old_logp: who wrote the completions is not known.

    samples      completions that are written to each prompt of the step, at `temperature`, for terms of their own
                 (rows=PolicyRows()). They are a group of their own, never paired with given ones: label 0, reward 0, unless
                 something that reads their reward makes the run judge them. `source` and `prompt` tell rows apart and together
    sampler      who writes them: the "policy" as it is; the run's "reference"; or, from a "pool", an earlier checkpoint of the
                 policy, each as likely, one per step (sources "policy", "earlier", "earlier")
    pool_every   steps between the checkpoints of the pool, the first of which is the initial policy
    pool_size    how many are kept, on the CPU and in the run's checkpoints: each is a copy of the trained weights
    pool_keep    "latest"; or "spread": where there are too many every second one goes, and from then on they are kept half as
                 often, so that they stand for the whole run, equally far apart

    With samples, old_logp on every row is the log-prob under who wrote the step's samples: for sampled ones their sampler's, for
    given ones that writer's log-prob of tokens which it did not write, so no importance ratio of theirs is one. behavior_logp
    and what verifiers give beside the reward are not there: given rows have none.
    """

    kind: Literal["pairs", "labels", "demonstrations"] = "pairs"
    samples: int = 0
    temperature: float = 1.0
    sampler: Literal["policy", "reference", "pool"] = "policy"
    pool_every: int = 30
    pool_size: int = 7
    pool_keep: Literal["latest", "spread"] = "latest"
    replay: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.samples < 0 or self.pool_every < 1 or self.pool_size < 1:
            raise UsageError(
                f"FromData(samples={self.samples}, pool_every={self.pool_every}, pool_size={self.pool_size}): samples must be at "
                "least 0, the other two at least 1."
            )
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"FromData(temperature={self.temperature:g}): it must be at least 0 (greedy), e.g. 1.")
        unread = OF_SAMPLES if not self.samples else OF_SAMPLES[2:] if self.sampler != "pool" else ()
        changed = [name for name in unread if getattr(self, name) != type(self).__dataclass_fields__[name].default]
        if changed:
            needed = "samples=1 or more" if not self.samples else "sampler='pool'"
            raise UsageError(f"FromData({changed[0]}={getattr(self, changed[0])!r}) is read with {needed} only.")

    def select(self, examples: Sequence[Example]) -> tuple[Sequence[Example], list[str]]:
        """Which of the training examples are used, before the first step, and notes on what was left out."""
        return examples, []
