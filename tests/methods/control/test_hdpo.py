"""Card: control_theory.md, hdpo. The environments: tests/environments/test_inventory.py."""

import numpy as np
import pytest
import torch

from upslope import Batch, Trainer, UsageError, make
from upslope.control.pathwise import mode_of, simulate
from upslope.environments.inventory import StoreDynamics, WarehouseDynamics
from upslope.exact.stock import average_cost
from upslope.parts.network import MLP
from upslope.parts.traces import PathwiseCost, Traces
from upslope.policies.control import ControlPolicy
from upslope.tasks.spaces import ActionSpec, ObservationSpec
from upslope.testing import check_resume

SMALL = {"eval": {"episodes": 3}, "threads": 1, "rollout.environments": 16, "minibatches": 2, "rollout.steps": 10}


def traces_of(dynamics, count, steps, seed=0):
    generator = np.random.default_rng(seed)
    start = np.stack([dynamics.start(generator) for _ in range(count)])
    noise = np.stack([dynamics.noise(generator, steps) for _ in range(count)])
    return torch.from_numpy(start).double(), torch.from_numpy(noise).double()


def base_stock(level):
    return lambda state: (level - state.sum(-1, keepdim=True)).clamp(min=0)


def test_defaults():
    recipe = make("hdpo")
    assert recipe.policy == MLP(
        hidden=(32, 32, 32), activation="elu", weight_init="torch", distribution="softplus", policy_gain=0.01
    )
    assert (recipe.optimizer.lr, recipe.optimizer.kind, recipe.rollout.steps) == (3e-3, "adam", 50)
    released = make("hdpo@released")
    assert (released.rollout.environments, released.update.minibatches) == (32768, 4)


def test_loss_is_the_mean_cost():
    cost = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 3, [True, True, False]])
    batch = Batch(logp=torch.zeros(2, 3, dtype=torch.float64), mask=mask, cost=cost)
    recipe = make("hdpo")
    loss, stats = recipe(batch)
    assert float(loss.detach()) == pytest.approx(15 / 5)
    assert float(stats["cost"]) == pytest.approx(3.0)
    (gradient,) = torch.autograd.grad(loss, cost)
    np.testing.assert_allclose(gradient, mask / 5.0)
    assert PathwiseCost()(batch) is batch.cost


@pytest.mark.parametrize("lost", [False, True])
def test_pathwise_derivative_by_the_base_stock_level_is_the_finite_difference(lost):
    dynamics = StoreDynamics(lost_sales=lost)
    start, noise = traces_of(dynamics, 64, 50)

    def cost(level):
        return -simulate(dynamics, base_stock(level), start, noise).reward.mean()

    for level in (26.3, 29.585, 33.1):
        at = torch.tensor(level, dtype=torch.float64, requires_grad=True)
        (derivative,) = torch.autograd.grad(cost(at), at)
        step = 1e-6  # the cost is piecewise linear, and between two kinks exactly so
        above, below = (cost(torch.tensor(level + sign * step, dtype=torch.float64)) for sign in (1, -1))
        expected = (above - below) / (2 * step)
        assert float(derivative) == pytest.approx(float(expected), abs=1e-6)
        assert abs(float(derivative)) > 1e-3


def test_one_period_is_the_newsvendor():
    """dc/dS = (h + p) P(D <= S) - p where nothing is on hand."""
    dynamics = StoreDynamics(lead_time=0)
    _, noise = traces_of(dynamics, 2000, 1)
    level = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    cost = -simulate(dynamics, lambda state: level.expand(len(state), 1), torch.zeros(2000, 1).double(), noise).reward
    (derivative,) = torch.autograd.grad(cost.mean(), level)
    assert float(derivative) == pytest.approx(10 * float((noise < 6.0).double().mean()) - 9)


