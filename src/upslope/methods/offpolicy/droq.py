"""DroQ: two critics with dropout and layer normalisation in place of a large ensemble, twenty updates per step.

    Q_j      each hidden layer: linear, dropout(0.01), layer normalisation, ReLU                                 Q [2, B]
    y        r + gamma (1 - d) (min_j Q'_j(s', a') - alpha log pi(a'|s')), with dropout in Q', too                    [B]
    actor    mean of alpha log pi(a|s) - (1 / 2) sum Q_j(s, a), with dropout, after 20 critic updates

Differs from sac:  dropout and layer normalisation in the critics; the mean of both in the actor's loss; 20 critic updates per step.
Limits:  dropout 0, no layer normalisation, the lowest critic and one update per step is sac.
Expects:  as sac. Most of the effect at many updates per step is the layer normalisation's.
Source:  Hiraoka et al. 2021 (arXiv:2110.02034), algorithm 2; TakuyaHiraoka/Dropout-Q-Functions-for-Doubly-Efficient-RL.
Deviations:  as redq's: target entropy -A, losses of the critics with the factor 1/2.
Not this:  rlpd, which takes layer normalisation and ten critics, and half of each batch from a log.
"""

from upslope.actor_critic.actors import MaximizeQ
from upslope.actor_critic.critics import Critics
from upslope.actor_critic.data import Interact, Updates
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offpolicy.sac import sac
from upslope.registry import method


@method(paper="2110.02034", title="Dropout Q-Functions for Doubly Efficient Reinforcement Learning", parent="sac")
def droq() -> ActorCritic:
    return sac().replace(
        rollout=Interact(warmup=5000),
        critic=Critics(layer_norm=True, dropout=0.01),
        actor=MaximizeQ(critics="mean"),
        update=Updates(per_step=20, actor_every=20),
    )
