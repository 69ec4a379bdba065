"""Card: rlvr_core.md, topr."""

import math

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.exact import ExactLab
from upslope.parts.aggregate import SequenceMean, SequenceSum
from upslope.testing import batch_of, finite_differences, value_and_gradient

INF = math.inf
LAB = ExactLab(2, 3, eos=0, seed=2, reward=lambda tokens: float(sum(tokens) == 2))
SIGNED = {"reward": 2 * LAB.rewards - 1}
OLD = LAB.theta + 0.7 * torch.randn(LAB.theta.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def off_policy():
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1], [1, 0]], seed=5)
    return batch.replace(old_logp=batch.logp + 0.6 * (batch.entropy - 0.8))


def numpy_weights(batch, level, positive=(1, 1), negative=(0, 1), baseline=0.0):
    """A [R] and w [R, T] row by row."""
    a, rows = 2 * batch.reward.numpy() - 1 - baseline, []
    moved = batch.logp.numpy() - batch.old_logp.numpy()
    for i, mask in enumerate(batch.mask.numpy()):
        exponent = {"token": moved[i], "sequence": moved[i][mask].sum(), "geometric_mean": moved[i][mask].mean()}[level]
        rows.append(np.broadcast_to(np.clip(np.exp(exponent), *(positive if a[i] > 0 else negative)), mask.shape))
    return a, np.stack(rows)