@pytest.mark.parametrize(
    "dynamics",
    [
        StoreDynamics(lost_sales=True),
        WarehouseDynamics(),
        WarehouseDynamics(allocation="softmax"),
        WarehouseDynamics(allocation="sigmoid"),
    ],
)
def test_gradient_of_a_network_is_the_finite_difference(dynamics):
    torch.manual_seed(0)
    seen, done = ObservationSpec.of(dynamics.observation_space), ActionSpec.of(dynamics.action_space)
    settings = MLP(hidden=(8,), activation="elu", weight_init="torch", distribution="softplus", policy_gain=1.0)
    policy = ControlPolicy(seen, done, settings).double()
    with torch.no_grad():
        policy.head.bias += 3.0  # so that stock lies in all places
    start, noise = traces_of(dynamics, 32, 12)

    def cost():
        return -simulate(dynamics, mode_of(policy), start, noise).reward.mean()

    weight = policy.body.layers[0].weight
    (gradient,) = torch.autograd.grad(cost(), weight)
    assert gradient.abs().min() > 0
    step = 1e-6
    for index in [(0, 0), (3, 1), (7, seen.size - 1)]:
        found = []
        for moved in (step, -step):
            with torch.no_grad():
                weight[index] += moved
                found.append(float(cost()))
                weight[index] -= moved
        assert (found[0] - found[1]) / (2 * step) == pytest.approx(float(gradient[index]), rel=1e-3, abs=1e-6)


class Gated:
    """Plays a network from given states, and cuts the gradient to every `reach`-th of them: written out, step by step."""

    def __init__(self, dynamics, policy, reach):
        self.dynamics, self.policy, self.reach = dynamics, policy, reach

    def cost(self, start, noise):
        state, total = start, 0.0
        for t in range(noise.shape[1]):
            state = state.detach() if t % self.reach == 0 else state
            state, reward = self.dynamics.step(state, mode_of(self.policy)(state), noise[:, t])
            total = total - reward.sum()
        return total / noise.shape[:2].numel()


@pytest.mark.parametrize("reach", [None, 10, 5])
def test_pieces_have_the_gradient_of_traces_that_is_cut_between_them(reach):
    settings = {
        **SMALL,
        "task": "upslope/Inventory-v0",
        "steps": 1,
        "minibatches": 1,
        "lr": 0.0,
        "rollout.reach": reach,
    }
    settings["task_settings"] = {"lead_time": 2}
    with Trainer("hdpo", **settings) as trainer:
        agent = trainer.parts
        agent.environments.rewind()
        start, noise = agent.environments.traces(10)
        loss = Gated(agent.environments.dynamics, agent.policy, reach or 10).cost(start, noise)
        found = torch.autograd.grad(loss, list(agent.policy.parameters()), allow_unused=True)
        agent.environments.rewind()
        trainer.train()
        row = trainer.rows[-1]
        norm = sum(float(g.square().sum()) for g in found if g is not None) ** 0.5
        assert row["cost"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert (norm > 1e-3, row["env_steps"]) == (True, 160)


def test_pieces_fill_the_trace():
    for reach in (0, 3, 100):
        with pytest.raises(UsageError, match=rf"Traces\.reach is {reach}; it must be at least 1 and divide steps=50"):
            Traces(reach=reach)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.parts.policy.state_dict().items()}


@pytest.mark.parametrize("changed", [{}, {"rollout.fresh": True, "normalize": True}, {"rollout.reach": 5}])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(changed, tmp_path):
    settings = {**SMALL, **changed, "task": "upslope/Inventory-v0", "steps": 4, "checkpoint_every": 2}
    check_resume("hdpo", tmp_path, killed=3, **settings)


def test_the_logged_cost_is_that_of_the_environment():
    """One step at a rate of 0: what is learned from is what the environment itself pays on the same episodes."""
    settings = {**SMALL, "task": "upslope/Warehouse-v0", "steps": 1, "lr": 0.0}
    with Trainer("hdpo", **settings) as trainer:
        trainer.train()
        row, agent = trainer.rows[-1], trainer.parts
        assert row["cost"] == pytest.approx(-row["reward"], rel=1e-5)
        assert row["return"] == pytest.approx(10 * row["reward"], rel=1e-5)
        assert (row["env_steps"], row["grad_norm"] > 0) == (160, True)
        agent.environments.rewind()
        seen, total = agent.environments.reset(), 0.0
        for _ in range(10):
            step = agent.environments.step(agent.policy.act(seen, deterministic=True)[0])
            seen, total = step.observation, total + step.reward.mean()
        assert total == pytest.approx(row["return"], rel=1e-4)


