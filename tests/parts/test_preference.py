"""Pairs of rows, their scores, the losses on their difference, and what is said about them."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError
from upslope.parts.aggregate import GroupSum
from upslope.parts.preference import PreferenceLoss, Preferred, divergence_score, pairs_of, sequence_score
from upslope.recipe import Recipe
from upslope.testing import batch_of, finite_differences, value_and_gradient


def rows_of(labels, groups, **columns):
    """One row of one token per label."""
    return Batch(logp=-torch.ones(len(labels), 1).double(), label=torch.tensor(labels), group=groups, **columns)


def listed(batch, by="label", which="all", scale=None):
    """(winner, loser, certainty, share) of every pair, sorted."""
    found = pairs_of(batch, by, which, scale)
    columns = (found.winner.tolist(), found.loser.tolist(), found.certainty.tolist(), found.share.tolist())
    return sorted((w, v, pytest.approx(c), pytest.approx(s)) for w, v, c, s in zip(*columns, strict=True))


GIVEN = {
    "pairs": ([1.0, 0.0, 0.0, 1.0], [0, 0, 1, 1], [(0, 1, 1, 1), (3, 2, 1, 1)]),
    "a soft label": ([0.3, 0.7], [0, 0], [(1, 0, 0.7, 1)]),
    "either is as likely": ([0.5, 0.5], [0, 0], [(0, 1, 0.5, 1)]),
    "K rows, one of them best": ([0.0, 1.0, 0.0], [4, 4, 4], [(1, 0, 1, 0.5), (1, 2, 1, 0.5)]),
    "K rows with probabilities": (
        [0.6, 0.3, 0.1], [0, 0, 0], [(0, 1, 2 / 3, 1 / 3), (0, 2, 6 / 7, 1 / 3), (1, 2, 0.75, 1 / 3)],
    ),
    "equal rows": ([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1], []),
    "a group of one": ([1.0, 0.0], [0, 1], []),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "groups", "pairs"), GIVEN.values(), ids=GIVEN)
def test_pairs_by_label(labels, groups, pairs):
    assert listed(rows_of(labels, torch.tensor(groups))) == pairs


@pytest.mark.parametrize("which", ["all", "extremes", "neighbours"])
def test_two_rows_make_the_same_pair_whichever_is_taken(which):
    for labels in ([1.0, 0.0], [0.3, 0.7], [0.5, 0.5], [1.0, 1.0]):
        batch = rows_of(labels, torch.zeros(2))
        assert listed(batch, which=which) == listed(batch)


def test_extremes_and_neighbours_of_a_ranking():
    batch = rows_of([0.0] * 4, torch.zeros(4), reward=[0.2, 0.9, 0.5, -1.0])
    assert listed(batch, "reward", "extremes") == [(1, 3, 1, 1)]
    assert listed(batch, "reward", "neighbours") == [(0, 3, 1, 1 / 3), (1, 2, 1, 1 / 3), (2, 0, 1, 1 / 3)]
    assert len(listed(batch, "reward")) == 6


def test_of_equal_rows_the_trajectory_decides():
    batch = rows_of([0.0] * 4, torch.zeros(4), reward=[1.0, 1.0, 0.0, 0.0], trajectory=[7, 3, 9, 8])
    assert listed(batch, "reward", "extremes") == [(1, 2, 1, 1)]
    assert listed(batch, "reward", "neighbours") == [(0, 3, 1, 1)], "no pair of equal rewards"


def test_rewards_with_a_scale_are_soft_labels():
    batch = rows_of([0.0] * 3, torch.zeros(3), reward=[2.0, 0.5, 0.5])
    p = 1 / (1 + np.exp(-3.0))
    assert listed(batch, "reward", scale=0.5) == [(0, 1, p, 1 / 3), (0, 2, p, 1 / 3), (1, 2, 0.5, 1 / 3)]


def test_masked_and_failed_rows_are_in_no_pair():
    labels, group = [1.0, 0.0, 0.0, 0.0], torch.zeros(4)
    masked = rows_of(labels, group, mask=torch.tensor([True, False, True, True])[:, None])
    assert [pair[:2] for pair in listed(masked)] == [(0, 2), (0, 3)]
    failed = rows_of(labels, group, valid=torch.tensor([True, True, True, False]))
    assert [pair[:2] for pair in listed(failed)] == [(0, 1), (0, 2)]
    best = rows_of(labels, group, valid=torch.tensor([False, True, True, True]))
    assert listed(best) == listed(best, which="extremes") == listed(best, which="neighbours") == []


def test_the_order_of_the_rows_does_not_matter():
    rewards = [[1, 0, 0, 1, 0.5], [0.5, 0.5], [0, 1, 1]]
    batch = batch_of(rewards, seed=3)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    for which in ("all", "extremes", "neighbours"):
        for by in ("label", "reward"):
            found, moved = pairs_of(batch, by, which), pairs_of(batch.select(order), by, which)
            pairs = {(int(w), int(v)) for w, v in zip(order[moved.winner], order[moved.loser], strict=True)}
            assert pairs == set(zip(found.winner.tolist(), found.loser.tolist(), strict=True))


def test_where_losses_and_values_land():
    batch = rows_of([0.0, 1.0, 0.0, 1.0, 0.0], torch.tensor([0, 0, 0, 1, 2]))
    pairs = pairs_of(batch, "label", "all")
    assert pairs.on_winner(torch.tensor([2.0, 4.0]).double(), 5).tolist() == [0, 3, 0, 0, 0], "a group's are averaged"
    assert pairs.on_both(torch.tensor([2.0, 4.0]).double(), 5).tolist() == [2, 3, 4, 0, 0]


def test_preferred_rows():
    soft = rows_of([0.3, 0.7, 0.5, 0.5, 1.0], torch.tensor([0, 0, 1, 1, 2]))
    assert Preferred()(soft).tolist() == [False, True, False, False, False]
    ranked = rows_of([0.0] * 4, torch.zeros(4), reward=[0.2, 0.9, 0.9, -1.0])
    assert Preferred("reward")(ranked).tolist() == [False, True, False, False]
    assert Preferred().needs == {"label", "group"}


def test_scores():
    batch = Batch(
        logp=torch.tensor([[-1.0, -2.0, 0.0], [-4.0, 0.0, 0.0]]),
        ref_logp=torch.tensor([[-1.5, -2.0, 0.0], [-3.0, 0.0, 0.0]]),
        mask=torch.tensor([[1, 1, 0], [1, 0, 0]]),
    )
    assert sequence_score(batch, reference=True, normalized=False).tolist() == [0.5, -1.0]
    assert sequence_score(batch, reference=False, normalized=True).tolist() == [-1.5, -4.0]


@pytest.mark.parametrize(
    ("settings", "derivative"),
    [
        ({"divergence": "alpha", "alpha": 0.0}, lambda u: np.log(u)),
        ({"divergence": "alpha", "alpha": 1.0}, lambda u: 1 - 1 / u),
        ({"divergence": "alpha", "alpha": 0.5}, lambda u: 2 * (1 - 1 / np.sqrt(u))),
        ({"divergence": "js", "alpha": 0.0}, lambda u: np.log(2 * u / (1 + u))),
    ],
)
def test_divergences(settings, derivative):
    log_ratio = torch.linspace(-3, 3, 7).double()
    np.testing.assert_allclose(divergence_score(log_ratio, **settings), derivative(log_ratio.exp().numpy()), atol=1e-14)
    for extreme in (-1e4, 1e4):
        assert divergence_score(torch.tensor(extreme), **settings).isfinite()


def numpy_loss(batch, score, part):
    """Mean over groups of the mean over their pairs, from the formulas of the docstring."""
    label, group = batch.label.numpy(), batch.group.numpy()
    per_group = []
    for g in np.unique(group):
        rows, losses = np.flatnonzero(group == g), []
        for i in rows:
            for j in rows:
                if label[i] > label[j]:
                    p = label[i] / (label[i] + label[j])
                    p = p * (1 - part.smoothing) + (1 - p) * part.smoothing
                    there, back = numpy_link(score[i] - score[j], part), numpy_link(score[j] - score[i], part)
                    e = part.flip_rate
                    clean, flipped = p * there + (1 - p) * back, p * back + (1 - p) * there
                    losses.append(((1 - e) * clean - e * flipped) / (1 - 2 * e))
        per_group.append(np.mean(losses))
    return np.mean(per_group)


def numpy_link(gap, part):
    z = part.beta * gap - part.margin
    return {
        "logistic": np.log1p(np.exp(-z)),
        "hinge": np.maximum(0, 1 - z),
        "square": (gap - 0.5 / part.beta) ** 2,
    }[part.link]


@pytest.mark.parametrize(
    "part",
    [
        PreferenceLoss(beta=0.7),
        PreferenceLoss(beta=2.0, reference=False, normalized=True, margin=0.6),
        PreferenceLoss(beta=0.4, link="square", smoothing=0.2),
        PreferenceLoss(beta=1.3, link="hinge", margin=0.1),
        PreferenceLoss(beta=0.9, smoothing=0.1, flip_rate=0.3),
        PreferenceLoss(beta=0.5, alpha=0.5),
    ],
    ids=str,
)
def test_value_and_gradient_against_numpy(part):
    batch = batch_of([[1, 0], [0.3, 0.7], [0.6, 0.3, 0.1]], seed=4)

    def loss_at(logp):
        moved = (logp - (batch.ref_logp.numpy() if part.reference else 0)) * batch.mask.numpy()
        score = moved.sum(1) / (batch.length.numpy() if part.normalized else 1)
        if part.alpha:
            score = (1 - np.exp(-part.alpha * score)) / part.alpha
        return numpy_loss(batch, score, part)

    recipe = Recipe(surrogate=part, aggregate=GroupSum())
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, batch.logp.numpy()), atol=1e-8)


def test_stats():
    batch = Batch(
        logp=torch.tensor([[-1.0], [-2.0], [-3.0], [-1.0], [-1.0]]),
        label=[1.0, 0.0, 1.0, 0.0, 1.0],
        reward=[1.0, 0.0, 1.0, 0.0, 1.0],
        group=[0, 0, 1, 1, 2],
    )
    stats = PreferenceLoss(beta=0.5, reference=False).stats(batch)
    assert stats["pairs/accuracy"].tolist() == [1, 1, 0, 0, 0]
    assert stats["pairs/margin"].tolist() == [0.5, 0.5, -1, -1, 0]
    assert torch.equal(stats["pairs/ranking_accuracy"], stats["pairs/accuracy"]), "without a reference the same"
    reference = torch.tensor([[0.0], [-5.0], [-9.0], [-1.0], [0.0]])
    stats = PreferenceLoss(beta=0.5).stats(batch.replace(ref_logp=reference))
    assert stats["pairs/accuracy"].tolist() == [0, 0, 1, 1, 0]
    assert stats["pairs/ranking_accuracy"].tolist() == [1, 1, 0, 0, 0], "by logp alone"
    by_reward = PreferenceLoss(beta=0.5, reference=False, pairs="reward").stats(batch)
    assert by_reward["pairs/paired"].tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"beta": 0.0}, "must be positive"),
        ({"smoothing": 0.5}, r"in \[0, 0.5\)"),
        ({"flip_rate": -0.1}, r"in \[0, 0.5\)"),
        ({"link": "square", "margin": 1.0}, "has no margin"),
        ({"reward_scale": 1.0}, "belongs to pairs='reward'"),
        ({"reward_scale": 0.0, "pairs": "reward"}, "must be positive"),
        ({"alpha": 1.0, "normalized": True}, "needs reference=True"),
        ({"divergence": "js", "reference": False}, "needs reference=True"),
    ],
)
def test_refused_settings(settings, says):
    with pytest.raises(UsageError, match=says):
        PreferenceLoss(**settings)


def test_described():
    assert PreferenceLoss().describe() == "log(1 + exp(-z)), z = 0.1 (s_w - s_l), s = sum of logp - ref_logp"
    assert "u = exp(sum of logp - ref_logp)" in PreferenceLoss(divergence="js").describe()
    assert "labels sigma((r_w - r_l) / 2)" in PreferenceLoss(pairs="reward", reward_scale=2.0).describe()