@pytest.mark.parametrize("level", ["sequence", "token", "geometric_mean"])
@pytest.mark.parametrize("settings", [{}, {"positive": (0.5, 2.0), "negative": (0.1, 0.9)}, {"baseline": 0.5}], ids=str)
def test_value_and_gradient_off_policy(level, settings):
    batch, recipe = off_policy(), make("topr", ratio_level=level, **settings)
    a, w = numpy_weights(batch, level, **settings)  # constant

    def numpy_loss(logp):
        rows = [np.mean((-w[i] * a[i] * logp[i])[mask]) for i, mask in enumerate(batch.mask.numpy())]
        return np.mean(rows)

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    expected = finite_differences(numpy_loss, batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_three_ratio_levels_of_one_failed_row():
    """Log-ratios 0.1, -0.5, -0.2: clipped at 1 token by token, their sum, their mean."""
    moved = torch.tensor([[0.1, -0.5, -0.2]], dtype=torch.float64)
    batch = Batch(logp=moved - 1, old_logp=moved * 0 - 1, reward=torch.tensor([0.0], dtype=torch.float64))
    expected = {"token": [1, np.exp(-0.5), np.exp(-0.2)], "sequence": [np.exp(-0.6)] * 3}
    for level, weights in {**expected, "geometric_mean": [np.exp(-0.2)] * 3}.items():
        recipe = make("topr", ratio_level=level)
        np.testing.assert_allclose(3 * value_and_gradient(recipe, recipe.prepare(batch))[1][0], weights)


def test_rewards_are_signed_and_checked():
    batch = batch_of([[1, 0, 0.25]])
    assert make("topr").prepare(batch).per_row("advantage").tolist() == [1.0, -1.0, -0.5]
    same = make("topr", reward_range=(-1, 1)).prepare(batch.replace(reward=2 * batch.reward - 1))
    assert same.per_row("advantage").tolist() == [1.0, -1.0, -0.5]
    with pytest.raises(
        UsageError, match=r"SignedReward needs rewards in \[0, 1\], but row 1 \(prompt 0\) has reward -1"
    ):
        make("topr").prepare(batch_of([[1, -1]]))
    for wrong in ({"reward_range": (1, 0)}, {"baseline": 1.5}, {"negative": (1, 0)}, {"positive": (-1, 1)}):
        with pytest.raises(UsageError, match="needs"):
            make("topr", **wrong)


@pytest.mark.parametrize(
    ("p", "c", "share"), [(0.5, 0.5, 0.25), (0.2, -0.5, 0.4286), (0.8, 0.5, 0.5714), (0.4, 0, 0.4)]
)
def test_card_effective_share_of_positives(p, c, share):
    rewards = [1.0] * round(10 * p) + [0.0] * round(10 * (1 - p))
    advantage = make("topr", baseline=c).prepare(batch_of([rewards])).per_row("advantage")
    found = advantage.clamp(min=0).sum() / advantage.abs().sum()
    assert float(found) == pytest.approx(share, abs=5e-5)
    assert float(found) == pytest.approx(p * (1 - c) / (1 + c * (1 - 2 * p)))


def gradients(recipe, batch):
    return value_and_gradient(recipe, recipe.prepare(batch))[1]


def test_card_limits():
    batch = off_policy()
    signed = batch.replace(reward=2 * batch.reward - 1)
    naive = gradients(make("reinforce", aggregate=SequenceMean()), signed)
    torch.testing.assert_close(gradients(make("topr", positive=(1, 1), negative=(1, 1)), batch), naive)
    good = (signed.reward > 0).unsqueeze(1)
    torch.testing.assert_close(gradients(make("topr", negative=(0, 0)), batch), naive * good)
    torch.testing.assert_close(gradients(make("topr"), batch)[good.squeeze(1)], naive[good.squeeze(1)])
    zero = make("topr", baseline=-1.0).prepare(batch_of([[1, 0, 1]]))
    assert zero.per_row("advantage").tolist() == [2.0, 0.0, 2.0]


# The exact lab


@pytest.mark.parametrize("level", ["sequence", "token", "geometric_mean"])
def test_on_policy_it_is_reinforce_with_rewards_of_minus_one_and_one(level):
    """Their expectations and variances agree; over the sum of tokens that is the gradient of the signed reward."""
    for aggregate in (SequenceSum(), SequenceMean()):
        ours = LAB.estimate(make("topr", aggregate=aggregate, ratio_level=level), group_size=2)
        theirs = LAB.estimate(make("reinforce", aggregate=aggregate), group_size=2, columns=SIGNED)
        assert ours.exact
        torch.testing.assert_close(ours.mean, theirs.mean)
        torch.testing.assert_close(ours.spread, theirs.spread)
        if aggregate == SequenceSum():
            torch.testing.assert_close(ours.mean, 2 * LAB.gradient(LAB.theta))


def test_off_policy_full_importance_sampling_is_unbiased_for_sequence_ratios_only():
    full = {"positive": (0, INF), "negative": (0, INF), "aggregate": SequenceSum()}
    truth = 2 * LAB.gradient(LAB.theta)
    for level in ("sequence", "token", "geometric_mean"):
        found = LAB.estimate(make("topr", **full, ratio_level=level), group_size=1, old=OLD, target=truth)
        assert (found.relative_bias < 1e-10) == (level == "sequence")


def test_off_policy_the_taper_gives_the_papers_gradient_at_less_variance_than_importance_sampling():
    """sum over successes of mu grad log pi, minus that over failures of min(pi, mu) grad log pi."""
    mu, pi = LAB.probability(OLD), LAB.probability(LAB.theta)
    weight = torch.where(LAB.rewards > 0, mu, -torch.minimum(pi, mu)).detach()
    expected = LAB.gradient(LAB.theta, lambda theta: weight @ LAB.logp(theta).sum(1))
    tapered = LAB.estimate(make("topr", aggregate=SequenceSum()), group_size=2, old=OLD, target=expected)
    assert tapered.relative_bias < 1e-10
    full = make("topr", aggregate=SequenceSum(), positive=(0, INF), negative=(0, INF))
    assert tapered.variance < LAB.estimate(full, group_size=2, old=OLD).variance


def test_failures_that_became_unlikely_let_go_of_the_policy():
    """The policy has left what failed: naive off-policy REINFORCE pushes on, TOPR's gradient of the failures is gone."""
    bandit = ExactLab(3, 1, reward=torch.tensor([1.0, 0.0, 0.0]))
    old = torch.zeros(1, 3, dtype=torch.float64)
    pushes = []
    for gap in (2.0, 6.0, 12.0):
        moved = torch.tensor([[gap, 0.0, 0.0]], dtype=torch.float64)
        failures = {"group_size": 1, "theta": moved, "old": old}
        naive = bandit.estimate(make("topr", positive=(0, 0), negative=(1, 1)), **failures).mean.norm()
        tapered = bandit.estimate(make("topr", positive=(0, 0)), **failures).mean.norm()
        pushes.append((float(naive), float(tapered)))
    assert pushes[2][0] > pushes[0][0] > 0.5
    assert pushes[0][1] > 0.02
    assert pushes[2][1] < 1e-4
