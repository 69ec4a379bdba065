"""Card: rlvr_core.md, high-entropy-20."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import UsageError, make
from upslope.parts.overlong import OverlongPenalty
from upslope.testing import batch_of, finite_differences, value_and_gradient

CARD = [[0.1, 0.2, 0.05, 1.5, 0.9], [0.3, 0.02, 0.7, 0.4, 0.6]]
SHORT = {"max_length": 5, "cache": 3}  # the penalty acts on completions of 3 to 5 tokens


def weight(batch, **settings):
    return make("high_entropy_20", **settings).weight(batch).numpy()


def off_policy(seed=5):
    batch = batch_of([[1, -1, -1, 1], [1, -1, 1]], seed=seed)
    return batch.replace(old_logp=batch.logp + 0.3 * (batch.value - 0.2))


def test_card_numbers():
    batch = batch_of([[1, 0]], lengths=[5, 5], entropy=CARD)
    assert make("high_entropy_20").weight.rho == 0.2
    assert weight(batch).tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert weight(batch, scope="response").tolist() == [[0, 0, 0, 1, 0], [0, 0, 1, 0, 0]]
    recipe = make("high_entropy_20")
    (_, every), (_, kept) = (
        value_and_gradient(r, r.prepare(batch)) for r in (recipe, make("high_entropy_20", denominator="kept"))
    )
    advantage = 0.5**0.5 / (1 + 1e-6 / 0.5**0.5)  # of a group of two
    np.testing.assert_allclose(every, -advantage / 10 * np.array([[0, 0, 0, 1, 1], [0] * 5]), rtol=1e-6)
    torch.testing.assert_close(kept, 5 * every)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.7, 2.0]), min_size=1, max_size=6), min_size=1, max_size=4),
    st.data(),
)
def test_keeps_what_numpy_keeps(rows, data):
    rho = data.draw(st.sampled_from([0.05, 0.2, 0.5, 0.9, 1.0]))
    entropy = np.zeros((len(rows), max(map(len, rows))))
    for index, row in enumerate(rows):
        entropy[index, : len(row)] = row
    batch = batch_of([[1.0] * len(rows)], lengths=[len(row) for row in rows], entropy=entropy)
    limit = np.quantile(np.concatenate(rows), 1 - rho)
    near = 1e-9  # NumPy interpolates with other roundings
    for index, (kept, row) in enumerate(zip(weight(batch, rho=rho), rows, strict=True)):
        for one, h in zip(kept, row, strict=False):
            assert one == (h >= limit) or abs(h - limit) < near
        own = weight(batch, rho=rho, scope="response")[index][: len(row)]
        assert all(
            one == (h >= np.quantile(row, 1 - rho)) or abs(h - np.quantile(row, 1 - rho)) < near
            for one, h in zip(own, row, strict=True)
        )
        assert own.any()


def numpy_loss(batch, logp, denominator):
    reward, group, mask, entropy = (getattr(batch, name).numpy() for name in ("reward", "group", "mask", "entropy"))
    shaped = reward - np.clip((mask.sum(1) - 2) / 3, 0, 1)
    limit = np.quantile(entropy[mask], 0.7)
    total, kept = 0.0, 0
    for i, t in zip(*mask.nonzero(), strict=True):
        mates = shaped[group == group[i]]
        a = (shaped[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        ratio = np.exp(logp[i, t] - float(batch.old_logp[i, t]))
        if entropy[i, t] >= limit:
            total, kept = total + max(-a * ratio, -a * np.clip(ratio, 0.8, 1.28)), kept + 1
    return total / (mask.sum() if denominator == "all" else kept)


@pytest.mark.parametrize("denominator", ["all", "kept"])
def test_value_and_gradient_off_policy(denominator):
    batch = off_policy()
    recipe = make("high_entropy_20", rho=0.3, denominator=denominator, **SHORT)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), denominator))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, denominator), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_all_tokens_is_dapo():
    for settings in ({}, {"denominator": "kept"}, {"scope": "response"}):
        ours, theirs = make("high_entropy_20", rho=1.0, **settings, **SHORT), make("dapo", **SHORT)
        results = [value_and_gradient(r, r.prepare(off_policy())) for r in (ours, theirs)]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def test_the_quantile_is_the_steps_and_the_denominator_the_mini_batchs():
    batch = off_policy()
    recipe = make("high_entropy_20", rho=0.5, denominator="kept", reward=OverlongPenalty(5, 3))
    credited, state = recipe.credit(batch, recipe.init())
    part = credited.select(batch.group == 1)
    scale = recipe.minibatch(part, state)[0].scale_0
    kept = credited.weight[batch.group == 1] != 0
    assert 0 < kept.sum() < credited.weight.sum()
    np.testing.assert_allclose(scale, kept / kept.sum())
    assert credited.weight.sum() == (batch.mask & (batch.entropy >= np.quantile(batch.entropy[batch.mask], 0.5))).sum()


def test_a_share_that_is_none():
    with pytest.raises(UsageError, match=r"TopEntropy.rho is 20; it is a share"):
        make("high_entropy_20", rho=20)
