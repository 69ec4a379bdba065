"""Card: offline_imitation.md, bc (its %BC). Whole runs: tests/actor_critic/test_log_hooks.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope import UsageError, diff, make
from upslope.actor_critic.log import Log


def log_of(episodes):
    """A log with these rewards, one list per episode; the observation is the step's own number."""
    reward = np.concatenate([np.asarray(rewards, np.float32) for rewards in episodes])
    last = np.concatenate([np.arange(len(rewards)) == len(rewards) - 1 for rewards in episodes]).astype(np.float32)
    place = np.arange(len(reward), dtype=np.float32)[:, None]
    return Log(place, np.zeros_like(place), reward, np.zeros_like(last), last, place + 1)


def kept(episodes, **settings):
    return np.flatnonzero(make("percent_bc", **settings).selection(log_of(episodes))).tolist()


def test_card_default_keeps_the_best_tenth():
    episodes = [[float(value)] for value in [3, 9, 1, 4, 8, 0, 2, 7, 6, 5, 11, 10, 12, 13, 14, 15, 16, 17, 19, 18, -1]]
    assert kept(episodes) == [18, 19]  # floor(0.1 * 21) = 2
    assert kept(episodes[:5]) == [1]  # at least one


def test_returns_are_discounted_and_of_whole_episodes():
    late, early = [0.0] * 50 + [1.5], [1.0]  # 0.99^50 * 1.5 = 0.91
    assert kept([late, early], share=0.5) == [1]
    assert kept([late, early], share=0.5, discount=1.0) == [0]
    chosen = log_of([[1.0, 2.0], [5.0, 5.0, 5.0], [0.0]])
    weight = make("percent_bc").selection(chosen)[chosen.episode]
    found = chosen.at(weight > 0)
    assert found.observation[:, 0].tolist() == [2, 3, 4]
    assert found.last.tolist() == [False, False, True]


@given(
    st.lists(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=4), min_size=1, max_size=12),
    st.floats(0.01, 1),
)
def test_none_left_out_is_better_than_one_kept(episodes, share):
    returns = np.array([sum(r * 0.99**t for t, r in enumerate(rewards)) for rewards in episodes])
    chosen = kept(episodes, share=share)
    assert len(chosen) == max(1, int(share * len(episodes) + 1e-9))
    left = np.setdiff1d(np.arange(len(episodes)), chosen)
    if len(left):
        assert returns[chosen].min() >= returns[left].max() - 1e-6


def test_it_is_bc_with_one_more_part():
    assert diff("percent_bc", "bc").splitlines() == [
        "selection",
        "  percent_bc: BestEpisodes(share=0.1, discount=0.99)",
        "  bc: None",
    ]
    assert make("percent_bc").replace(selection=None).parts() == make("bc").parts()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_that_is_none(share):
    with pytest.raises(UsageError, match=r"selection.share is .* above 0 and at most 1"):
        make("percent_bc", share=share)
