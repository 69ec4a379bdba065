"""Card: preference_distill_hybrid.md, ranking-accuracy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import Batch, UsageError, make
from upslope.diagnostics import (
    PairScores,
    by_difficulty,
    difficulty,
    idealized_accuracy,
    idealized_log_ratio,
    loss_to_rank,
    ranking_accuracy,
    ranking_floor,
    ranking_report,
)
from upslope.diagnostics.ranking import ranking_table

DRAW = np.random.default_rng(0)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(pairs=200, share=None):
    """Random pairs, of which the policy has moved some way from the reference."""
    ref = DRAW.normal(-20, 3, (2, pairs))
    moved = ref + DRAW.normal(0, 2, (2, pairs)) + np.array([[1.0], [-1.0]])
    length = DRAW.integers(5, 30, (2, pairs)).astype(float)
    rows = [torch.tensor(x) for x in (*moved, *ref, *length)]
    return PairScores(*rows, share=None if share is None else torch.full((pairs,), share, dtype=torch.float64))


def test_card_numbers():
    c = difficulty(torch.log(column(1.0)), torch.log(column(2.0)))
    assert float(loss_to_rank(c, 0.1)) == pytest.approx(0.659090, abs=5e-7)
    assert float(loss_to_rank(column(0.0), 0.1)) == pytest.approx(0.693147, abs=5e-7)
    assert float(loss_to_rank(column(10.0), 0.1)) == pytest.approx(0.313262, abs=5e-7)
    ideal = idealized_log_ratio(-torch.log(column(0.5)), column(0.8), 1.0)
    assert float(ideal.exp()) == pytest.approx(2)


def test_idealized_ratio_is_that_of_dpos_population_optimum():
    """Two completions, a share a of raters for the first: descent on the DPO loss with soft labels ends at the formula."""
    share, ref, beta = 0.7, torch.tensor([0.2, 0.8]).double(), 0.5
    theta = torch.zeros(2).double().requires_grad_()
    recipe, optimizer = make("dpo", beta=beta), torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-13)

    def closure():
        optimizer.zero_grad()
        loss = recipe(
            Batch(
                logp=theta.log_softmax(0)[:, None], ref_logp=ref.log()[:, None], label=[share, 1 - share], group=[0, 0]
            )
        )[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = idealized_log_ratio(difficulty(ref[:1].log(), ref[1:].log()), column(share), beta)
    assert float((theta[0] - theta[1]).detach()) == pytest.approx(float(expected), abs=1e-5)


def test_unanimous_raters_make_an_idealized_accuracy_of_one_and_others_need_not():
    c = column(-3.0, 0.5, 2.0, 30.0)
    assert idealized_accuracy(c, torch.ones(4), 0.1) == 1.0
    assert idealized_accuracy(c, torch.full((4,), 0.8), 1.0) == 0.5  # log 4 = 1.386 of preference
    assert idealized_accuracy(c, torch.full((4,), 0.8), 0.1) == 0.75


def test_a_pair_is_ranked_right_exactly_where_its_loss_is_below_the_bound():
    scores, beta = drawn(), 0.3
    loss = np.logaddexp(0, -beta * scores.gap.numpy())
    right = (scores.chosen >= scores.rejected).numpy()
    np.testing.assert_array_equal(right, loss <= loss_to_rank(scores.difficulty, beta).numpy())
    assert 0.1 < right.mean() < 0.9


def test_accuracy_counts_ties_and_per_token_means():
    assert ranking_accuracy(column(-1, -2, -3), column(-1, -3, -2)) == pytest.approx(2 / 3)
    scores = PairScores(column(-6), column(-4), column(-6), column(-4), column(6), column(2))
    report = ranking_report(scores, 0.1)
    assert (report.accuracy, report.normalized) == (0, 1)
    assert report.to_dict()["difficulty"] == (2.0, 2.0)


def test_report_against_numpy():
    scores = drawn(share=0.9)
    w, ell, rw, rl = (getattr(scores, n).numpy() for n in ("chosen", "rejected", "ref_chosen", "ref_rejected"))
    report, gap = ranking_report(scores, 0.2), (w - rw) - (ell - rl)
    assert report.accuracy == np.mean(w >= ell)
    assert report.reference == np.mean(rw >= rl)
    assert report.implicit == np.mean(gap > 0)
    assert report.loss == pytest.approx(np.mean(0.9 * np.logaddexp(0, -0.2 * gap) + 0.1 * np.logaddexp(0, 0.2 * gap)))
    ideal = np.mean(rw - rl + np.log(9) / 0.2 > 0)
    assert (report.idealized, report.alignment_gap) == (ideal, pytest.approx(ideal - np.mean(w >= ell)))
    assert report.loss_to_rank == pytest.approx(np.mean(np.logaddexp(0, -0.2 * (rl - rw))))


@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=30), st.sampled_from([0.1, 1.0])
)
def test_the_floor_holds_whatever_the_policy(pairs, beta):
    """`gap` is what training has added to each pair, c what was against it."""
    gap, c = torch.tensor(pairs, dtype=torch.float64).T
    loss = float(torch.nn.functional.softplus(-beta * gap).mean())
    accuracy = float((gap >= c).double().mean())
    assert accuracy >= ranking_floor(loss, c, beta) - 1e-9


def test_the_floor_is_reached_by_the_worst_policy():
    """The cheapest pairs left just short of their bound, the rest far beyond: no bound from the mean loss is tighter."""
    c, beta = column(0.0, 1.0, 2.0, 3.0), 1.0
    gap = torch.cat([c[2:] - 1e-9, column(50.0, 50.0)])
    loss = float(torch.nn.functional.softplus(-gap).mean())
    assert ranking_floor(loss, c, beta) == 0.5
    assert ranking_floor(0.0, c, beta) == 1.0
    assert ranking_floor(math.log(2), torch.zeros(4), beta) == 0.0


def test_dpo_lowers_the_loss_of_hard_pairs_without_ranking_them_right():
    """The card's demonstration: pairs of a bandit whose references prefer the loser by c; gradient descent on DPO's mean loss."""
    c = torch.linspace(-2.0, 12.0, 8).double()
    ref = torch.stack([torch.zeros_like(c), c], 1).log_softmax(1)
    theta = ref.clone().requires_grad_()
    recipe, optimizer = make("dpo", beta=0.1), torch.optim.Adam([theta], lr=0.05)
    rows = {"ref_logp": ref.reshape(-1, 1), "label": [1.0, 0.0] * 8, "group": torch.arange(16) // 2}
    for _ in range(60):
        optimizer.zero_grad()
        loss, stats = recipe(Batch(logp=theta.log_softmax(1).reshape(-1, 1), **rows))
        loss.backward()
        optimizer.step()
    logp = theta.detach().log_softmax(1)
    scores = PairScores(*logp.T, *ref.T, torch.ones(8), torch.ones(8))
    report = ranking_report(scores, 0.1)
    assert (report.implicit, report.loss) == (1.0, pytest.approx(float(loss.detach()), abs=0.01))
    assert report.loss < math.log(2) - 0.1
    right = (scores.chosen >= scores.rejected).tolist()
    assert right == sorted(right, reverse=True), "easy pairs first"
    assert 0 < report.accuracy < 1
    assert report.reference < report.accuracy < report.idealized
    assert abs(float(stats["pairs/ranking_accuracy"]) - report.accuracy) <= 1 / 8


def test_by_difficulty_is_a_partition_in_order_and_splits_at_zero():
    scores = drawn(100)
    parts = by_difficulty(scores, 0.1, bins=5)
    assert sum(part.pairs for part in parts) == 100
    edges = [edge for part in parts for edge in part.difficulty]
    assert edges == sorted(edges)
    assert all(part.difficulty[1] <= 0 or part.difficulty[0] > 0 for part in parts)
    assert [part.reference for part in parts] == [float(part.difficulty[1] <= 0) for part in parts]
    whole = ranking_report(scores, 0.1)
    assert sum(part.accuracy * part.pairs for part in parts) == pytest.approx(100 * whole.accuracy)
    lines = ranking_table(whole, parts)
    assert len(lines) == 7
    assert lines[-1].split()[:2] == ["all", "100"]
    assert len({len(line) for line in lines}) == 1


def test_one_sided_and_few_pairs():
    one = drawn(1)
    assert [part.pairs for part in by_difficulty(one, 0.1)] == [1]
    hard = drawn(40).select((drawn(40).chosen < 0).nonzero().squeeze(1))
    hard = PairScores(hard.chosen, hard.rejected, hard.ref_rejected - 50, hard.ref_rejected, *[torch.ones(40)] * 2)
    assert all(part.reference == 0 for part in by_difficulty(hard, 0.1))


def test_wrong_input():
    ones = torch.ones(2)
    with pytest.raises(UsageError, match=r"all columns must be \[P\]"):
        PairScores(ones, ones, ones, ones, ones, torch.ones(3))
    with pytest.raises(UsageError, match=r"a share is 0.3.*Exchange"):
        PairScores(*[ones] * 6, share=torch.tensor([0.3, 1.0]))
    with pytest.raises(UsageError, match="beta=0"):
        ranking_report(drawn(3), 0.0)
    with pytest.raises(UsageError, match="bins=1"):
        by_difficulty(drawn(3), 0.1, bins=1)
