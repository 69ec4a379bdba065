"""Card: rlvr_core.md, nft-negative."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.exact import ExactLab
from upslope.methods.rlvr.nft_negative import ImplicitNegative
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean, TokenSum
from upslope.testing import batch_of, finite_differences, value_and_gradient

SUM = TokenSum(scale=0.001)
MIXED = [[1, 0, 0, 0], [1, 0, 1], [1, 1], [0, 0, 0]]


def off_policy():
    batch = batch_of(MIXED, seed=5)
    return batch.replace(old_logp=batch.logp + 0.8 * (batch.entropy - 0.8))


@pytest.mark.parametrize(
    ("ratio", "loss", "coefficient"),
    [(2.0, 0.0, 0.25 * 2 / 0.75), (5.0, 0.0, 1.6667), (1.0, 0.0, 1 / 3), (0.5, -np.log(7 / 6), 0.125 / 0.75 / (7 / 6))],
)
def test_card_gradient_of_a_wrong_token_at_accuracy_one_quarter(ratio, loss, coefficient):
    """r = 2: x = 2/3, loss 0, gradient 2/3. At r = 5 x is negative: without straight-through there would be no loss."""
    logp = torch.tensor([[np.log(ratio)]], requires_grad=True)
    batch = Batch(logp=logp, old_logp=torch.zeros_like(logp), advantage=[-1.0], accuracy=torch.tensor([0.25]))
    found = ImplicitNegative()(batch)
    assert found.item() == pytest.approx(loss)
    assert torch.autograd.grad(found.sum(), logp)[0].item() == pytest.approx(coefficient, abs=5e-5)


def test_the_gradient_holds_in_single_precision_at_the_largest_ratio():
    logp = torch.tensor([[10.0]], requires_grad=True)
    batch = Batch(logp=logp, old_logp=torch.zeros(1, 1), advantage=[-1.0], accuracy=torch.tensor([0.98]))
    (gradient,) = torch.autograd.grad(ImplicitNegative()(batch).sum(), logp)
    assert gradient.item() == pytest.approx(0.98 * np.exp(10) / 0.02, rel=1e-5)


def numpy_parts(batch, power):
    """right, q, w of every row whose prompt has both outcomes, else w = 0."""
    reward, group = batch.reward.numpy(), batch.group.numpy()
    right = reward > 0.5
    q = np.array([right[group == g].mean() for g in group])
    mixed = (q > 0) & (q < 1)
    q = np.clip(q, 0.02, 0.98)
    return right, q, mixed * {0: np.ones_like(q), 1: 1 - q, 2: np.sqrt((1 - q) / q)}[power]


def numpy_loss(batch, logp, power=1, neg_weight=1.0, sequence=False, frozen=None):
    """Straight-through: x is max(x, 1) at the policy `frozen`, plus how far x moved from there."""
    right, q, w = numpy_parts(batch, power)
    old, mask, total = batch.old_logp.numpy(), batch.mask.numpy(), 0.0
    for i in range(len(right)):
        moved, start = (d[i][mask[i]] for d in (logp - old, frozen - old))
        if sequence:
            moved, start = moved.sum(keepdims=True), start.sum(keepdims=True)
        x, x0 = ((1 - q[i] * np.exp(d)) / (1 - q[i]) for d in (moved, start))
        wrong = -neg_weight * np.log(np.maximum(x0, 1) + x - x0)
        total += w[i] * (-moved if right[i] else wrong).sum()
    return total / len(right) if sequence else total / 1000


@pytest.mark.parametrize("settings", [{}, {"by": "failure_odds"}, {"weight": None}, {"neg_weight": 0.3}], ids=str)
@pytest.mark.parametrize("sequence", [False, True], ids=["token", "sequence"])
def test_value_and_gradient_off_policy(settings, sequence):
    batch = off_policy()
    where = {"ratio_level": "sequence", "aggregate": RowMean()} if sequence else {}
    recipe = make("nft_negative", **settings, **where)
    power = 0 if "weight" in settings else 2 if "by" in settings else 1

    def at(logp):
        neg_weight = settings.get("neg_weight", 1.0)
        return numpy_loss(batch, logp, power, neg_weight, sequence, frozen=batch.logp.numpy())

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(at(batch.logp.numpy()))
    expected = finite_differences(at, batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def gradients(recipe, batch):
    return value_and_gradient(recipe, recipe.prepare(batch))[1]


def test_on_policy_it_is_dr_grpo_with_a_sum_over_tokens_or_grpo_with_the_population_deviation():
    batch = batch_of(MIXED)
    torch.testing.assert_close(gradients(make("nft_negative"), batch), gradients(make("dr_grpo", aggregate=SUM), batch))
    grpo = make("grpo", advantage=GroupBaseline(scale="population_std", eps=0.0), regularizer=None, aggregate=SUM)
    ours = gradients(make("nft_negative", by="failure_odds"), batch)
    some = batch.select(batch.group < 2)  # eps = 0 divides by 0 in a group that agrees
    torch.testing.assert_close(ours[batch.group < 2], gradients(grpo, some))
    assert not ours[batch.group >= 2].any()


def test_without_negatives_it_is_weighted_fine_tuning_on_right_completions():
    batch = off_policy()
    right, _, w = numpy_parts(batch, 1)
    expected = -(right * w)[:, None] * batch.mask.numpy() / 1000
    np.testing.assert_allclose(gradients(make("nft_negative", neg_weight=0.0), batch), expected)


def test_accuracy_is_kept_within_its_margin():
    batch = batch_of([[1] + [0] * 99, [0] + [1] * 99])
    prepared = make("nft_negative").prepare(batch)
    assert prepared.accuracy.unique().tolist() == pytest.approx([0.02, 0.98])
    np.testing.assert_allclose(prepared.weight[[0, 100], 0], [0.98, 0.02])
    with pytest.raises(UsageError, match="margin=0"):
        make("nft_negative", margin=0.0)


def test_a_failed_reward_is_in_no_accuracy():
    batch = batch_of([[1, 0, 0, 0]]).replace(valid=torch.tensor([True, True, True, False]))
    assert make("nft_negative").prepare(batch).accuracy.tolist() == pytest.approx([1 / 3] * 4)


def test_a_sequence_ratio_wants_an_aggregate_per_sequence():
    with pytest.raises(UsageError, match="gives one loss per sequence, but TokenSum aggregates per token"):
        make("nft_negative", ratio_level="sequence")


@pytest.mark.parametrize("size", [2, 4])
def test_exactly_the_estimator_of_dr_grpo_on_policy(size):
    lab = ExactLab(2, 3, eos=0, seed=2, reward=lambda tokens: float(sum(tokens) >= 2))
    theirs = lab.estimate(make("dr_grpo", aggregate=SUM), group_size=size)
    ours = lab.estimate("nft_negative", group_size=size)
    every = lab.estimate(make("nft_negative").replace(curriculum=None), group_size=size)
    assert ours.exact
    assert ours.kept < 1
    for found in (every.mean, ours.mean * ours.kept):
        torch.testing.assert_close(found, theirs.mean, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(every.spread, theirs.spread)
    assert every.direction_bias < 1e-9


def test_off_policy_the_estimators_part():
    lab = ExactLab(2, 3, eos=0, seed=2, reward=lambda tokens: float(sum(tokens) >= 2))
    old = lab.theta.flip(0)
    ours, theirs = (lab.estimate(r, group_size=4, old=old) for r in ("nft_negative", make("dr_grpo", aggregate=SUM)))
    assert (ours.mean * ours.kept - theirs.mean).norm() > 0.1 * theirs.mean.norm()
