"""Card: rlvr_core.md, polychromic-ppo."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.parts.sets import SetAdvantage, set_scores
from upslope.testing import batch_of, finite_differences, value_and_gradient

ANSWERS = [0, 0, 1, 2, 0, 1, 1, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("rewards", "answers", "score"),
    [
        ([1, 1], [7, 7], 0),
        ([1, 0], [7, 8], 0.5),
        ([1, 1], [7, 8], 1),
        ([1], [7], 1),
        ([0], [7], 0),
        ([1, 1, 0, 0], [7, 7, 7, 8], 0.25),
        ([1, 0.5, 0, 0], [7, 8, 9, 10], 0.375),
    ],
)
def test_card_set_scores(rewards, answers, score):
    batch = batch_of([rewards, [1.0, 0.0]], answer=[*answers, 7, 7])
    np.testing.assert_allclose(set_scores(batch, torch.ones(len(batch), dtype=torch.bool)), [score, 0])
    if len(rewards) > 2:
        some = torch.tensor([True, False, False, True] + [False] * 2)
        np.testing.assert_allclose(set_scores(batch, some), [(rewards[0] + rewards[3]) / 2, 0])


def numpy_score(reward, answer):
    distinct = len(set(answer))
    return np.mean(reward) * (0 if distinct == 1 and len(answer) > 1 else distinct / len(answer))


def numpy_loss(batch, logp, sets):
    """One clipped loss per set and member; `sets` are lists of rows per prompt."""
    reward, group, mask, old, answer = (
        getattr(batch, name).numpy() for name in ("reward", "group", "mask", "old_logp", "answer")
    )
    total = 0.0
    for g, drawn in sets.items():
        scores = [numpy_score(reward[rows], answer[rows]) for rows in drawn]
        pairs = sum(len(rows) for rows in drawn)
        for rows, score in zip(drawn, scores, strict=True):
            a = score - np.mean(scores)
            for i in rows:
                r = np.exp(logp[i] - old[i])[mask[i]]
                token = np.maximum(-a * r, -a * np.clip(r, 0.8, 1.2))
                total += token.mean() * (group == g).sum() / pairs
    for i in range(len(reward)):
        r = np.exp(logp[i] - old[i])[mask[i]]
        total += 0.005 * (r - 1 - np.log(r)).mean()
    return total / len(reward)


def test_value_and_gradient_off_policy():
    batch = batch_of([[1, 0, 1, 0.5, 0, 1], [1, 0, 1, 1, 0]], seed=5, answer=ANSWERS)
    batch = batch.replace(old_logp=batch.logp + 0.5 * (batch.entropy - 0.8))
    recipe = make("polychromic_ppo", sets=5, size=3)
    draws = [recipe.advantage.draw(batch, 0, j) for j in range(5)]
    sets = {g: [(drawn & (batch.group == g)).nonzero().squeeze(1).numpy() for drawn in draws] for g in (0, 1)}
    assert all(len(rows) == 3 for drawn in sets.values() for rows in drawn)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), sets))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, sets), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)
    assert np.abs(expected).max() > 0.01


def test_opposite_sets_are_clipped_apart():
    batch = batch_of([[1.0, 1.0]], lengths=[1, 1])
    above = batch.replace(old_logp=batch.logp - 0.5, set_gains=[1.0, 1.0], set_losses=[-1.0, -1.0])
    per = make("polychromic_ppo").surrogate(above)
    np.testing.assert_allclose(per, np.exp(0.5) - 1.2)  # the gain is clipped, the loss is not


def test_defaults():
    recipe = make("polychromic_ppo")
    assert recipe.advantage == SetAdvantage(sets=4, size=4)
    assert (recipe.rollout.group_size, recipe.update.epochs, recipe.regularizer.beta) == (8, 2, 0.005)


def test_sets_of_one_expect_the_mean_baseline():
    rewards = [1.0, 0.0, 0.25, 1.0]
    batch = batch_of([rewards], answer=[0, 0, 0, 0])
    advantage = make("polychromic_ppo", sets=600, size=1).prepare(batch).advantage[:, 0]
    np.testing.assert_allclose(advantage, np.array(rewards) - np.mean(rewards), atol=0.1)


def test_every_completion_is_drawn_equally_often_and_pairs_too():
    batch, part = batch_of([[1.0] * 5, [0.0] * 3]), SetAdvantage(size=2)
    drawn = torch.stack([part.draw(batch, step, j) for step in range(100) for j in range(4)]).double()
    assert (drawn[:, :5].sum(1) == 2).all()
    assert (drawn[:, 5:].sum(1) == 2).all()
    together = drawn.T @ drawn / 400
    np.testing.assert_allclose(together.diagonal(), [0.4] * 5 + [2 / 3] * 3, atol=0.08)
    np.testing.assert_allclose(together[:5, :5][~torch.eye(5, dtype=torch.bool)], 0.1, atol=0.05)


def test_steps_draw_anew_and_resume_where_they_were():
    recipe, batch = make("polychromic_ppo", size=2), batch_of([[1, 0, 1, 0.5, 0, 1], [1, 0, 1, 1, 0]], answer=ANSWERS)
    first, after = recipe.prepare(batch, recipe.init())
    second, later = recipe.prepare(batch, after)
    again, _ = recipe.prepare(batch, after)
    assert (after, later) == ({"advantage": {"step": 1}}, {"advantage": {"step": 2}})
    assert not torch.equal(first.advantage, second.advantage)
    assert torch.equal(second.advantage, again.advantage)


def test_a_failed_completion_is_in_no_set():
    batch = batch_of([[1.0, 0.0, 1.0]], valid=[True, False, True])
    for step in range(20):
        assert SetAdvantage(size=2).draw(batch, step, 0).tolist() == [True, False, True]


def test_small_groups_have_no_advantage():
    assert not make("polychromic_ppo").prepare(batch_of([[1, 0, 0, 1], [1, 0]])).advantage.any()


def test_rewards_out_of_range_are_refused():
    with pytest.raises(UsageError, match=r"SetAdvantage needs rewards in \[0, 1\], but row 1"):
        make("polychromic_ppo").prepare(batch_of([[1.0, -1.0]]))
    with pytest.raises(UsageError, match="both must be at least 1"):
        make("polychromic_ppo", sets=0)
