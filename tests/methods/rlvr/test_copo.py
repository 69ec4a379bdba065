"""Card: rlvr_core.md, copo. Half of the prompts below have rewards that are all equal, where grpo learns nothing."""

from collections import Counter
from math import exp, log

import numpy as np
import pytest
import torch

from upslope import make
from upslope.testing import batch_of, finite_differences, value_and_gradient

REWARDS = [[1, 0, 0, 1], [0, 0, 0], [1, 1], [0.5, 0, 1, 0]]
ANSWERS = [4, 1, 2, 4, 7, 7, 7, 3, 3, 1, 5, 6, 8]


def prepared(rewards, answers, **settings):
    return make("copo", **settings).prepare(batch_of(rewards, answer=answers))


def test_defaults():
    recipe = make("copo")
    assert (recipe.advantage.gamma, recipe.advantage.rho, recipe.rollout.group_size) == (20.0, 1.5, 6)
    assert (recipe.surrogate.ratio_low, recipe.surrogate.ratio_high, recipe.surrogate.dual) == (0.8, 1.2, None)
    assert recipe.regularizer is None


@pytest.mark.parametrize(("entropy", "share"), [(1.0, 4.5e-5), (1.5, 0.5), (log(6), 0.997)])
def test_card_shares(entropy, share):
    """Answers of six completions, all distinct (ln 6 = 1.79): rho is moved so that H - rho is the card's."""
    found = prepared([[1, 0, 0, 0, 0, 0]], [0, 1, 2, 3, 4, 5], rho=1.5 + log(6) - entropy).local_share
    np.testing.assert_allclose(found, share, rtol=0.01)


def test_card_global_advantage():
    batch = prepared([[1, 1], [0, 0], [1, 0]], [0] * 6)
    np.testing.assert_allclose(batch.global_advantage, [1, 1, -1, -1, 0, 0], atol=3e-6)
    assert not batch.advantage[:4].any()  # a prompt that is always wrong: only M speaks, and says no
    alone = prepared([[1, 0, 1]], [0, 1, 2])
    assert not alone.global_advantage.any()


def numpy_columns(reward, group, answer, gamma=20.0, rho=1.5):
    prompts = np.unique(group)
    means = np.array([reward[group == q].mean() for q in prompts])
    overall = (means - means.mean()) / (means.std(ddof=1) + 1e-6)
    local, share = [], []
    for i, q in enumerate(group):
        mates = reward[group == q]
        local.append((reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6))
        shares = np.array(list(Counter(answer[group == q]).values())) / (group == q).sum()
        share.append(1 / (1 + exp(-gamma * (-(shares * np.log(shares)).sum() - rho))))
    return np.array(local), overall[group], np.array(share)


def columns_of(batch, **settings):
    return numpy_columns(batch.reward.numpy(), batch.group.numpy(), batch.answer.numpy(), **settings)


def test_columns():
    batch = batch_of(REWARDS, answer=ANSWERS)
    found = make("copo", gamma=2.0, rho=0.8).prepare(batch)
    local, overall, share = columns_of(batch, gamma=2.0, rho=0.8)
    np.testing.assert_allclose(found.advantage[:, 0], local)
    np.testing.assert_allclose(found.global_advantage, overall)
    np.testing.assert_allclose(found.local_share, share)
    assert len(set(share.round(6))) == 3


def test_value_and_gradient_off_policy():
    batch = batch_of(REWARDS, seed=5, answer=ANSWERS)
    batch = batch.replace(old_logp=batch.logp + 0.5 * (batch.entropy - 0.8))
    mask, old = batch.mask.numpy(), batch.old_logp.numpy()
    local, overall, share = (column[:, None] for column in columns_of(batch, gamma=2.0, rho=0.8))

    def loss_of(logp):
        ratio = np.exp(logp - old)
        first, second = (np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2)) for a in (local, overall))
        return np.mean(((share * first + (1 - share) * second) * mask).sum(1) / mask.sum(1))

    recipe = make("copo", gamma=2.0, rho=0.8)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_of(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_of, batch.logp.numpy()) * mask, atol=1e-8)


@pytest.mark.parametrize(
    ("rho", "advantage"), [(-10.0, lambda batch: batch.advantage), (10.0, lambda batch: batch.global_advantage)]
)
def test_one_loss_alone_is_the_clip_of_its_advantage(rho, advantage):
    batch = batch_of(REWARDS, answer=ANSWERS)
    batch = batch.replace(old_logp=batch.logp + 0.5 * (batch.entropy - 0.8))
    recipe, grpo = make("copo", rho=rho), make("grpo", regularizer=None)
    ours = recipe.prepare(batch)
    theirs = grpo.prepare(batch).replace(advantage=advantage(ours))
    for one, other in zip(value_and_gradient(recipe, ours), value_and_gradient(grpo, theirs), strict=True):
        torch.testing.assert_close(one, other)


def test_all_local_is_grpo_without_kl():
    batch = batch_of(REWARDS, answer=ANSWERS)
    results = [
        value_and_gradient(recipe, recipe.prepare(batch))
        for recipe in (make("copo", rho=-10.0), make("grpo", regularizer=None))
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_names_of_answers_do_not_matter_and_prompts_do_not_share_them():
    renamed = [100 - answer for answer in ANSWERS]
    shared = [{4: 0, 1: 1, 2: 2, 7: 0, 3: 0}.get(answer, answer) for answer in ANSWERS[:9]] + ANSWERS[9:]
    expected = prepared(REWARDS, ANSWERS, gamma=2.0).local_share
    for answers in (renamed, shared):
        np.testing.assert_allclose(prepared(REWARDS, answers, gamma=2.0).local_share, expected)


@pytest.mark.parametrize(
    ("local_for", "kept"),
    [
        ("rewarded", [1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0]),
        ("contrasted", [1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_rows_with_a_share_of_the_local_loss(local_for, kept):
    whole = prepared(REWARDS, ANSWERS, gamma=2.0).local_share
    found = prepared(REWARDS, ANSWERS, gamma=2.0, local_for=local_for).local_share
    np.testing.assert_allclose(found, whole * torch.tensor(kept))


def test_released_measures_entropy_in_bits_and_leaves_wrong_answers_to_the_global_loss():
    batch = make("copo@released").prepare(batch_of([[1, 0, 1, 1], [0, 1]], answer=[0, 1, 2, 3, 0, 1]))
    wide, narrow = 1 / (1 + exp(-5 * (2 - 1))), 0.5
    np.testing.assert_allclose(batch.local_share, [wide, 0, wide, wide, 0, narrow])
    assert make("copo@released").surrogate.dual == 3.0


def test_a_failed_reward_is_no_answer_and_a_failed_prompt_no_prompt():
    batch = batch_of(REWARDS, answer=ANSWERS)
    valid = torch.tensor([True] * 3 + [False] + [True] * 3 + [False] * 2 + [True] * 4)
    part, kept = make("copo", gamma=2.0).advantage, valid.nonzero().squeeze(1)
    failed, without = part(batch.replace(valid=valid)), part(batch.select(kept))
    for name, column in without.items():
        np.testing.assert_allclose(failed[name][kept], column)
