"""Demonstration-regularized RL: clone the demonstrations, then maximize the reward less a KL divergence from the clone.

    R_i   reward_i - beta * sum over tokens of (old_logp - ref_logp), ref the clone                        [R]
    A_i   R_i - mean of R over the other completions of the prompt                                         [R]
    loss  mean over sequences of -A_i * sum over tokens of logp

Differs from rloo:  the reference is the clone; beta, which the number of demonstrations sets: the more there are, the
    larger.
Limits:  its optimum is clone * exp(Q / beta - V / beta) in every state, by the backup V = beta log sum over a of clone(a)
    exp(Q(a) / beta), which the test solves on a tree of states: the gradient there is 0. beta to 0 is greedy, beta to
    infinity the clone.
Expects:  --model the clone: a model that sft has trained on the demonstrations. Otherwise as rloo.
Source:  Tiapkin et al. 2023 (arXiv:2310.17303): the objective, and a beta of the order of the accuracy times the number
    of demonstrations; beta = 0.1 is ours. No code was found.
Deviations:  the paper plans in a tabular or linear MDP with optimistic bonuses (UCBVI) and proves how many episodes it
    takes; this climbs the same objective by policy gradient, without bonuses, and none of the guarantees carry over.
Not this:  a likelihood term in the loss: demonstrations act through the reference alone.
"""

from upslope.methods.rlvr.rloo import rloo
from upslope.parts.kl import KLInReward
from upslope.recipe import Recipe
from upslope.registry import method


@method(paper="2310.17303", title="Demonstration-Regularized RL", parent="rloo")
def demo_regularized_rl() -> Recipe:
    return rloo().replace(reward=KLInReward(beta=0.1, level="sequence"))
