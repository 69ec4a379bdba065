"""Card: rlvr_core.md, bapo-balanced."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.methods.rlvr.bapo_balanced import BoundSearch
from upslope.parts.aggregate import TokenMean
from upslope.parts.surrogate import ClippedRatio
from upslope.testing import batch_of, finite_differences, value_and_gradient

CARD_A, CARD_R = [1.0, 1.0, -1.0, -1.0], [1.5, 1.0, 0.7, 1.2]


def card_batch(old=-0.5):
    old_logp = torch.full((4, 1), old, dtype=torch.float64)
    logp = old_logp + torch.tensor(CARD_R, dtype=torch.float64).log().unsqueeze(1)
    return Batch(logp=logp, old_logp=old_logp, advantage=torch.tensor(CARD_A, dtype=torch.float64))


def off_policy(seed=5, lengths=None):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1], [0, 0, 1]], seed=seed, lengths=lengths)
    return batch.replace(old_logp=batch.logp + 0.6 * (batch.entropy - 0.8))


@pytest.mark.parametrize(("low", "high", "share"), [(0.6, 1.2, 0.53659), (0.6, 1.6, 0.56818), (0.9, 1.2, 0.51163)])
def test_card_shares(low, high, share):
    """Raising the upper bound raises the share, raising the lower one lowers it. Equal mu cancel."""
    for weighted in (True, False):
        part = BoundSearch(target=0, low_start=low, high_start=high, weighted=weighted)
        assert part(card_batch())["positive_share"].tolist() == pytest.approx([share] * 4, abs=5e-6)


def numpy_search(batch, advantage, target, weighted=True, form="share", released=False, measure="value"):
    """Bounds and share, by a loop that raises one bound at a time."""
    mask = batch.mask.numpy()
    a, old = advantage.numpy()[mask], batch.old_logp.numpy()[mask]
    r, mu = np.exp(batch.logp.numpy()[mask] - old), np.exp(old) if weighted else 1.0
    low, high, low_end, high_end, low_step = (0.6, 1.2, 0.8, 2.0, 0.05) if released else (0.6, 1.2, 0.9, 3.0, 0.02)
    while True:
        inner = np.where(a > 0, r <= high, r >= low) if measure == "gradient" else 1.0
        value = mu * inner * np.abs(np.minimum(r * a, np.clip(r, low, high) * a))
        p, n = value[a > 0].sum(), value[a < 0].sum()
        if (p / (p + n) if form == "share" else p / n) >= target:
            return low, high, p / (p + n)
        can_low, can_high = low < low_end - 1e-9, high < high_end - 1e-9
        if can_low and (released or not can_high):
            low = min(low + low_step, low_end)
        elif can_high:
            high = min(high + 0.05, high_end)
        else:
            return low, high, p / (p + n)


@pytest.mark.parametrize("target", [0.0, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 1.0])
@pytest.mark.parametrize("measure", ["value", "gradient"])
def test_the_search_equals_numpy(target, measure):
    for seed in range(6):
        batch = off_policy(seed)
        prepared = make("bapo_balanced", target=target, measure=measure).prepare(batch)
        found = [float(getattr(prepared, name)[0]) for name in ("ratio_low", "ratio_high", "positive_share")]
        assert found == pytest.approx(numpy_search(batch, prepared.advantage, target, measure=measure))


@pytest.mark.parametrize("target", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_the_released_search_raises_the_lower_bound_first(target):
    ends = set()
    for seed in range(6):
        batch = off_policy(seed)
        prepared = make("bapo_balanced@released", target=target).prepare(batch)
        found = [float(getattr(prepared, name)[0]) for name in ("ratio_low", "ratio_high", "positive_share")]
        expected = numpy_search(batch, prepared.advantage, target, weighted=False, form="ratio", released=True)
        assert found == pytest.approx(expected)
        ends.add(tuple(found[:2]))
    assert target in (0.5, 2.0) or len(ends) > 1


def test_order_of_the_search():
    settings = {"low_start": 0.6, "low_end": 0.65, "low_step": 0.02, "high_end": 1.3, "high_step": 0.05}
    assert list(BoundSearch(**settings).bounds()) == [
        (0.6, 1.2), (0.6, 1.25), (0.6, 1.3), (0.62, 1.3), (0.64, 1.3), (0.65, 1.3),
    ]  # fmt: skip
    assert list(BoundSearch(**settings, first="low").bounds()) == [
        (0.6, 1.2), (0.62, 1.2), (0.64, 1.2), (0.65, 1.2), (0.65, 1.25), (0.65, 1.3),
    ]  # fmt: skip


def test_raising_the_lower_bound_raises_the_share_of_gradients_only():
    def share(low, measure):
        part = BoundSearch(target=0, low_start=low, measure=measure)
        return float(part(card_batch())["positive_share"][0])

    assert share(0.9, "value") < share(0.6, "value")
    assert share(0.9, "gradient") > share(0.6, "gradient")


def numpy_loss(advantage, old_logp, mask, logp, low, high):
    a, r = advantage.numpy()[mask], np.exp(logp - old_logp.numpy())[mask]
    return np.mean(np.maximum(-a * r, -a * np.clip(r, low, high)))


def test_value_and_gradient_with_the_bounds_held_constant():
    batch, recipe = off_policy(), make("bapo_balanced", target=0.5)
    prepared = recipe.prepare(batch)
    low, high, _ = numpy_search(batch, prepared.advantage, 0.5)
    assert high > 1.2

    def at(logp):
        return numpy_loss(prepared.advantage, batch.old_logp, batch.mask.numpy(), logp, low, high)

    loss, gradient = value_and_gradient(recipe, prepared)
    assert float(loss) == pytest.approx(at(batch.logp.numpy()))
    expected = finite_differences(at, batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [({"target": 0.0}, (0.6, 1.2)), ({"target": 1.0, "low_end": 0.6, "high_end": 1.2}, (0.6, 1.2))],
    ids=["target 0", "nothing to raise"],
)
def test_fixed_bounds_are_a_plain_clip(settings, bounds):
    batch = off_policy()
    plain = make("grpo", regularizer=None, aggregate=TokenMean(), surrogate=ClippedRatio(*bounds))
    results = [value_and_gradient(r, r.prepare(batch)) for r in (make("bapo_balanced", **settings), plain)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_on_policy_it_is_grpo_without_kl_and_with_a_token_mean():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    for name in ("bapo_balanced", "bapo_balanced@released"):
        ours, theirs = make(name, target=1.0), make("grpo", regularizer=None, aggregate=TokenMean())
        (_, one), (_, other) = (value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs))
        torch.testing.assert_close(one, other)


def test_batches_of_one_sign():
    batch = card_batch()
    for advantage, bounds, share in ((1.0, (0.6, 1.2), 1.0), (-1.0, (0.9, 3.0), 0.0), (0.0, (0.6, 1.2), 0.0)):
        found = BoundSearch()(batch.replace(advantage=torch.full((4,), advantage, dtype=torch.float64)))
        values = [float(found[name][0]) for name in ("ratio_low", "ratio_high", "positive_share")]
        assert values == pytest.approx([*bounds, share])


def test_statistics_are_the_mini_batchs_bounds_and_share():
    recipe, batch = make("bapo_balanced", target=0.5), off_policy()
    prepared = recipe.prepare(batch)
    _, stats = recipe.loss(prepared)
    for name in ("ratio_low", "ratio_high", "positive_share"):
        assert float(stats[f"clip/{name}"]) == pytest.approx(float(getattr(prepared, name)[0]))


def test_defaults_and_impossible_ranges():
    assert make("bapo_balanced").control == BoundSearch(0.4, 0.6, 0.9, 0.02, 1.2, 3.0, 0.05)
    assert make("bapo_balanced@released").surrogate.dual == 3.0
    with pytest.raises(UsageError, match="leaves out 1"):
        make("bapo_balanced", low_end=1.1)
    with pytest.raises(UsageError, match=r"raises the high bound from high_start=1\.2 to high_end=1\.1"):
        make("bapo_balanced", high_end=1.1)
