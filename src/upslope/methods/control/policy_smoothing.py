"""Policy smoothing: PPO on noisy observations, so that `upslope certify` can say what it earns under any attack on them.

    seen    o_t + e_t, e_t ~ N(0, sigma^2 I), fresh at every step, in training and afterwards; the environment's state has none
    attack  delta_t added to o_t, chosen knowing all but the noise to come, sqrt(sum over the episode of |delta_t|^2) <= B
    P(R >= r) >= Phi(Phi^-1(p) - B / sigma),  p a lower confidence bound of P(R >= r) without an attack
    E[R]      >= v_0 + sum over i of (v_i - v_(i-1)) Phi(Phi^-1(S_i) - B / sigma),  S_i the same of P(R >= v_i), together

Differs from ppo:  the noise alone, rollout.observation_noise=0.2. Any control method takes it, and `upslope certify` any run.
Limits:  sigma = 0 is ppo, and certifies nothing. B = 0 gives the confidence bounds back. The bounds fall in B, and for the same p
    rise in sigma; but a policy that sees less earns less.
Expects:  an environment whose observations mean something at a scale of sigma: the noise is on the numbers as the environment gives
    them, before they are normalised, and so is B. One-hot numbers get it, too.
Source:  Kumar, Levine, Feizi 2022 (arXiv:2106.11420), theorem 1 and section 4; the certificate functions as in NeuralSec's
    camp-robust-rl (cert.py), which follows the authors'.
Deviations:  PPO where the authors trained DQN. Integer returns: Clopper-Pearson at alpha / M for each of the M whole numbers
    that the time limit allows; others: the DKW band at the returns seen.
Not this:  adversarial training; a certificate of the likeliest action without noise; bounds per step (CROP, arXiv:2106.09292).
Claim:  no attack goes below the certificate, which is not vacuous: reproduced in the study "certificate" (CartPole-v1 of 200 steps,
    one run for each noise): sigma = 0.2 certifies 155.1 at B = sigma and 116.9 at 2 sigma, where the strongest of eight attacks
    leaves 172.0 and 158.4 of 183.3; of 80 means of 1,000 attacked episodes none is below its bound.
"""

from upslope.methods.control.ppo import ppo
from upslope.parts.steps import Steps
from upslope.recipe import Recipe
from upslope.registry import method


@method(paper="2106.11420", title="Policy Smoothing for Provably Robust Reinforcement Learning", parent="ppo")
def policy_smoothing() -> Recipe:
    return ppo().replace(rollout=Steps(environments=4, steps=128, observation_noise=0.2))
