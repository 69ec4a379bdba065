"""GroupBaseline and whiten against NumPy, on ragged groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.parts.advantage import GroupBaseline, whiten
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
