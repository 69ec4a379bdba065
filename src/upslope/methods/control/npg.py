"""NPG: a step in the direction that improves the policy most for a given change of its actions, not of its parameters.

    A       generalized advantages, lam = 0.97, normalised over what was played                             [N, S]
    g       gradient of the mean over transitions of A logp                                                 [P]
    F       mean over the states played of the Fisher matrix of pi(.|s), by products alone, + 0.1 I         [P, P]
    x       F x = g by 10 iterations of conjugate gradients                                                 [P]
    theta   theta + x sqrt(2 max_kl / (x F x)):  KL(old || new) = max_kl if KL were quadratic
    V       80 passes of Adam over its squared error, after the policy's step

Differs from a2c:  the step, along the natural gradient and by its KL; one for 4000 actions; a critic that is fitted apart; lam =
    0.97, normalised advantages; no entropy bonus.
Limits:  for a table of logits and the exact advantage x is A less its mean over actions, so that a step multiplies pi by exp(c A):
    multiplicative weights. The same to first order however the policy is parametrised. damping -> inf: the plain gradient.
Expects:  an environment, discrete or continuous; thousands of actions for each step, since F is estimated from them.
Source:  Kakade 2001; the step by KL and the numbers as in OpenAI's Spinning Up (trpo with algo="npg").
Deviations:  a time limit is no end: what was reached is worth V. Rollouts are 500 steps of 8 copies instead of 4000 of one.
Not this:  K-FAC's or the empirical Fisher matrix: F is the true one at the states played, over all actions.
"""

from upslope.methods.control.a2c import a2c
from upslope.parts.gae import GAE
from upslope.parts.natural import NaturalGradient
from upslope.parts.normalize import NormalizedAdvantage
from upslope.parts.steps import Steps, StepUpdate
from upslope.recipe import Recipe
from upslope.registry import method


@method(
    paper="Kakade 2001, Advances in Neural Information Processing Systems 14",
    title="A Natural Policy Gradient",
    parent="a2c",
)
def npg() -> Recipe:
    return a2c().replace(
        rollout=Steps(environments=8, steps=500),
        advantage=GAE(gamma=0.99, lam=0.97, whiten=False),
        control=NormalizedAdvantage(),
        regularizer=None,
        update=StepUpdate(minibatches=1, epochs=1, value_coefficient=None, critic_epochs=80),
        optimizer=NaturalGradient(max_kl=0.01, damping=0.1, iterations=10, critic_lr=1e-3),
    )
