"""What a teacher says of the policy's tokens: an advantage, or a divergence of whole next-token distributions.

Three levels of detail: the teacher's log-prob of the sampled token (the column teacher_logp), a divergence over the policy's k
most likely words, and one over the whole vocabulary. The latter two are columns of their own, made a few positions at a time,
so that no more of the distributions is ever held (`upslope.teaching`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.parts.gae import gae
from upslope.recipe import Part, Stats

Comparison = Callable[[Tensor, Tensor], Tensor]
"""Log-probs of the whole vocabulary, the policy's [M, V] and the teacher's [M, V], to a number per position [M]."""


@dataclass(frozen=True)
class TeacherAdvantage(Part):
    """A = scale times the discounted sum, from each token on, of teacher_logp - old_logp, [R, T].

    `discount` 0 leaves each token its own difference: the gradient of KL(policy || teacher) at the prefixes sampled, without that
    of how a token changes the prefixes after it. With 1 it is that of the KL of whole completions.
    """

    scale: float = 1.0
    discount: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logp", "old_logp"})

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise UsageError(
                f"{type(self).__name__}(discount={self.discount:g}): it must be in [0, 1]; 0 is each token alone."
            )

    def describe(self) -> str:
        factor = "" if self.scale == 1 else f"{self.scale:g} "
        summed = f"sum over u >= t of {self.discount:g}^(u - t) " if self.discount else ""
        return f"{factor}{summed}{self.difference}"

    difference: ClassVar[str] = "(teacher_logp - old_logp)"

    def __call__(self, batch: Batch) -> Tensor:
        reward = self.scale * self.reward(batch)
        return gae(reward, torch.zeros_like(reward), batch.mask, self.discount, 1.0) if self.discount else reward

    def reward(self, batch: Batch) -> Tensor:
        """What a token earns, [R, T]."""
        return batch.teacher_logp - batch.old_logp

    def stats(self, batch: Batch) -> Stats:
        return {"teacher/kl": batch.old_logp - batch.teacher_logp}


@dataclass(frozen=True)
class TeacherDivergence(Part):
    """The divergence of the policy's next-token distribution p from the teacher's q, with gradient through p, [R, T].

        beta KL(q || m) + (1 - beta) KL(p || m),   m = beta q + (1 - beta) p

    and in its place KL(q || p), the forward one, for beta = 0, and KL(p || q), the reverse one, for beta = 1. `coefficient`
    multiplies it, `temperature` divides the logits of both. Source: Agarwal et al. 2023 (arXiv:2306.13649), eq. 1 and 2.
    """

    beta: float = 0.5
    coefficient: float = 1.0
    temperature: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"divergence"})

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1 or not self.temperature > 0:
            raise UsageError(
                f"{type(self).__name__}(beta={self.beta:g}, temperature={self.temperature:g}): beta must be in [0, 1], from the "
                "forward KL to the reverse one, and the temperature above 0."
            )

    def describe(self) -> str:
        name = {0.0: "KL(teacher || policy)", 1.0: "KL(policy || teacher)"}.get(self.beta, f"JSD_{self.beta:g}")
        factor = "" if self.coefficient == 1 else f"{self.coefficient:g} "
        return f"{factor}{name}" + ("" if self.temperature == 1 else f" at temperature {self.temperature:g}")

    def compares(self) -> Mapping[str, Comparison]:
        """The column that it reads."""
        return {"divergence": self._divergence}

    def _divergence(self, policy: Tensor, teacher: Tensor) -> Tensor:
        if self.temperature != 1:
            policy, teacher = ((x / self.temperature).log_softmax(-1) for x in (policy, teacher))
        return generalized_jsd(policy, teacher, self.beta)

    def __call__(self, batch: Batch) -> Tensor:
        return self.coefficient * batch.divergence

    def stats(self, batch: Batch) -> Stats:
        return {"teacher/divergence": batch.divergence}


def kl_divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) [M] in nats of log-probs [M, V]; words that `one` excludes (-inf) count for nothing."""
    return torch.where(one == -torch.inf, 0.0, one.exp() * (one - other)).sum(-1)


def generalized_jsd(policy: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """As in TeacherDivergence, [M], from log-probs [M, V]."""
    if beta == 0:
        return kl_divergence(teacher, policy)
    if beta == 1:
        return kl_divergence(policy, teacher)
    mixture = torch.logaddexp(policy + math.log1p(-beta), teacher + math.log(beta))
    return beta * kl_divergence(teacher, mixture) + (1 - beta) * kl_divergence(policy, mixture)


def top_k_kl(policy: Tensor, teacher: Tensor, k: int) -> Tensor:
    """KL(policy || teacher) [M], both renormalised on the policy's k most likely words, from log-probs [M, V]."""
    top, ids = policy.topk(min(k, policy.shape[-1]), dim=-1)
    return kl_divergence(top.log_softmax(-1), teacher.gather(-1, ids).log_softmax(-1))
