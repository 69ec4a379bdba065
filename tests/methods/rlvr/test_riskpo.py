"""Card: rlvr_core.md, riskpo."""

import itertools

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.methods.rlvr.riskpo import BundledRisk
from upslope.testing import batch_of, finite_differences, value_and_gradient

REWARDS = [[1, 0, 0, 1], [0.3, 0, 1], [0, 0, 1], [1, 1, 0, 1, 0], [0, 1]]  # bundles of 2: 3 papers, 3 papers, 2 papers
ORDER = torch.tensor([5, 3, 9, 0, 12, 7, 1, 16, 10, 2, 4, 6, 8, 11, 13, 14, 15])  # in which completions are numbered
STATE = {"step": 3, "low": 0.4, "high": 1.6}


def plain(**settings):
    return BundledRisk(bundle_size=1, credit="uniform", scale=None, **settings)


def test_defaults():
    recipe = make("riskpo")
    assert recipe.advantage == BundledRisk(5, 0.2, 0.9, 1.5, "averse", True, "bundle_std", "std", "track", 0.1, 1e-6)
    assert (recipe.rollout.group_size, recipe.regularizer) == (5, None)
    hard = make("riskpo@dapo_math")
    assert (hard.advantage.level_high, hard.advantage.natural_baseline, hard.advantage.credit) == (
        0.8,
        False,
        "sum-mean",
    )
    assert (hard.rollout.group_size, hard.update.minibatches) == (10, 4)
    assert make("riskpo@released").advantage.quantiles == "batch"


def test_card_numbers():
    """S = 0..4, quantiles 1 and 4: one prompt per bundle, so that papers are completions."""
    batch, state = batch_of([[0, 1, 2, 3, 4]]), {"step": 1, "low": 1.0, "high": 4.0}
    advantage, _ = plain()(batch, state)
    np.testing.assert_allclose(advantage, [-4.7143, -1.7143, -1.1429, -0.5714, 0], atol=5e-5)
    middle, _ = plain(tail_weight=0.0)(batch, state)
    np.testing.assert_allclose(middle, [-4.2857, -4.2857, -2.8571, -1.4286, 0], atol=5e-5)
    heavy, _ = plain(tail_weight=1e9)(batch, state)
    np.testing.assert_allclose(heavy, [-5, 0, 0, 0, 0], atol=5e-5)
    scaled, _ = BundledRisk(bundle_size=1, credit="uniform")(batch, state)
    np.testing.assert_allclose(scaled, advantage / np.std([0, 1, 2, 3, 4], ddof=1), rtol=1e-5)


def test_risk_seeking_puts_the_weight_on_the_upper_tail():
    part = plain(risk="seeking", level_high=0.8, tail_weight=1.5)
    advantage, _ = part(batch_of([[0, 1, 2, 3, 4]]), {"step": 1, "low": 1.0, "high": 3.0})
    middle, tail = np.array([-2, -2, -1, 0, 0]) / 0.6, np.array([0, 0, 0, 0, 1]) / 0.2
    np.testing.assert_allclose(advantage, (1.5 * tail + middle) / 2.5, rtol=2e-5)


def test_whole_distribution_without_tail_is_reinforce_with_the_highest_score_as_baseline():
    part = plain(tail_weight=0.0, level_low=1e-12, level_high=1 - 1e-12, quantiles="batch", eps=0.0)
    batch = batch_of([[0, 3, 1], [2, 7, 5]])
    advantage, _ = part(batch, part.init())
    np.testing.assert_allclose(advantage, [-3, 0, -2, -5, 0, -2], atol=1e-9)


def test_the_natural_baseline_is_a_constant():
    batch, state = batch_of([[0, 1, 2, 3, 4]]), {"step": 1, "low": 1.0, "high": 3.0}
    (on, _), (off, _) = (plain(natural_baseline=c)(batch, state) for c in (True, False))
    np.testing.assert_allclose(off - on, 2 / 0.7 / 2.5, rtol=1e-5)
    assert (on <= 0).all()