@pytest.mark.parametrize(
    ("task", "changed", "message"),
    [
        ("Pendulum-v1", {}, "dynamics are not known"),
        ("upslope/LotSizing-v0", {}, "discrete actions.*lot=0"),
        ("upslope/Inventory-v0", {"task_settings": {"fixed_cost": 5.0}}, "fixed_cost=5 has no gradient"),
        ("upslope/Inventory-v0", {"rollout": "ppo"}, "reads cost, which playing in an environment"),
        ("upslope/Inventory-v0", {"update.transitions": True}, "transitions=false"),
        ("upslope/Inventory-v0", {"policy.distribution": "squashed"}, "must be softplus or gaussian"),
        ("upslope/Inventory-v0", {"rollout.reach": 2}, "no action changes what is earned within the 2 steps"),
        ("upslope/Inventory-v0", {"rollout.reach": 1}, "within the 1 steps .* raise rollout.reach"),
        ("upslope/Inventory-v0", {"rollout.steps": 4}, "within the 4 steps .* or rollout.steps"),
    ],
)
def test_what_has_no_pathwise_gradient_is_refused(task, changed, message):
    with pytest.raises(UsageError, match=message):
        Trainer("hdpo", task=task, steps=1, **(changed if "rollout" in changed else {**SMALL, **changed})).train()


def test_policies_of_one_action_learn_through_a_cost_alone():
    with pytest.raises(UsageError, match="a policy of one action does not have"):
        Trainer("ppo@continuous", task="upslope/Inventory-v0", steps=1, **{"policy.distribution": "softplus"})


def test_traces_need_something_to_play():
    with pytest.raises(UsageError, match=r"Traces\.steps is 0"):
        Traces(steps=0)


@pytest.mark.learning
def test_within_one_percent_of_the_known_optimum():
    """Backlogged, one store: 6.27882 per period; both policies on the same demand, so that its noise falls out."""
    settings = {
        "rollout.environments": 512,
        "minibatches": 32,
        "schedule": "cosine",
        "lr": 1e-2,
        "eval": {"episodes": 0},
    }
    dynamics = StoreDynamics()
    start, noise = (column.float() for column in traces_of(dynamics, 2048, 100, seed=1))
    with Trainer("hdpo", task="upslope/Inventory-v0", steps=32, threads=1, **settings) as trainer:
        trainer.train()
        with torch.no_grad():
            ours = simulate(dynamics, mode_of(trainer.parts.policy), start, noise)
            best = simulate(dynamics, base_stock(29.5850), start, noise)
    cost, optimum = (-float(path.reward[:, 30:].mean()) for path in (ours, best))
    assert optimum == pytest.approx(6.27882, rel=0.02)
    assert cost / optimum < 1.01


@pytest.mark.learning
def test_lost_sales_near_the_optimum_of_dynamic_programming():
    store = {"lead_time": 1, "lost_sales": True, "demand": "poisson"}
    settings = {
        "rollout.environments": 512,
        "minibatches": 32,
        "schedule": "cosine",
        "lr": 1e-2,
        "eval": {"episodes": 0},
    }
    dynamics = StoreDynamics(**store)
    start, noise = (column.float() for column in traces_of(dynamics, 4096, 130, seed=1))
    with Trainer("hdpo", task="upslope/Inventory-v0", task_settings=store, steps=16, threads=1, **settings) as trainer:
        trainer.train()
        with torch.no_grad():
            ours = simulate(dynamics, mode_of(trainer.parts.policy), start, noise)
    cost, least = -float(ours.reward[:, 30:].mean()), average_cost(dynamics)
    assert 0.99 < cost / least < 1.02  # the demand's own noise is half a per cent
