"""Card: rlvr_core.md, gtpo-trajectory."""

import math

import numpy as np
import pytest
import torch

from upslope import make
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import SequenceMean
from upslope.testing import batch_of, value_and_gradient

ENTROPY = (0.3, 0.5, 0.4, 0.8)  # of the card's four completions


def card_batch(**columns):
    entropy = [[h] * 3 for h in ENTROPY]
    return batch_of([[1, 0, 0, 0]], lengths=[3] * 4, **{"entropy": entropy, **columns})


def prepared(batch, name="gtpo_trajectory", **settings):
    recipe = make(name, **settings)
    return recipe.credit(batch, recipe.init())[0]


def test_card_advantages():
    np.testing.assert_allclose(prepared(card_batch()).advantage[:, 0], [0.72, -0.30, -0.29, 0], atol=1e-9)
    np.testing.assert_allclose(prepared(card_batch(), limit=None).advantage[:, 0], [0.72, -0.30, -0.29, -0.33])
    recipe = make("gtpo_trajectory")
    assert (recipe.advantage.penalty, recipe.advantage.limit, recipe.weight.amplify) == (0.1, math.log(2), 2.0)


def test_the_limit_holds_where_the_first_steps_entropy_was_below_it():
    recipe, calm = make("gtpo_trajectory"), card_batch()
    wild = card_batch(entropy=[[h + 0.5] * 3 for h in ENTROPY])
    assert float(wild.entropy.mean()) > math.log(2)
    state = recipe.init()
    for batch, filtered in ((wild, 0), (calm, 0)):
        credited, state = recipe.credit(batch, state)
        assert (credited.advantage[:, 0] == 0).sum() == filtered
    assert state["advantage"] == {"steps": 2, "first_entropy": pytest.approx(1.0)}
    state = recipe.init()
    for batch, filtered in ((calm, 1), (wild, 4), (calm, 1)):
        before = dict(state)
        credited, after = recipe.credit(batch, state)
        assert (credited.advantage[:, 0] == 0).sum() == filtered
        assert state == before
        state = after
    assert state["advantage"]["first_entropy"] == pytest.approx(0.5)
    always = prepared(wild, judge="always")
    assert not always.advantage.any()


TOKENS = [
    [1, 2, 3, 4, 5],  # good
    [1, 2, 9, 4, 5],  # bad; the same beginning and end
    [1, 7, 8, 5, 0],  # bad, four tokens; from the end: 5, then 8 where the good one has 4
    [6, 2, 3, 4, 5],  # good; nothing shared from the start
]


def test_weights_of_conflict_tokens():
    batch = batch_of([[1, 0, 0, 1]], lengths=[5, 5, 4, 5]).replace(tokens=TOKENS)
    expected = [[2, 2, 1, 2, 2], [0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 2, 2]]
    weight = prepared(batch).weight
    assert (weight * batch.mask).tolist()[:2] == expected[:2]
    assert weight[2, :4].tolist() == expected[2][:4]
    assert weight[3].tolist() == expected[3]
    released = prepared(batch, "gtpo_trajectory@released").weight
    assert released[0].tolist() == [0.5, 0.5, 0.25, 0.5, 0.5]  # over four conflict tokens


def numpy_weight(batch, both="once"):
    """By comparing every completion with every other of its group, token by token."""
    reward, group, tokens = (getattr(batch, name).tolist() for name in ("reward", "group", "tokens"))
    rows = [row[: int(n)] for row, n in zip(tokens, batch.length, strict=True)]
    a = [
        r - np.mean([q for q, h in zip(reward, group, strict=True) if h == g])
        for r, g in zip(reward, group, strict=True)
    ]
    found = np.ones(batch.mask.shape)
    for i, row in enumerate(rows):
        rivals = [rows[j] for j in range(len(rows)) if group[j] == group[i] and a[i] * a[j] < 0]
        runs = []
        for step in (1, -1):
            count = 0
            while count < len(row) and any(len(o) > count and o[::step][count] == row[::step][count] for o in rivals):
                count += 1
            runs.append({t if step == 1 else len(row) - 1 - t for t in range(count)})
        for t in runs[0] | runs[1]:
            times = (t in runs[0]) + (t in runs[1]) if both == "product" else 1
            found[i, t] = 2.0**times if a[i] > 0 else 0.0
    return found, np.array(a)


@pytest.mark.parametrize("both", ["once", "product"])
@pytest.mark.parametrize("seed", range(8))
def test_value_and_gradient_on_few_tokens(seed, both):
    rewards = [[1, 0, 0, 1, 0.4], [1, 0, 1], [0.1, 0.1], [0, 1, 0, 0]]
    batch = batch_of(rewards, seed=seed)
    batch = batch.replace(tokens=batch.tokens % 2)
    weight, a = numpy_weight(batch, both)
    assert ((weight != 1) & batch.mask.numpy()).any()
    assert both == "once" or seed > 0 or (weight == 4).any()
    length, mask = batch.length.numpy(), batch.mask.numpy()
    advantage = a - 0.1 * batch.entropy.numpy().sum(1) / length
    share = -weight * advantage[:, None] * mask / length[:, None] / len(a)
    recipe = make("gtpo_trajectory", limit=None, both=both)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx((share * batch.logp.numpy()).sum())
    np.testing.assert_allclose(gradient, share, atol=1e-12)


def test_without_shared_runs_penalty_and_limit_it_is_reinforce_with_the_groups_mean():
    base = make("reinforce", advantage=GroupBaseline(scale=None), aggregate=SequenceMean())
    distinct = card_batch().replace(tokens=torch.arange(12).view(4, 3))
    one_sided = batch_of([[1, 1, 1], [0, 0]], lengths=[3] * 5).replace(tokens=[[1, 2, 3]] * 5)
    for batch in (distinct, one_sided):
        ours = make("gtpo_trajectory", penalty=0.0, limit=None)
        results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, base)]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def test_a_wrapper_that_all_share_is_never_made_less_likely():
    """<answer> X </answer> around three wrong answers and a right one."""
    tokens = [[8, 9, answer, 10, 11] for answer in (1, 2, 3, 4)]
    batch = batch_of([[1, 0, 0, 0]], lengths=[5] * 4).replace(tokens=tokens)
    recipe = make("gtpo_trajectory", penalty=0.0, limit=None)
    _, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    wrapper = gradient[:, [0, 1, 3, 4]]
    assert (wrapper[0] < 0).all()
    assert not wrapper[1:].any()
    assert (gradient[1:, 2] > 0).all()


def test_text_of_a_tool_between_does_not_shift_positions():
    mask = [[True, False, True, True], [True, True, True, False]]
    batch = batch_of([[1, 0]], lengths=[4, 4], mask=mask).replace(tokens=[[1, 5, 2, 3], [1, 2, 4, 0]])
    assert (prepared(batch).weight * batch.mask).tolist() == [[2, 0, 2, 1], [0, 0, 1, 0]]


def test_a_reward_at_its_groups_mean_is_on_neither_side():
    batch = batch_of([[0.1, 0.2, 0.3]], lengths=[2] * 3).replace(tokens=[[1, 2], [1, 3], [1, 4]])
    assert prepared(batch).weight.tolist() == [[0, 1], [1, 1], [2, 1]]