def numpy_advantage(batch, part, state):
    reward, group, trajectory = batch.reward.numpy(), batch.group.numpy(), batch.trajectory.numpy()
    prompts = [sorted(np.flatnonzero(group == g), key=lambda i: trajectory[i]) for g in np.unique(group)]
    bundles = [prompts[k : k + part.bundle_size] for k in range(0, len(prompts), part.bundle_size)]
    papers = [[list(paper) for paper in zip(*bundle, strict=False)] for bundle in bundles]
    scores = [[sum(reward[i] for i in paper) for paper in of_bundle] for of_bundle in papers]
    levels, everyone = [part.level_low, part.level_high], list(itertools.chain(*scores))
    tracked = [state["low"], state["high"]] if state["step"] else np.quantile(everyone, levels)
    found = np.zeros(len(reward))
    for of_bundle, score in zip(papers, map(np.array, scores), strict=True):
        own = np.quantile(score, levels)
        low, high = {"track": tracked, "batch": own, "mix": (own + tracked) / 2}[part.quantiles]
        v = np.maximum(score - low, 0) - np.maximum(score - high, 0) + (low - high if part.natural_baseline else 0)
        c = -np.maximum(low - score, 0) / levels[0]
        p = (part.tail_weight * c + v / (levels[1] - levels[0])) / (part.tail_weight + 1) / score.std(ddof=1)
        for paper, performance in zip(of_bundle, p, strict=True):
            above = np.array([reward[i] - reward[group == group[i]].mean() for i in paper])
            for i, share in zip(paper, above / above.sum(), strict=True):
                spread = reward[group == group[i]].std(ddof=1)
                found[i] = performance * {
                    "std": 1 / spread, "uniform": 1, "score": 0.5 if reward[i] > 0 else 1.5, "sum-mean": share
                }[part.credit]  # fmt: skip
    return found


@pytest.mark.parametrize("credit", ["std", "uniform", "score", "sum-mean"])
@pytest.mark.parametrize("quantiles", ["track", "batch", "mix"])
@pytest.mark.parametrize("state", [{"step": 0, "low": 0.0, "high": 0.0}, STATE], ids=["first step", "later"])
def test_every_credit_and_quantile_mode(credit, quantiles, state):
    batch = batch_of(REWARDS, trajectory=ORDER)
    part = BundledRisk(bundle_size=2, credit=credit, quantiles=quantiles, natural_baseline=credit != "sum-mean")
    advantage, _ = part(batch, state)
    np.testing.assert_allclose(advantage, numpy_advantage(batch, part, state), rtol=2e-5)
    assert (advantage == 0).sum() >= 1 + 2  # the first bundle's fourth completion, the second's fourth and fifth


def test_value_and_gradient_off_policy():
    batch = batch_of(REWARDS, seed=5, trajectory=ORDER)
    batch = batch.replace(old_logp=batch.logp + 0.5 * (batch.entropy - 0.8))
    recipe = make("riskpo", bundle_size=2)
    a = numpy_advantage(batch, recipe.advantage, recipe.advantage.init())[:, None]
    mask, old = batch.mask.numpy(), batch.old_logp.numpy()

    def loss_of(logp):
        ratio = np.exp(logp - old)
        return np.mean((np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2)) * mask).sum(1) / mask.sum(1))

    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_of(batch.logp.numpy()), rel=1e-5)
    np.testing.assert_allclose(gradient, finite_differences(loss_of, batch.logp.numpy()) * mask, rtol=1e-4, atol=1e-7)


def test_sum_mean_shares_equally_where_nothing_stands_out():
    """Both prompts' rewards are their means: each completion of the paper gets half of its performance."""
    batch, state = batch_of([[1, 1], [0, 0]]), {"step": 1, "low": 2.0, "high": 3.0}
    shared, _ = BundledRisk(bundle_size=2, credit="sum-mean")(batch, state)
    uniform, _ = BundledRisk(bundle_size=2, credit="uniform")(batch, state)
    np.testing.assert_allclose(shared, uniform / 2)
    assert (uniform < 0).all()


