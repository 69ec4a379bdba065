"""Cal-QL: CQL that does not push values below what the log's own policy earns, so that playing on does not first unlearn.

    G        sum of discounted rewards of the logged episode from s on, scaled as rewards are                          [B]
    cat      Q_j(s, a) - log density(a) over n uniform a, and
             max(Q_j(s, a), G) - log density(a) over n of pi(.|s), n of pi(.|s')                                   [B, 3n]
    gap_j    T logsumexp(cat / T) - Q_j(s, a_logged)                                                                   [B]
    the rest as cql; with environments half of every batch is from the log

Differs from cql:  the max; how batches are mixed once it plays.
Limits:  G -> -infinity is cql. G above all Q: only uniform actions are pushed down, and no gradient goes through the others.
Expects:  a log (--data) of whole episodes; with --task and rollout.offline_steps=N it plays on after N steps. G of what is
    played is known when an episode ends, so its steps are stored then.
Source:  Nakamoto et al. 2023 (arXiv:2303.05479), equation 5; nakamotoo/Cal-QL, JaxCQL/conservative_sac.py.
Deviations:  alpha_cql = 10 as cql's (theirs: 5 with penalty.target_gap=0.8 on antmaze, 1 without on adroit). G of an
    episode that time cut short is the sum until then; theirs, for rewards that never come, is r / (1 - gamma).
Not this:  a clip of the penalty as a whole: the max is taken for each action.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upslope.actor_critic.critics import ConservativeGap
from upslope.actor_critic.data import Transitions
from upslope.actor_critic.minibatch import Minibatch
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offline.cql import cql
from upslope.registry import method


@dataclass(frozen=True)
class CalibratedGap(ConservativeGap):
    """As ConservativeGap, with Q_j(s, a) of the policy's actions no lower than the logged return to go."""

    needs: ClassVar[frozenset[str]] = frozenset({"return_to_go"})

    def floor(self, m: Minibatch) -> Tensor:
        """The least Q, [3, B]: for uniform actions, of pi(.|s'), of pi(.|s)."""
        earned = m.column("return_to_go")
        return torch.stack([torch.full_like(earned, -math.inf), earned, earned])

    def describe(self) -> str:
        return super().describe() + ", Q of the policy's a no lower than the return to go"


@method(
    paper="2303.05479",
    title="Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning",
    parent="cql",
    aliases=("calql",),
)
def cal_ql() -> ActorCritic:
    return cql().replace(data=Transitions(log_share=0.5), penalty=CalibratedGap())
