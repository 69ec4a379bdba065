"""Card: rlvr_core.md, hapo."""

import numpy as np
import pytest
import torch

from upslope import Batch, make
from upslope.methods.rlvr.hapo import EntropyTemperature, HeterogeneousClip, TokenGroupBaseline
from upslope.parts.advantage import GroupBaseline
from upslope.testing import batch_of, finite_differences, value_and_gradient


def level_of(entropy, share=0.8, released=False):
    """h of entropies [n], in NumPy."""
    u = np.log(np.maximum(entropy, 1e-8))
    u = u - np.sort(u)[round(share * (len(u) - 1))]
    return np.where(u > 0, u / max(u.max(), 1e-8), u / max(-u.min(), 1e-8) * (-1 if released else 1))


def test_card_token_level_advantage():
    batch = batch_of([[1.0, 0.0]], lengths=[2, 6])
    made = make("hapo").advantage(batch)["advantage"]
    np.testing.assert_allclose(made, [1.73205, -0.57735], atol=5e-6)


def test_the_advantages_of_a_groups_tokens_sum_to_zero():
    batch = batch_of([[1, 0, 0.3, 1], [-1, 1]], seed=3)
    sums = batch.group_mean(make("hapo").advantage(batch)["advantage"] * batch.length)[0]
    np.testing.assert_allclose(sums, 0, atol=1e-12)


def test_a_group_with_a_large_advantage_takes_that_of_grpo():
    """One token against 99: 0.99 / 0.0995 = 9.95."""
    batch = batch_of([[1, 0], [1, 0]], lengths=[1, 99, 2, 6])
    made = TokenGroupBaseline()(batch)["advantage"]
    torch.testing.assert_close(made[:2], GroupBaseline()(batch)[:2])
    np.testing.assert_allclose(made[2:], [1.73205, -0.57735], atol=5e-6)
    np.testing.assert_allclose(TokenGroupBaseline(largest=10.0)(batch)["advantage"][0], 9.9498, atol=1e-3)


@pytest.mark.parametrize("low", ["negative", "positive"])
def test_h_lies_between_its_bounds_and_the_released_sign_is_wrong_below_the_quantile(low):
    batch = batch_of([[1, 0, 0, 1], [0, 1, 0]], seed=2)
    level = TokenGroupBaseline(low=low)(batch)["entropy_level"][batch.mask].numpy()
    np.testing.assert_allclose(level, level_of(batch.entropy[batch.mask].numpy(), released=low == "positive"))
    assert level.max() == 1
    assert level.min() == (-1 if low == "negative" else 0)


def one_token(ratio, level, advantage=1.0, **settings):
    """Loss and gradient of one token with that ratio, h and advantage."""
    logp = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    full = torch.ones_like(logp.detach())
    columns = {"old_logp": logp.detach() - np.log(ratio), "advantage": advantage * full, "entropy_level": level * full}
    batch = Batch(logp=logp, **columns)
    loss = HeterogeneousClip(**settings)(batch).sum()
    return float(loss.detach()), float(torch.autograd.grad(loss, logp)[0])


@pytest.mark.parametrize(
    ("ratio", "level", "advantage", "loss", "moves"),
    [
        (1.05, 0.5, 1, -1.05, True),  # high entropy, near: as it is
        (1.15, 0.5, 1, -1.15 * 1.5, True),  # high entropy, away: more
        (1.05, -0.6, 1, -1.05 * 0.4, True),  # low entropy, near: less
        (1.15, -0.6, 1, -1.15, True),  # low entropy, away: as it is
        (1.29, 0.5, 1, -1.29 * 1.5, True),  # the upper bound rises to 1.3
        (1.31, 0.5, 1, -1.3 * 1.5, False),
        (1.21, -0.5, 1, -1.2, False),  # the upper bound of low entropy stays
        (0.71, -0.5, -1, 0.71, True),  # the lower bound falls to 0.7
        (0.69, -0.5, -1, 0.7, False),
        (0.79, 0.5, -1, 0.8 * 1.5, False),  # the lower bound of high entropy stays
        (20, 0.5, -1, 10 * 1.5, False),  # dual clip
    ],
)
def test_redistribution_and_bounds_by_hand(ratio, level, advantage, loss, moves):
    value, gradient = one_token(ratio, level, advantage)
    assert value == pytest.approx(loss)
    assert gradient == pytest.approx(loss if moves else 0.0)