def test_papers_that_score_alike_stay_of_ordinary_size():
    advantage, _ = BundledRisk(bundle_size=2)(batch_of([[0, 0, 0], [0, 0, 0]]), {"step": 1, "low": 1.0, "high": 2.0})
    np.testing.assert_allclose(advantage, -(1.5 * 1 / 0.2 + 1 / 0.7) / 2.5, rtol=1e-5)


def test_failed_rewards_are_in_no_paper_and_their_prompts_in_no_bundle():
    batch = batch_of([[1, 0, 1], [0, 1], [0.5, 0, 1], [1, 0, 0]])
    valid = torch.tensor([False, True, True, False, False, *[True] * 6])
    part, kept = BundledRisk(bundle_size=2), valid.nonzero().squeeze(1)
    failed, after = part(batch.replace(valid=valid), STATE)
    without, after_without = part(batch.select(kept), STATE)
    np.testing.assert_allclose(failed[kept], without)
    assert after == after_without
    assert not failed[~valid].any()


def test_tracker_over_three_steps():
    part, batches = plain(), [batch_of([rewards]) for rewards in ([0, 1, 2, 3, 4], [0, 0, 1, 5, 5], [2, 2, 2, 2, 0])]
    state = part.init()
    states = [state]
    for batch in batches:
        state = part(batch, state)[1]
        states.append(state)
    assert states[0] == {"step": 0, "low": 0.0, "high": 0.0}
    assert states[1] == {"step": 1, "low": pytest.approx(0.8), "high": pytest.approx(3.6)}  # the first batch's
    low, high = 0.8 + 0.1 * (0.2 - 2 / 5), 3.6 + 0.1 * (0.9 - 3 / 5)
    assert states[2] == {"step": 2, "low": pytest.approx(low), "high": pytest.approx(high)}
    assert states[3]["low"] == pytest.approx(low + 0.1 * (0.2 - 1 / 5))
    assert states[3]["high"] == pytest.approx(high + 0.1 * (0.9 - 1))


def test_the_recipe_hands_the_tracker_on():
    recipe, batch = make("riskpo", bundle_size=2), batch_of(REWARDS)
    first, state = recipe.prepare(batch, recipe.init())
    second, after = recipe.prepare(batch, state)
    assert (state["advantage"]["step"], after["advantage"]["step"]) == (1, 2)
    torch.testing.assert_close(first.advantage, second.advantage)  # step 1 starts with the quantiles it uses
    third, _ = recipe.prepare(batch, after)
    assert not torch.equal(third.advantage, second.advantage)


def test_the_trackers_fixed_point_is_the_quantile():
    generator = torch.Generator().manual_seed(0)
    part, state, seen = plain(tracker_lr=0.05), {"step": 1, "low": 5.0, "high": -5.0}, []
    for step in range(800):
        rewards = torch.randn(1, 200, generator=generator, dtype=torch.float64)
        _, state = part(batch_of(rewards.tolist(), lengths=[1] * 200), state)
        if step >= 500:
            seen.append([state["low"], state["high"]])
    np.testing.assert_allclose(np.mean(seen, axis=0), [-0.8416, 1.2816], atol=0.05)


@pytest.mark.parametrize("levels", [{"level_low": 0.9}, {"level_low": 0.0}, {"level_high": 1.0}])
def test_levels_out_of_order_are_refused(levels):
    with pytest.raises(UsageError, match=r"choose 0 < level_low < level_high < 1, e.g. 0.2 and 0.9"):
        make("riskpo", **levels)


def test_an_empty_bundle_is_refused():
    with pytest.raises(UsageError, match="bundle_size is 0; it must be at least 1"):
        make("riskpo", bundle_size=0)
