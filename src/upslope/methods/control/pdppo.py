"""PDPPO: PPO with a second critic, of the state after the action and before anything is drawn; the smaller value counts.

    s^x     f(s, a), the post-decision state: what of the next state is known once the action is            [R, T, P]
    G       sum over s >= t of gamma^(s-t) r_s within the episode, less the batch's mean, over (std + 1e-7)  [R, T]
    A       G - min(V(s), V^x(s^x)) = max(G - V, G - V^x), of the critics before the update                  [R, T]
    loss    mean over transitions of max(-A r, -A clip(r, 0.8, 1.2)) - 0.012 entropy
            + mean of (min(V, V^x) - G)^2 / 2, in one optimizer step; V and V^x have networks of their own

Differs from ppo:  the second critic; whole episodes and their returns, normalised, instead of generalized advantages; 60 steps on
    the whole batch; advantages are not normalised; the entropy's 0.012; weight decay 1e-3; clip of the gradient at 1.
Limits:  V^x = V everywhere, or advantage.critics=critic.critics=state: PPO with the return as the advantage's first term and V as
    its baseline. V^x of (s, a) itself is Q: with both critics exact, the mean of A given a is max(0, Q - V) >= 0, so the policy
    learns of actions that are better than V and of the rest nothing; advantages are biased upward.
Expects:  an environment with post_decision(observations, actions), and episodes that end. V^x depends on the action, so it is
    no baseline in the sense that leaves the gradient's expectation alone.
Source:  2504.05150; the authors' code (leokan92/pdppo, Lot-sizing/agents/PDPPO.py and PDPPOAgent.py), 4,000 actions for an update.
Deviations:  one learning rate, 1e-3, for all networks; theirs is 5.5e-4 for the actor. In their code Adam is given the actor's last
    layer only where actions are discrete, so that the layers below stay as they were drawn; here all layers learn. Weight decay is
    AdamW's. Their FrozenLake script chooses actions with the critic of states where that of post-decision states is meant.
Claim:  up to twice PPO's best reward, faster and steadier: not reproduced. In lot sizing with one item the same recipe
    with V alone earns more, and ppo no less; on FrozenLake ppo does, over five seeds (docs/results/inventory.md).
Not this:  a critic of post-decision states alone (advantage.critics=critic.critics=post_decision), which the paper compares with.
"""

from upslope.methods.control.ppo import ppo
from upslope.parts.network import MLP
from upslope.parts.post_decision import DualOptimizer, LesserValue, PostDecisionAdvantage, PostDecisionEpisodes
from upslope.parts.steps import StepUpdate
from upslope.parts.surrogate import EntropyLoss
from upslope.recipe import Recipe
from upslope.registry import method


@method(
    paper="2504.05150",
    title="A Reinforcement Learning Method for Environments with Stochastic Variables: Post-Decision Proximal Policy Optimization "
    "with Dual Critic Networks",
    parent="ppo",
)
def pdppo() -> Recipe:
    return ppo().replace(
        policy=MLP(hidden=(128, 128), activation="tanh"),
        rollout=PostDecisionEpisodes(episodes=80, environments=16),
        critic=LesserValue(),
        advantage=PostDecisionAdvantage(gamma=0.99),
        control=None,
        regularizer=EntropyLoss(coefficient=0.012),
        update=StepUpdate(minibatches=1, epochs=60, value_coefficient=1.0),
        optimizer=DualOptimizer(lr=1e-3, eps=1e-8, weight_decay=1e-3, grad_clip=1.0),
    )
