"""Card: control_theory.md, pdppo. Post-decision states of the environments: tests/environments/test_inventory.py."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from upslope import Batch, Trainer, UsageError, make
from upslope.control.post_decision import DualCritic, post_states
from upslope.parts.post_decision import LesserValue, PostDecisionAdvantage
from upslope.tasks.opening import open_environments
from upslope.testing import check_resume, value_and_gradient

SMALL = {
    "eval": {"episodes": 3},
    "threads": 1,
    "rollout.episodes": 6,
    "rollout.environments": 3,
    "epochs": 3,
    "hidden": [16],
}


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_defaults():
    recipe = make("pdppo")
    assert (recipe.update.epochs, recipe.update.minibatches, recipe.update.value_coefficient) == (60, 1, 1.0)
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high, recipe.regularizer.coefficient) == (
        0.8,
        1.2,
        0.012,
    )
    assert (recipe.optimizer.weight_decay, recipe.optimizer.grad_clip) == (1e-3, 1.0)
    assert (recipe.advantage.gamma, recipe.advantage.eps, recipe.control) == (0.99, 1e-7, None)


def test_advantage_of_the_card():
    """G = 1, V = .2, V^x = .7: A = .8, the larger of .8 and .3. Here G is 1 after its normalisation: of returns (3, 1)."""
    batch = Batch(
        logp=f64([[0.0], [0.0]]),
        reward=f64([3.0, 1.0]),
        old_value=f64([[0.2], [0.0]]),
        old_post_value=f64([[0.7], [-0.1]]),
    )
    found = PostDecisionAdvantage(eps=0.0)(batch)
    scaled = 1 / np.sqrt(2)  # (3 - 2) / std with n - 1
    np.testing.assert_allclose(found["returns"][:, 0], [scaled, -scaled])
    np.testing.assert_allclose(found["advantage"][:, 0], [scaled - 0.2, -scaled + 0.1])
    np.testing.assert_allclose(float(found["advantage"][0]) + 1 - scaled, 0.8)


def test_advantage_and_loss_by_numpy():
    generator = np.random.default_rng(0)
    rewards, value, post = (generator.normal(size=(3, 5)) for _ in range(3))
    mask = np.arange(5) < np.array([[5], [3], [4]])
    rewards = rewards * mask
    returns = np.zeros((3, 6))
    for t in reversed(range(5)):
        returns[:, t] = rewards[:, t] + 0.9 * returns[:, t + 1]
    kept = returns[:, :5][mask]
    expected = (kept - kept.mean()) / (kept.std(ddof=1) + 1e-7)
    columns = {"old_value": f64(value), "old_post_value": f64(post), "token_reward": f64(rewards)}
    batch = Batch(logp=torch.zeros(3, 5).double(), mask=torch.tensor(mask), reward=f64(rewards.sum(1)), **columns)
    found = PostDecisionAdvantage(gamma=0.9)(batch)
    np.testing.assert_allclose(found["returns"].numpy()[mask], expected)
    np.testing.assert_allclose(
        found["advantage"].numpy()[mask], np.maximum(expected - value[mask], expected - post[mask])
    )
    v, x = f64(value).requires_grad_(), f64(post).requires_grad_()
    rows = batch.replace(value=v, post_value=x, returns=found["returns"])
    loss = LesserValue()(rows)[rows.mask].mean()
    np.testing.assert_allclose(loss.detach(), 0.5 * ((np.minimum(value, post)[mask] - expected) ** 2).mean())
    to_v, to_x = torch.autograd.grad(loss, [v, x])
    slope = np.zeros((3, 5))
    slope[mask] = (np.minimum(value, post)[mask] - expected) / mask.sum()
    np.testing.assert_allclose(to_v, slope * (value < post), atol=1e-12)  # of each transition the smaller one alone
    np.testing.assert_allclose(to_x, slope * (post < value), atol=1e-12)


@pytest.mark.parametrize("changed", [{}, {"critics": "state"}])
def test_equal_critics_are_ppo_with_a_baseline_on_returns(changed):
    generator = np.random.default_rng(1)
    value = f64(generator.normal(size=(4, 3)))
    post = value if not changed else f64(generator.normal(size=(4, 3)))
    logp = f64(generator.normal(size=(4, 3)))
    batch = Batch(
        logp=logp, old_logp=logp - 0.3, entropy=logp, reward=f64(generator.normal(size=4)), old_value=value,
        old_post_value=post,
    )  # fmt: skip
    recipe = make("pdppo", **{f"advantage.{key}": setting for key, setting in changed.items()})
    prepared = recipe.prepare(batch)
    plain = make("ppo", control=None, **{"regularizer.coefficient": 0.012})
    by_hand = plain.denominators(batch.replace(advantage=prepared.returns - value))
    for ours, theirs in zip(value_and_gradient(recipe, prepared), value_and_gradient(plain, by_hand), strict=True):
        torch.testing.assert_close(ours, theirs)


def weights(trainer):
    return {
        **trainer.parts.policy.state_dict(),
        **{f"critic.{k}": v for k, v in trainer.parts.critic.state_dict().items()},
    }


@pytest.mark.parametrize(
    ("task", "changed"),
    [("upslope/LotSizing-v0", {}), ("upslope/FrozenLake-v0", {"minibatches": 2, "normalize": True})],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(task, changed, tmp_path):
    settings = {**SMALL, **changed, "task": task, "steps": 4, "checkpoint_every": 2}
    runs = check_resume("pdppo", tmp_path, killed=3, **settings)
    one, other = map(weights, runs)
    assert "critic.post_head.weight" in one
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_both_critics_and_the_policy_learn():
    with Trainer("pdppo", task="upslope/FrozenLake-v0", steps=1, **SMALL) as trainer:
        before = {name: value.clone() for name, value in weights(trainer).items()}
        trainer.train()
        after = weights(trainer)
    assert [name for name, value in before.items() if torch.equal(value, after[name])] == []


def test_post_decision_states_are_those_of_what_was_played():
    with Trainer("pdppo", task="upslope/LotSizing-v0", steps=1, **SMALL) as trainer:
        found = trainer.parts.player.play(torch.Generator().manual_seed(0))
        expected = found.played.observation[..., 0] + found.played.action
        torch.testing.assert_close(found.batch.post_state[..., 0], expected)
        critic = trainer.parts.critic
        assert isinstance(critic, DualCritic)
        assert critic.alike
        torch.testing.assert_close(found.batch.old_post_value, critic.post(found.batch.post_state).detach())
    inventory = open_environments("upslope/Inventory-v0", 2, 0)
    seen = np.arange(8, dtype=np.float32).reshape(2, 4)
    reached = post_states(inventory, seen, np.array([[3.0], [-1.0]], dtype=np.float32))
    assert reached[:, 4].tolist() == [3.0, 0.0]  # orders are cut to the box, as when they are played
    np.testing.assert_array_equal(reached[:, :4], seen)


class Ragged(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(2, dtype=np.float32), 0.0, True, False, {}

    def post_decision(self, observations, actions):
        return np.zeros(len(observations))


def test_environments_without_post_decision_states_are_refused():
    with pytest.raises(UsageError, match=r"CartPole-v1 does not tell the state between.*post_decision"):
        Trainer("pdppo", task="CartPole-v1", steps=1, **SMALL)
    with pytest.raises(UsageError, match=r"post_decision gave shape \[1\] for 1 observations"):
        Trainer("pdppo", task=Ragged, steps=1, **SMALL)
    with pytest.raises(UsageError, match="Set value_coefficient=1"):
        Trainer("pdppo", task="upslope/LotSizing-v0", steps=1, value_coefficient=None, **SMALL)
