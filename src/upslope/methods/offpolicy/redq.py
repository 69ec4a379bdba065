"""REDQ: ten critics, a random pair of them in every target, twenty updates per step.

    M        2 of the N = 10 critics, drawn anew for every update, without replacement
    y        r + gamma (1 - d) (min over M of Q'_i(s', a') - alpha log pi(a'|s')),  a' ~ pi(.|s')                     [B]
    critic   sum over all N of 1/2 mean (Q_i(s, a) - y)^2, 20 times per step of the environment                 Q [N, B]
    actor    mean of alpha log pi(a|s) - (1 / N) sum Q_i(s, a), after those 20

Differs from sac:  ten critics, of which two in a target; the mean of all in the actor's loss; 20 critic updates per step, then
    one of actor and temperature.
Limits:  N = 2 and one update per step is sac, but for the mean in the actor's loss.
Expects:  as sac. Twenty updates of ten critics cost much on a CPU: critic.members=5 update.per_step=5 update.actor_every=5.
Source:  Chen et al. 2021 (arXiv:2101.05982), algorithm 1; watchernyu/REDQ, redq/algos/redq_sac.py.
Deviations:  the target entropy is -A; theirs is set per task (Hopper -1, HalfCheetah and Walker -3, Ant -4, Humanoid -2):
    temperature.target. Critics' losses have the factor 1/2 of sac, which Adam does not see.
Not this:  with replacement a pair would often be one critic twice: 1.875 expected of (1, 2, 3, 4), here 1.667.
"""

from upslope.actor_critic.actors import MaximizeQ
from upslope.actor_critic.critics import Critics, Lowest
from upslope.actor_critic.data import Interact, Updates
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offpolicy.sac import sac
from upslope.registry import method


@method(
    paper="2101.05982",
    title="Randomized Ensembled Double Q-Learning: Learning Fast Without a Model",
    parent="sac",
)
def redq() -> ActorCritic:
    return sac().replace(
        rollout=Interact(warmup=5000),
        critic=Critics(members=10),
        ensemble=Lowest(of=2),
        actor=MaximizeQ(critics="mean"),
        update=Updates(per_step=20, actor_every=20),
    )
