"""CoPG: rewards less what they should cost in log-ratio are made equal within a prompt, whoever wrote the completions.

    x_i   R_i - beta * (sum over tokens of logp - ref_logp)                         [R]
    loss  mean over prompts of 1 / (K - 1) sum over pairs i < j of (x_i - x_j)^2 / (2 beta), K completions of the prompt

Differs from rloo:  the KL is differentiated with the log-probs, not taken off the reward; completions of any origin; the sum over
    a prompt's completions.
Limits:  x is the same for every completion at the policy ref * exp(R / beta) / Z, and there alone if all completions may occur:
    the loss has that minimizer for any sampling distribution, without importance weights. On completions of the policy the
    gradient is that of rloo on R less the KL, summed over a prompt's completions. Pairs whose rewards differ by 1/2 make it
    beta / 2 times ipo of whole completions.
Expects:  two or more completions per prompt; rewards of a scale in which beta is the price of a nat. `copg@offline` takes pairs
    from the data, their scores as rewards (1 and 0 where there are none), and needs no verifier.
Source:  Flet-Berliac et al. 2024 (arXiv:2406.19185). There is no public code: the loss is derived from the paper's gradient, and
    agrees with a public note on K samples. beta between 0.01 and 0.1 is from memory; 0.1 is our choice.
Deviations:  none known in the loss. The completions of a pair are the policy's own here, by default; four of them.
Not this:  a clip or a ratio: off-policy data needs neither. ipo has labels in the place of rewards.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.rloo import rloo
from upslope.parts.aggregate import GroupSum
from upslope.parts.data import FromData
from upslope.parts.preference import sequence_score
from upslope.recipe import Part, Recipe, Stats
from upslope.registry import method, preset


@dataclass(frozen=True)
class ContrastivePolicyGradient(Part):
    """K / (2 beta (K - 1)) (x_i - mean of x)^2 per completion [R], whose sum over a prompt is that over its pairs, as above."""

    beta: float = 0.1
    formula: ClassVar[str] = (
        "K / (K - 1) (x - mean of group)^2 / (2 * {beta}), x = reward - {beta} sum of logp - ref_logp"
    )
    level: ClassVar[Literal["token", "sequence"]] = "sequence"
    couples_group: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "ref_logp", "group"})

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"ContrastivePolicyGradient(beta={self.beta:g}): it must be positive, e.g. 0.1.")

    def __call__(self, batch: Batch) -> Tensor:
        return self._deviation(batch) ** 2 / (2 * self.beta)

    def stats(self, batch: Batch) -> Stats:
        """How unequal x is within a prompt: 0 at the optimum."""
        return {"copg/deviation": self._deviation(batch).abs()}

    def _deviation(self, batch: Batch) -> Tensor:
        """(x - mean of its prompt) sqrt(K / (K - 1)); 0 in a row without trained tokens, or alone in its prompt, [R]."""
        fit = batch.replace(valid=batch.valid & batch.trained)
        value = batch.reward - self.beta * sequence_score(batch, reference=True, normalized=False)
        mean, count = (column[batch.group] for column in fit.group_mean(value))
        deviation = (value - mean) * (count / (count - 1).clamp(min=1)).sqrt()
        return deviation.where(fit.valid & (count > 1), 0.0)


@method(
    paper="2406.19185",
    title="Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion",
    parent="rloo",
)
def copg() -> Recipe:
    surrogate = ContrastivePolicyGradient(beta=0.1)
    return rloo().replace(reward=None, advantage=None, surrogate=surrogate, aggregate=GroupSum())


@preset("offline", version="pairs of a file")
def copg_offline() -> Recipe:
    return copg().replace(rollout=FromData(kind="pairs"))
