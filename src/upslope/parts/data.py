"""Where completions come from when the policy does not sample them: the data."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from upslope.recipe import Part


@dataclass(frozen=True)
class FromData(Part):
    """A `rollout` part: every prompt comes with its completions, in the run's data; nothing is sampled or judged.

    kind    "pairs": two per prompt, the preferred one's `label` 1, the other's 0, or probabilities that add up to 1
            "labels": one, `label` 1 if it is desirable, else 0
            "demonstrations": one, `label` 1
    The rows of a prompt are a group. There are the columns of the data and of the models (logp, ref_logp, entropy ...), but no
    old_logp: who wrote the completions is not known.
    """

    kind: Literal["pairs", "labels", "demonstrations"] = "pairs"
    replay: ClassVar[float] = 0.0
    temperature: ClassVar[float] = 1.0
