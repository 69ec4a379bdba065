"""GroupBaseline and whiten against NumPy, on ragged groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope import UsageError
from upslope.parts.advantage import GroupBaseline, group_std, split_groups, whiten
from upslope.testing import batch_of

GROUPS = st.lists(st.lists(st.sampled_from([0.0, 0.25, 1.0, -2.0]), min_size=1, max_size=5), min_size=1, max_size=4)


def by_group(groups, baseline, scale, eps):
    found = []
    for rewards in map(np.array, groups):
        n = len(rewards)
        if n < 2:
            found += [0.0] * n
            continue
        others = np.array([np.delete(rewards, i).mean() for i in range(n)])
        centered = rewards - (others if baseline == "leave_one_out" else rewards.mean())
        spread = {"sample_std": rewards.std(ddof=1), "population_std": rewards.std(), None: None}[scale]
        found += list(centered if spread is None else centered / (spread + eps))
    return np.array(found)


@given(GROUPS, st.sampled_from(["mean", "leave_one_out"]), st.sampled_from(["sample_std", "population_std", None]))
def test_equals_numpy(groups, baseline, scale):
    part = GroupBaseline(baseline=baseline, scale=scale, eps=1e-3)
    np.testing.assert_allclose(part(batch_of(groups)), by_group(groups, baseline, scale, 1e-3), atol=1e-12)


STUDY = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.25]]


@pytest.mark.parametrize(
    ("baseline", "scale"), [("mean", "batch_std"), ("batch_mean", "batch_std"), ("batch_mean", None)]
)
def test_statistics_of_the_batch(baseline, scale):
    rewards, group = np.concatenate(STUDY), np.repeat([0, 1, 2], [4, 4, 1])
    own = np.array([rewards[group == g].mean() for g in group])
    spread = 1.0 if scale is None else rewards.std(ddof=1) + 1e-3
    expected = (rewards - (own if baseline == "mean" else rewards.mean())) / spread
    part = GroupBaseline(baseline=baseline, scale=scale, eps=1e-3)
    np.testing.assert_allclose(part(batch_of(STUDY)), expected, atol=1e-12)


def test_groups_are_not_read_where_the_statistics_are_the_batchs():
    part = GroupBaseline(baseline="batch_mean", scale="batch_std")
    part(batch_of(STUDY).only(part.needs))
    assert part.needs == {"reward"}
    assert GroupBaseline(scale="batch_std").needs == {"reward", "group"}


def test_the_batchs_mean_over_a_groups_spread_is_refused():
    with pytest.raises(UsageError, match=r"scale='sample_std'\) divides by 0 .* Use scale='batch_std'"):
        GroupBaseline(baseline="batch_mean", scale="sample_std")


def test_failed_rewards_are_in_no_statistic_of_the_batch():
    part = GroupBaseline(baseline="batch_mean", scale="batch_std")
    batch = batch_of([[1.0, 0.0], [1.0, 9.0]])
    kept = batch.select(np.array([0, 1, 2]))
    failed = batch.replace(valid=[True, True, True, False])
    np.testing.assert_allclose(part(failed)[:3], part(kept))


def test_split_groups_and_their_deviation():
    batch = split_groups(batch_of([[1, 3, 5, 9], [2, 2]]), batch_of([[0, 0, 1, 0], [1, 1]]).reward.long())
    assert batch.group.tolist() == [0, 0, 1, 0, 2, 2]
    np.testing.assert_allclose(group_std(batch, batch.reward), [np.std([1, 3, 9], ddof=1), 0, 0])


def test_lone_completion_keeps_its_reward_on_request():
    batch = batch_of([[3.0], [1.0, 0.0]])
    np.testing.assert_allclose(GroupBaseline(scale=None, lone="reward")(batch), [3, 0.5, -0.5])
    np.testing.assert_allclose(GroupBaseline(scale=None)(batch), [0, 0.5, -0.5])


@pytest.mark.parametrize("eps", [1e-8, 0.5])
def test_whiten_over_the_trained_tokens(eps):
    batch = batch_of([[1, 0, 0], [1, 1]], lengths=[3, 1, 4, 2, 2])
    values = batch.entropy[batch.mask].numpy()
    found = whiten(batch, batch.entropy, eps)
    np.testing.assert_allclose(found[batch.mask], (values - values.mean()) / np.sqrt(values.var(ddof=1) + eps))
    assert not found[~batch.mask].any()


def test_whiten_one_token_is_zero():
    batch = batch_of([[1.0]], lengths=[1])
    assert whiten(batch, batch.entropy).tolist() == [[0.0]]
