"""SALSA: PPO whose KL penalty holds the policy near the average of two fine-tuned models, in place of the one it began as.

    soup    a theta_1 + (1 - a) theta_2, two models fine-tuned from one; the policy begins as the first
    rho     score at the last token - beta (old_logp - soup_logp) at every token    [R, T]
    the rest as in rlhf_ppo

Differs from rlhf_ppo:  the model that the KL is measured from; beta.
Limits:  a = 1 is rlhf_ppo. The penalty is not 0 at the first step, since the policy does not begin as the soup.
Expects:  two runs of `upslope train sft --data FILE` with different --seed; the soup of their checkpoints, made by
    `upslope.policies.soup.average_models([first, second], "soup")`, as --teacher, and the first of them as --model. A critic,
    and one pass of the soup per batch; no other reference.
Source:  Chegini et al. 2024 (arXiv:2411.01798). There is no public code: from the paper's abstract and memory. a = 1/2.
Deviations:  beta is not known: 0.02, smaller than rlhf_ppo's 0.05, since the paper's point is that the policy may go farther. The
    penalty on missing ends and the scaling of rewards of rlhf_ppo are left out.
Not this:  a teacher to imitate: only the distance from it is paid for. A reference that follows the policy is dno's.
Claim:  goes farther than PPO without over-optimizing: not reproduced in the study "over_optimization" (5 seeds): from 0.783
    it falls to 0.323 [0.285, 0.373] at a KL of 7 nats from the embedded model; beta = 0.02 is our guess and was not tuned.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlhf.rlhf_ppo import rlhf_ppo
from upslope.parts.kl import KLInReward, kl_estimate
from upslope.recipe import Recipe, Stats
from upslope.registry import method


@dataclass(frozen=True)
class KLToSoup(KLInReward):
    """KLInReward from the model given by --teacher, the soup, in the place of the reference."""

    needs: ClassVar[frozenset[str]] = frozenset({"reward", "old_logp", "teacher_logp"})

    def describe(self) -> str:
        return super().describe().replace("ref_logp", "soup_logp")

    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch.replace(ref_logp=batch.teacher_logp))

    def stats(self, batch: Batch) -> Stats:
        return {"kl": kl_estimate(batch.logp, batch.teacher_logp, "k3")}


@method(
    paper="2411.01798", title="SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF", parent="rlhf_ppo"
)
def salsa() -> Recipe:
    return rlhf_ppo().replace(reward=KLToSoup(beta=0.02, level="token"))
