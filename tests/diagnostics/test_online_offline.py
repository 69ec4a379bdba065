"""Card: preference_distill_hybrid.md, online-offline-gap. The study over seeds: benchmarks/bandits.py."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.diagnostics.online_offline import (
    Draw,
    fitted_rewards,
    follow,
    fresh,
    in_order,
    judged,
    pair_accuracy,
    pair_batch,
    population,
    preference,
    stored,
    win_rate,
)
from upslope.exact import ExactLab

LAB = ExactLab(vocabulary=3, horizon=2, seed=4, reward=torch.linspace(-2, 2, 9)[torch.randperm(9)].double())
ARMS = ExactLab(vocabulary=3, horizon=1, reward=torch.tensor([0.0, 1.0, 2.0]))
REF = torch.tensor([[0.5, 0.3, 0.2]]).double().log()


def gradient(lab, recipe, theta, ref, source, judge=None):
    leaf = theta.clone().requires_grad_()
    draw = judged(source(0, theta), preference(lab) if judge is None else judge)
    recipe(pair_batch(lab, leaf, ref, draw))[0].backward()
    return leaf.grad


def minimum(lab, recipe, ref, source, judge=None):
    """Where descent from the reference ends, with the pairs' distribution as `source` gives it at the current policy."""
    theta = ref.clone().requires_grad_()
    judge = preference(lab) if judge is None else judge
    for _ in range(60):
        draw = judged(source(0, theta.detach()), judge)
        optimizer = torch.optim.LBFGS([theta], max_iter=100, tolerance_grad=1e-14, tolerance_change=1e-16)

        def closure(draw=draw, optimizer=optimizer):
            optimizer.zero_grad()
            loss = recipe(pair_batch(lab, theta, ref, draw))[0]
            loss.backward()
            return loss

        optimizer.step(closure)
    return theta.detach().log_softmax(-1)


def test_stored_in_order_is_the_online_run_and_shuffled_is_not():
    online = follow(LAB, "dpo", fresh(LAB, 16, seed=1), steps=30, hard=5)
    again = follow(LAB, "dpo", in_order(online.draws), steps=30)
    assert torch.equal(online.theta, again.theta)
    shuffled = follow(LAB, "dpo", stored(online.draws, 16, seed=2), steps=30)
    assert not torch.allclose(online.theta, shuffled.theta)
    pairs = [torch.cat([draw.first for draw in found.draws]).sort().values for found in (online, shuffled)]
    assert torch.equal(*pairs), "the same pairs"


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_with_infinite_data_online_and_offline_dpo_end_at_the_same_policy(beta):
    best = (REF + ARMS.rewards / beta).log_softmax(-1)
    recipe = make("dpo", beta=beta)
    elsewhere = torch.tensor([[0.05, 0.05, 0.9]]).double().log()
    for source in (population(ARMS), population(ARMS, REF), population(ARMS, elsewhere)):
        np.testing.assert_allclose(gradient(ARMS, recipe, best, REF, source), 0, atol=1e-15)
    np.testing.assert_allclose(minimum(ARMS, recipe, REF, population(ARMS)).exp(), best.exp(), atol=1e-6)
    if beta == 1.0:
        np.testing.assert_allclose(best.exp(), [[0.179, 0.291944, 0.529056]], atol=1e-6)


def test_ipo_shares_a_fixed_point_on_its_own_data_but_on_other_data_only_if_preferences_are_additive():
    """With P = 1/2 + c (r - r') any full-support data will do; with Bradley-Terry preferences the minimum depends on it."""
    recipe = make("ipo@paper", beta=0.5)
    online = minimum(ARMS, recipe, REF, population(ARMS))
    np.testing.assert_allclose(gradient(ARMS, recipe, online, REF, population(ARMS, online)), 0, atol=1e-6)
    offline = minimum(ARMS, recipe, REF, population(ARMS, REF))
    assert (online.exp() - offline.exp()).abs().max() > 1e-3
    additive = 0.5 + 0.2 * (ARMS.rewards.unsqueeze(1) - ARMS.rewards)
    ends = [minimum(ARMS, recipe, REF, source, additive) for source in (population(ARMS), population(ARMS, REF))]
    np.testing.assert_allclose(*[end.exp() for end in ends], atol=1e-6)
    np.testing.assert_allclose(ends[0].exp(), (REF + 0.2 * ARMS.rewards / 0.5).softmax(-1), atol=1e-6)