def test_the_zone_of_the_released_code_follows_the_adapted_bounds():
    assert one_token(1.12, 0.5)[0] == pytest.approx(-1.12 * 1.5)
    assert one_token(1.12, 0.5, adapted_zone=True)[0] == pytest.approx(-1.12)


def numpy_frozen(batch, released):
    """A', lower and upper bounds at the batch's own logp."""
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    h = np.zeros(mask.shape)
    h[mask] = level_of(batch.entropy.numpy()[mask], released=released)
    ratio = np.exp((batch.logp - batch.old_logp).numpy())
    low = 0.8 - 0.2 * np.where(h <= 0, -h, 0)
    high = 1.2 + 0.2 * np.where(h > 0, h, 0)
    ends = (1 - (1 - low) / 2, 1 + (high - 1) / 2) if released else (0.9, 1.1)
    near = (ratio >= ends[0]) & (ratio <= ends[1])
    advantage = np.zeros(mask.shape)
    for g in np.unique(group):
        tokens = np.repeat(reward[group == g], mask.sum(1)[group == g])
        advantage[group == g] = ((reward[group == g] - tokens.mean()) / (tokens.std() + 1e-6))[:, None]
    return np.where(np.where(h > 0, ~near, near), advantage * (1 + h), advantage), low, high


def numpy_loss(batch, logp, frozen):
    advantage, low, high = frozen
    ratio = np.exp(logp - batch.old_logp.numpy())
    loss = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, low, high))
    return np.where(advantage < 0, np.minimum(loss, -10 * advantage), loss)[batch.mask.numpy()].mean()


@pytest.mark.parametrize("name", ["hapo", "hapo@released"])
def test_value_and_gradient_off_policy(name):
    batch = batch_of([[1, -1, -1, 1], [1, -1, 1]], seed=5)
    batch = batch.replace(old_logp=batch.logp + 0.4 * (batch.ref_logp - batch.logp))
    recipe = make(name, reward=None)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    frozen = numpy_frozen(batch, name == "hapo@released")
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), frozen))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, frozen), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_without_differences_of_entropy_and_length_it_is_dapo():
    batch = batch_of([[1, 0, 0], [0, 1]], lengths=[3] * 5)
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy, entropy=torch.ones_like(batch.logp))
    ours, theirs = make("hapo"), make("dapo", ratio_high=1.2, dual=10.0, scale="population_std")
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_temperature_follows_the_entropies_of_the_step_before():
    part = EntropyTemperature(temperature=0.5)
    first = part.init()
    assert part.adapt(first) is None
    entropies = np.array([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    batch = Batch(logp=torch.zeros(2, 3), entropy=entropies.reshape(2, 3), reward=[0.0, 0.0])
    state = part.observe(batch, first)
    assert first == {}
    adapted = part.adapt(state)(torch.tensor(entropies))
    np.testing.assert_allclose(adapted, 0.5 * (1 + 0.05 * level_of(entropies)), rtol=1e-6)
    outside = part.adapt(state)(torch.tensor([0.0, 1e-3, 50.0]))
    np.testing.assert_allclose(outside, [0.475, 0.475, 0.525])
    later = part.observe(batch.replace(entropy=2 * batch.entropy), state)
    np.testing.assert_allclose(part.adapt(later)(torch.tensor(2 * entropies)), adapted, rtol=1e-6)


def test_the_released_temperature_rises_where_entropy_is_lowest():
    part = make("hapo@released").rollout
    state = part.observe(Batch(logp=torch.zeros(1, 5), entropy=[[0.1, 0.2, 0.3, 0.4, 0.8]], reward=[0.0]), part.init())
    np.testing.assert_allclose(part.adapt(state)(torch.tensor([0.1, 0.4, 0.8])), [1.05, 1.0, 1.05], atol=1e-6)


def test_greedy_sampling_is_not_adapted():
    assert EntropyTemperature(temperature=0.0).adapt({"quantile": 0.0, "above": 1.0, "below": 1.0}) is None


def test_defaults():
    recipe = make("hapo")
    assert (recipe.rollout.group_size, recipe.rollout.strength, recipe.update.minibatches) == (16, 0.05, 16)
    assert recipe.init() == {"rollout": {}}
