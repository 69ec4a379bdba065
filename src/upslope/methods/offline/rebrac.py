"""ReBRAC: TD3+BC with a penalty in the target as well, deeper networks and layer normalisation in the critics.

    y        r + gamma (1 - d) (min_j Q'_j(s', a~) - beta_c sum over A of (a~ - a')^2),  a' the logged next action     [B]
    actor    mean of beta_a sum over A of (pi(s) - a)^2 - lambda min_j Q_j(s, pi(s)),  lambda = 1 / mean |min_j Q_j|
    a~       clip(pi'(s') + clip(0.2 N(0, 1), -0.5, 0.5), -1, 1)

Differs from td3_bc:  the penalty in the target; the lower critic in the actor's loss; sums over A with weights of their own;
    three hidden layers, layer normalisation in the critics, batches of 1024 and lr 1e-3; observations as they are.
Limits:  beta_c = 0, no layer normalisation and actor.critics="first" is td3_bc with alpha = 1 / (A beta_a).
Expects:  a log (--data) with the order of its steps: of a cut-off episode's last step, where no a' follows, nothing is learned.
Source:  Tarasov et al. 2023 (arXiv:2305.09836); corl-team/CORL, algorithms/offline/rebrac.py.
Deviations:  beta_a = beta_c = 0.01 (behavior.coefficient, target.coefficient); theirs are searched per set, and are 0.05 and 0.5
    on Hopper's medium-replay, 0.01 and 0.001 on HalfCheetah's.
Not this:  normalize=False, theirs for AntMaze.
Claim:  above td3_bc: reproduced on pendulum, cheetah alone in the study "offline" (medium-replay; normalized score, difference
    paired by seed): pendulum 100 (+105.2 [+100.8, +109.6], 5 seeds); pointmaze 28 (-16.6 [-30.3, -0.1], 4 seeds); cheetah 57
    (+26.6 [+3.1, +51.9], 3 seeds).
"""

from dataclasses import replace

from upslope.actor_critic.actors import Cloning, MaximizeQ
from upslope.actor_critic.critics import Critics, PenalizedTarget
from upslope.actor_critic.data import Transitions, Updates
from upslope.actor_critic.policies import DETERMINISTIC
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offline.td3_bc import td3_bc
from upslope.registry import method


@method(
    paper="2305.09836",
    title="Revisiting the Minimalist Approach to Offline Reinforcement Learning",
    parent="td3_bc",
)
def rebrac() -> ActorCritic:
    widths = (256, 256, 256)
    return td3_bc().replace(
        data=Transitions(batch_size=1024),
        policy=replace(DETERMINISTIC, hidden=widths),
        critic=Critics(hidden=widths, layer_norm=True),
        target=PenalizedTarget(),
        actor=MaximizeQ(critics="lowest"),
        behavior=Cloning(),
        update=Updates(actor_every=2, actor_lr=1e-3, critic_lr=1e-3),
    )