def test_win_rate_and_pair_accuracy_by_hand():
    theta = torch.tensor([[0.3, 0.1, 0.6]]).double().log()
    beats = 1 / (1 + np.exp(-(np.arange(3.0)[:, None] - np.arange(3.0))))
    assert win_rate(ARMS, theta, REF) == pytest.approx(np.array([0.3, 0.1, 0.6]) @ beats @ np.array([0.5, 0.3, 0.2]))
    assert win_rate(ARMS, REF, REF) == pytest.approx(0.5)
    pairs = [Draw(torch.tensor([0, 1, 2, 1]), torch.tensor([1, 2, 0, 1]))]
    assert pair_accuracy(ARMS, theta, REF, pairs) == pytest.approx(2 / 3), "0 has gained on 1"
    assert pair_accuracy(ARMS, REF, REF, pairs) == 0.5


def test_prompts_do_not_meet():
    lab = ExactLab(vocabulary=3, horizon=1, prompts=2, seed=1)
    for source in (fresh(lab, 50, seed=0), population(lab)):
        draw = source(0, lab.theta)
        assert torch.equal(lab.prompt[draw.first], lab.prompt[draw.second])
    assert win_rate(lab, lab.theta, lab.theta) == pytest.approx(0.5)
    assert len(population(lab)(0, lab.theta).first) == 12


def test_stored_pairs_come_once_per_epoch_with_their_labels():
    draw = judged(fresh(LAB, 12, seed=0)(0, LAB.theta), preference(LAB), torch.Generator().manual_seed(0))
    source = stored([draw], 4, seed=3)
    first = [source(step, LAB.theta) for step in range(3)]
    assert torch.equal(torch.cat([d.first for d in first]).sort().values, draw.first.sort().values)
    told = {(int(a), int(b), float(p)) for d in first for a, b, p in zip(d.first, d.second, d.label, strict=True)}
    assert told == {(int(a), int(b), float(p)) for a, b, p in zip(draw.first, draw.second, draw.label, strict=True)}
    with pytest.raises(UsageError, match="only 12 are stored"):
        stored([draw], 13, seed=0)


def test_a_reward_model_finds_the_rewards_up_to_a_shift_where_it_has_pairs():
    draw = judged(population(ARMS)(0, REF), preference(ARMS))
    found = fitted_rewards(ARMS, [draw], centering=0.0, steps=400)
    np.testing.assert_allclose(found - found[0], ARMS.rewards, atol=0.02)
    partial = judged(Draw(torch.tensor([0]), torch.tensor([2])), preference(ARMS))
    assert float(fitted_rewards(ARMS, [partial])[1]) == 0


def test_pair_accuracy_and_win_rate_come_apart():
    """The card's claim (b) in small: trained on the reference's pairs the policy orders these better and wins less."""
    draw = torch.Generator().manual_seed(5)
    lab = ExactLab(vocabulary=8, horizon=2, seed=0, spread=1.5, reward=2 * torch.randn(64, generator=draw).double())
    held_out = [fresh(lab, 2000, seed=9, theta=lab.theta)(0, lab.theta)]
    data = judged(fresh(lab, 96, seed=8, theta=lab.theta)(0, lab.theta), preference(lab), draw)
    online = follow(lab, "dpo", fresh(lab, 32, seed=1), steps=200, hard=2)
    offline = follow(lab, "dpo", stored([data], 32, seed=1), steps=200)
    accuracy = [pair_accuracy(lab, run.theta, lab.theta, held_out) for run in (online, offline)]
    wins = [run.points[-1].win_rate for run in (online, offline)]
    assert accuracy[1] > accuracy[0] + 0.03
    assert wins[0] > wins[1] + 0.02
    assert online.at_kl(0.0) is None
    assert online.at_kl(100.0) == max(point.win_rate for point in online.points[1:])
