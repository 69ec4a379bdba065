"""Card: rlvr_core.md, empg."""

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient

TURNS = [
    [0, 0, 1, 2, 2],
    [0, 1, 1, 0, 0],
    [0, 0, 0, 0, 0],
    [3, 3, 5, 5, 6],
    [0, 1, 0, 0, 0],
    [0, 1, 2, 3, 4],
    [0, 0, 0, 0, 0],
]
LENGTHS = [5, 3, 4, 5, 2, 5, 1]


def agent_batch():
    batch = batch_of([[1, 0, 0, 1], [0, 1, 0.3]], lengths=LENGTHS, seed=3, turn=TURNS)
    return batch.replace(old_logp=batch.logp + 0.3 * (batch.value - 0.2))


def advantage(batch, **settings):
    recipe = make("empg", **settings)
    return recipe.credit(batch, {})[0].advantage


def card_batch():
    """One successful trajectory with A = 1: the group's other has the reward -2 and no tokens."""
    entropy = [[0.1, 0.3, 0.6, 0.6, 1.0, 1.0], [0.0] * 6]
    mask = [[True] * 6, [False] * 6]
    return batch_of([[0, -2]], lengths=[6, 6], turn=[[0, 0, 1, 1, 2, 2]] * 2, entropy=entropy, mask=mask)


def test_card_numbers():
    batch = card_batch()
    part = make("empg").advantage
    assert (part.k, part.k_future, part.zeta) == (1.0, 1.0, 0.1)
    found = advantage(batch, scale=None)[0, ::2]
    np.testing.assert_allclose(found, [0.54761, -0.07411, -0.47351], atol=1e-5)
    scaled = advantage(batch, scale=None, zeta=0.0)[0, ::2]
    np.testing.assert_allclose(scaled, np.array([1.51944, 0.92159, 0.55897]) - 1, atol=5e-6)
    assert not advantage(batch, scale=None)[1].any()


def numpy_advantage(batch, k, k_future, zeta):
    reward, group, mask, entropy, turn = (
        getattr(batch, name).numpy() for name in ("reward", "group", "mask", "entropy", "turn")
    )
    steps = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        for s in sorted(set(turn[i][mask[i]])):
            steps.append((i, (turn[i] == s) & mask[i], a))
    h = np.array([entropy[i][where].mean() for i, where, _ in steps])
    h = (h - h.min()) / (h.max() - h.min() + 1e-8)
    g = np.exp(-k * h) / np.exp(-k * h).mean()
    values = []
    for n, (i, _, a) in enumerate(steps):
        following = n + 1 < len(steps) and steps[n + 1][0] == i
        values.append(a * g[n] + (zeta * np.exp(-k_future * h[n + 1]) if following else 0))
    found = np.zeros(mask.shape)
    for value, (i, where, _) in zip(values, steps, strict=True):
        found[i][where] = value - np.mean(values)
    return found


def test_value_and_gradient_off_policy():
    batch = agent_batch()
    expected = numpy_advantage(batch, 0.7, 1.5, 0.2)
    recipe = make("empg", k=0.7, k_future=1.5, zeta=0.2)
    prepared = recipe.prepare(batch)
    np.testing.assert_allclose(prepared.advantage, expected, atol=1e-9)

    def numpy_loss(logp):
        mask, per = batch.mask.numpy(), []
        for i in range(len(mask)):
            ratio = np.exp((logp - batch.old_logp.numpy())[i][mask[i]])
            gap = (batch.ref_logp.numpy() - logp)[i][mask[i]]
            clipped = np.maximum(-expected[i][mask[i]] * ratio, -expected[i][mask[i]] * np.clip(ratio, 0.8, 1.2))
            per.append((clipped + 0.04 * (np.exp(gap) - gap - 1)).mean())
        return np.mean(per)

    loss, gradient = value_and_gradient(recipe, prepared)
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    numeric = finite_differences(numpy_loss, batch.logp.numpy())
    np.testing.assert_allclose(gradient, numeric * batch.mask.numpy(), atol=1e-8)


def test_without_modulation_it_is_grpos_advantage_minus_its_mean_over_steps():
    batch = agent_batch()
    plain = make("grpo").credit(batch, {})[0].advantage
    steps = [float(plain[i, 0]) for i, row in enumerate(TURNS) for _ in set(row[: LENGTHS[i]])]
    expected = torch.where(batch.mask, plain - np.mean(steps), 0.0)
    torch.testing.assert_close(advantage(batch, k=0.0, zeta=0.0), expected)


def test_the_mean_of_the_scale_is_one_and_a_longer_step_counts_once():
    """With A = 1 what is left is g - 1, and the logarithms of g span k."""
    batch = agent_batch().replace(reward=torch.ones(7, dtype=torch.float64), group=torch.arange(7))
    found = advantage(batch, k=0.8, zeta=0.0, lone="reward", scale=None)
    scale = [float(found[i, row.index(s)]) + 1 for i, row in enumerate(TURNS) for s in sorted(set(row[: LENGTHS[i]]))]
    assert np.mean(scale) == pytest.approx(1, abs=1e-12)
    assert np.ptp(np.log(scale)) == pytest.approx(0.8, abs=1e-6)


def test_a_confident_step_moves_more_whatever_the_outcome():
    for reward, sign in (([[0, -2]], 1), ([[-2, 0]], -1)):
        batch = card_batch().replace(reward=torch.tensor(reward[0], dtype=torch.float64))
        found = sign * (advantage(batch, scale=None, zeta=0.0)[0, ::2] + sign)
        assert found[0] > found[1] > found[2] > 0


def test_rows_of_one_trajectory_are_its_steps():
    """An episode in one row, and the same with a row per turn."""
    whole = batch_of([[0, -2]], lengths=[4, 4], turn=[[0, 0, 1, 1]] * 2)
    split = batch_of([[0, 0, -2, -2]], lengths=[2] * 4, turn=[[0, 0], [1, 1]] * 2, trajectory=[0, 0, 1, 1])
    split = split.replace(entropy=whole.entropy.view(4, 2))
    torch.testing.assert_close(advantage(split, scale=None).view(2, 4), advantage(whole, scale=None))


def test_on_dapos_parts():
    recipe = make("dapo", advantage="empg", max_length=5, cache=2)
    assert recipe.prepare(agent_batch()).advantage.any()
