"""RLPD: online learning from a log as well, by halves.

    batch    128 transitions of the log, 128 of those played
    Q_i      ten critics, each hidden layer: linear, layer normalisation, ReLU                                  Q [10, B]
    y        r + gamma (1 - d) (min over 2 random i of Q'_i(s', a') - alpha log pi(a'|s'))                            [B]
    actor    mean of alpha log pi(a|s) - (1 / 10) sum Q_i(s, a), after 20 critic updates

Differs from redq:  half of every batch from the log; layer normalisation in the critics.
Limits:  without a log it is redq with layer normalisation. |Q| <= |w| sqrt(width) whatever the input, w the last layer's.
Expects:  a log (--data) and an environment (--task) to play in from the first step: rollout.offline_steps is 0. The first
    rollout.warmup actions are uniform, and nothing is learned before them.
Source:  Ball et al. 2023 (arXiv:2302.02948), algorithm 1; ikostrikov/rlpd, rlpd/agents/sac_learner.py.
Deviations:  5,000 uniform actions first, theirs 5,000 to 10,000 by task. The target entropy is -A (theirs -A / 2:
    temperature.target). Sparse tasks: target.entropy=False; AntMaze: one critic in the target, ensemble.of=1.
Not this:  the log poured into the replay buffer, which is data.log_share=None.
"""

from upslope.actor_critic.critics import Critics
from upslope.actor_critic.data import Interact, Transitions
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offpolicy.redq import redq
from upslope.registry import method


@method(paper="2302.02948", title="Efficient Online Reinforcement Learning with Offline Data", parent="redq")
def rlpd() -> ActorCritic:
    return redq().replace(
        rollout=Interact(warmup=5000, offline_steps=0),
        data=Transitions(log_share=0.5),
        critic=Critics(members=10, layer_norm=True),
    )
