"""HDPO: the gradient of the cost itself, through a simulator whose noise does not depend on what is done.

    xi      B traces of noise (demands), drawn once                                                        [N, S, W]
    a_t     pi(s_t), one action, no draw: softplus(network(s_t) + 1)                                       [N, A]
    s_t+1   f(s_t, a_t, xi_t), and the cost c(s_t, a_t, xi_t) = -r, both differentiable                    [N, D], [N]
    loss    mean over traces and periods of c; its gradient goes through every later state

Differs from reinforce:  no score function, no draws of actions, no returns and no baseline: the derivative of the simulated cost.
    Traces may be replayed under other parameters, so they are used in every step.
Limits:  the gradient is exact for the traces given: it equals finite differences of the same cost. One period: the newsvendor's
    derivative, the share of demands below the order.
Expects:  an environment of upslope.environments.dynamics without an `obstacle` (no fixed costs, no whole lots) and with continuous
    actions, such as upslope/Inventory-v0 and upslope/Warehouse-v0. Demand may be of whole units, orders may not.
Source:  Alvo, Russo, Kanoria 2023 (arXiv:2306.11246); the authors' code (MatiasAlvo/Neural_inventory_control), its settings for one
    store: three layers of 32, elu, Adam at 3e-3, 50 periods. Memory is in proportion to traces in a mini-batch times periods.
    Long traces: rollout.reach=K cuts them into pieces of K periods, begun from where the policy as it was comes to, and gradients
    end with a piece. 512 traces of 200 periods of the store, 512 updates at 1e-2 falling to 0 (2 seeds): 0.5 and 0.6 % above the
    optimum with K = 10, 0.4 and 1.9 % with 25, 11 and 17 % with whole traces, in 25 times the seconds. An order is felt after
    the lead time, so K has to be well above that.
Deviations:  1,024 traces in mini-batches of 32 instead of 32,768 in batches of 8,192 (hdpo@released): many more updates for
    as many simulated periods, and the gradient of few traces is good enough. The run ends after its steps instead of after
    500 epochs without a better held-out cost. The head sigmoid(x) times the stock upstream is the environment's: a warehouse
    with task_settings.allocation=sigmoid, whose shares are those of softplus(x + 1) here. Holding and penalty cost and lead
    time, which are the same for all traces, are no inputs of the network. The mean is not over stores, whose costs are
    added.
Claim:  near the optimum where that is known: reproduced, 0.2 to 0.6 % above it in five seeds of one backlogged store after 819k
    simulated periods, where after 410k HDPO is 1 to 4 % above, PPO 7 to 65 % and REINFORCE many times the cost
    (docs/results/inventory.md).
Not this:  gradients by a learned model of the environment; gradients of rewards with respect to drawn actions (SVG).
"""

from upslope.methods.rlvr.reinforce import reinforce
from upslope.parts.aggregate import TokenMean
from upslope.parts.network import MLP
from upslope.parts.steps import StepUpdate
from upslope.parts.traces import Pathwise, PathwiseCost, Traces
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(
    paper="2306.11246",
    title="Deep Reinforcement Learning for Inventory Networks: Toward Reliable Policy Optimization",
    parent="reinforce",
)
def hdpo() -> Recipe:
    return reinforce().replace(
        curriculum=None,
        policy=MLP(hidden=(32, 32, 32), activation="elu", weight_init="torch", distribution="softplus"),
        rollout=Traces(environments=1024, steps=50),
        advantage=None,
        surrogate=PathwiseCost(),
        aggregate=TokenMean(),
        update=StepUpdate(minibatches=32, transitions=False, value_coefficient=None),
        optimizer=Pathwise(lr=3e-3, eps=1e-8, grad_clip=float("inf")),
    )


@preset("released", version="MatiasAlvo/Neural_inventory_control, vanilla_one_store")
def hdpo_released() -> Recipe:
    return hdpo().replace(
        rollout=Traces(environments=32768, steps=50),
        update=StepUpdate(minibatches=4, transitions=False, value_coefficient=None),
    )
