"""TD3+BC: TD3 on a log, with one more term that keeps the actor near it.

    lambda   alpha / mean |Q_1(s, pi(s))|, without gradient
    actor    - lambda mean Q_1(s, pi(s)) + mean over B and A of (pi(s) - a)^2, every second update
    critic, targets: as td3

Differs from td3:  the actor's second term, and the scale of the first.
Limits:  alpha -> 0 is bc; alpha -> infinity is td3, whose Adam does not see the scale. Rewards times a number, and Q with them:
    the same loss.
Expects:  a log (--data). Observations are standardized by its mean and variance, in evaluation too. Where |Q| is large beside
    what Q differs by between actions (rewards of one sign, as Pendulum's), alpha = 2.5 leaves bc: raise behavior.alpha.
Source:  Fujimoto and Gu 2021 (arXiv:2106.06860), equations 3 to 5; sfujim/TD3_BC, TD3_BC.py.
Deviations:  standardized over sqrt(variance + 1e-8); theirs over deviation + 0.001.
Not this:  rebrac, which sums over A, takes the lower critic, and penalizes the target, too.
Claim:  above bc: reproduced in the study "offline" (medium-replay; normalized score, difference paired by seed): pendulum -5
    (+6.0 [+3.9, +8.7], 5 seeds); pointmaze 44 (+54.0 [+41.6, +61.3], 4 seeds); cheetah 31 (+26.0 [+2.8, +54.2], 3 seeds).
"""

from upslope.actor_critic.actors import ScaledCloning
from upslope.actor_critic.recipe import ActorCritic
from upslope.methods.offpolicy.td3 import td3
from upslope.registry import method


@method(paper="2106.06860", title="A Minimalist Approach to Offline Reinforcement Learning", parent="td3")
def td3_bc() -> ActorCritic:
    return td3().replace(behavior=ScaledCloning())
