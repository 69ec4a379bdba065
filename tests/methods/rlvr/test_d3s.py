"""Card: rlvr_core.md, d3s."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import UsageError, make
from upslope.methods.rlvr.d3s import most_varied
from upslope.parts.aggregate import TokenMean
from upslope.testing import batch_of, finite_differences, value_and_gradient

CARD = torch.tensor([1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5])
REWARDS = [[1, 0, 0, 1], [1, 1, 0.5], [0, 0, 1, 0.3]]
VALUES = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0]) | st.floats(-3, 3), min_size=1, max_size=12)


def off_policy():
    batch = batch_of(REWARDS, seed=5)
    return batch.replace(old_logp=batch.logp + 0.3 * (batch.value - 0.2))


def selected(batch, **settings):
    recipe = make("d3s", **settings)
    return recipe.credit(batch, {})[0].weight.numpy()


def test_card_subset():
    chosen = CARD[most_varied(CARD, 4)]
    assert sorted(chosen.tolist()) == [-1.5, -0.5, 0.5, 1.5]
    assert float(chosen.var(correction=0)) == 1.25


@given(VALUES, st.data())
def test_no_subset_varies_more(values, data):
    count = data.draw(st.integers(1, len(values)))
    found = most_varied(torch.tensor(values, dtype=torch.float64), count).tolist()
    assert len(set(found)) == count
    best = max(np.var(subset) for subset in combinations(values, count))
    assert np.var([values[i] for i in found]) == pytest.approx(best, abs=1e-4)


@given(st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=2, max_size=12, unique=True), st.data())
def test_the_sign_of_the_advantage_does_not_matter(values, data):
    count = data.draw(st.integers(1, len(values)))
    values = torch.tensor(values, dtype=torch.float64)
    ones, others = (np.var(values[most_varied(sign * values, count)].numpy()) for sign in (1, -1))
    assert ones == pytest.approx(others, abs=1e-9)


def best_subsets(batch, share):
    """Advantages, all subsets of completions with the largest variance, and tokens as (score, row, position)."""
    reward, group, mask, entropy = (getattr(batch, name).numpy() for name in ("reward", "group", "mask", "entropy"))
    a = np.zeros(len(reward))
    for g in set(group):
        mates = reward[group == g]
        a[group == g] = (mates - mates.mean()) / (mates.std(ddof=1) + 1e-6)
    count = int(np.ceil(share * len(a)))
    variance = max(np.var(a[list(rows)]) for rows in combinations(range(len(a)), count))
    subsets = [set(rows) for rows in combinations(range(len(a)), count) if np.var(a[list(rows)]) > variance - 1e-6]
    return a, subsets, [(abs(a[i]) * entropy[i, t], i, t) for i, t in zip(*mask.nonzero(), strict=True)]


@pytest.mark.parametrize("progress", [0.0, 0.4])
def test_value_and_gradient_off_policy(progress):
    batch = off_policy().replace(progress=torch.full((11,), progress))
    share, tokens = 0.25 + 0.75 * progress, 0.2 + 0.8 * progress
    a, subsets, scored = best_subsets(batch, share)
    recipe = make("d3s")
    prepared = recipe.prepare(batch)
    weight = prepared.weight.numpy()
    for rows in subsets:  # one of the equally good ones is ours
        inside = sorted((entry for entry in scored if entry[1] in rows), reverse=True)
        best = inside[: int(np.ceil(tokens * len(inside) - 1e-9))]
        expected = np.zeros(weight.shape)
        for _, i, t in best:
            expected[i, t] = 1
        if np.array_equal(expected, weight):
            break
    else:
        raise AssertionError("no best subset has these tokens")

    def numpy_loss(logp):
        losses = []
        for _, i, t in best:
            ratio = np.exp(logp[i, t] - float(batch.old_logp[i, t]))
            losses.append(max(-a[i] * ratio, -a[i] * np.clip(ratio, 0.8, 1.2)))
        return np.mean(losses)

    loss, gradient = value_and_gradient(recipe, prepared)
    assert float(loss) == pytest.approx(numpy_loss(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(numpy_loss, batch.logp.numpy()), atol=1e-8)


def test_everything_kept_is_grpo_with_a_token_mean_and_without_kl():
    all_kept = dict.fromkeys(("rows_start", "rows_end", "tokens_start", "tokens_end"), 1.0)
    base = make("grpo", regularizer=None, aggregate=TokenMean())
    for ours, batch in (
        (make("d3s", **all_kept), off_policy()),
        (make("d3s"), off_policy().replace(progress=torch.ones(11))),
    ):
        results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, base)]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def test_the_schedule_relaxes():
    counts = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        weight = selected(off_policy().replace(progress=torch.full((11,), progress)))
        counts.append((weight.any(1).sum(), weight.sum()))
    assert counts == sorted(counts)
    assert counts[0][0] <= 3
    assert counts[-1][1] == off_policy().mask.sum()


def test_within_groups_the_extremes_of_the_rewards():
    batch = batch_of([[0.1, 0.9, 0.4, 0.5], [5, 6, 7, 9]], lengths=[2] * 8)
    weight = selected(batch, scope="group", rows_start=0.5, tokens_start=1.0)
    assert weight[:, 0].tolist() == [1, 1, 0, 0, 1, 0, 0, 1]


def test_gspo_as_the_base():
    batch = batch_of(REWARDS)
    recipe = make("d3s", surrogate="gspo", aggregate="gspo", tokens_start=1.0)
    _, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert gradient.any(1).sum() == 3  # a quarter of 11, rounded up


def test_a_share_that_is_none():
    with pytest.raises(UsageError, match=r"DualSelection.tokens_start is 20; it is a share"):
        make("d3s", tokens_start=20)
