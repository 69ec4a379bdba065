"""Card: offline_imitation.md, harness-tw. Whole runs: tests/actor_critic/test_log_hooks.py."""

import numpy as np
import pytest

from upslope import UsageError, diff, make
from upslope.actor_critic.log import Log

CARD = ((0.0, 4), (50.0, 2), (100.0, 2))  # return, length


def log_of(episodes, first=None):
    """A log of episodes (return, length), the reward on the last step; `first` observations [episodes, O], else their number."""
    lengths = [length for _, length in episodes]
    last = np.concatenate([np.arange(length) == length - 1 for length in lengths]).astype(np.float32)
    reward = last * np.repeat([total for total, _ in episodes], lengths).astype(np.float32)
    first = np.arange(len(episodes), dtype=np.float32)[:, None] if first is None else np.asarray(first, np.float32)
    observation = np.repeat(first, lengths, 0)
    begin = np.cumsum([0, *lengths[:-1]])
    later = np.setdiff1d(np.arange(len(reward)), begin)
    observation[later] = 77.0  # only the first one of an episode is read
    return Log(observation, np.zeros((len(reward), 1), np.float32), reward, np.zeros_like(last), last, observation)


def chances(episodes, first=None, **settings):
    """p of a transition of each episode."""
    log = log_of(episodes, first)
    settings = {f"selection.{name}": value for name, value in settings.items()}
    weight = make("harness_tw", **settings).selection(log)
    return weight / weight[log.episode].sum()


def test_card_numbers():
    p = chances(CARD, by="return")
    np.testing.assert_allclose(p, [2.3e-5, 3.346e-3, 0.496609], atol=5e-7, rtol=0)
    mass = p * [4, 2, 2]
    np.testing.assert_allclose(mass, [9.0e-5, 0.006692, 0.993218], rtol=5e-3)
    assert mass @ [0, 50, 100] == pytest.approx(99.656, abs=5e-4)
    uniform = chances(CARD, by="return", alpha=float("inf")) * [4, 2, 2]
    assert uniform @ [0, 50, 100] == pytest.approx(37.5)
    assert make("harness_tw").selection.alpha == 0.1


def test_a_constant_added_to_all_returns_changes_nothing():
    moved = [(total - 730.0, length) for total, length in CARD]
    np.testing.assert_allclose(chances(moved, by="return"), chances(CARD, by="return"), rtol=1e-9)


def test_the_advantage_is_over_a_linear_regression_on_the_first_observation():
    rng = np.random.default_rng(0)
    place, returns, lengths = rng.normal(size=9), rng.normal(size=9) * 20, rng.integers(1, 5, 9)
    slope, intercept = np.polyfit(place.astype(np.float32), returns.astype(np.float32), 1)
    advantage = returns - slope * place - intercept
    x = (advantage - advantage.min()) / (advantage.max() - advantage.min())
    expected = np.exp(x / 0.1) / (lengths * np.exp(x / 0.1)).sum()
    episodes = list(zip(returns.tolist(), lengths.tolist(), strict=True))
    np.testing.assert_allclose(chances(episodes, place[:, None]), expected, rtol=1e-4)


def test_what_the_first_observation_explains_is_no_merit():
    """Returns that are a linear function of where the episode begins: all episodes count alike, although returns differ."""
    first = np.random.default_rng(1).normal(size=(12, 3))
    episodes = [(float(total), 2) for total in first.astype(np.float32) @ np.array([1, -2, 3], np.float32) + 5]
    p = chances(episodes, first)
    np.testing.assert_allclose(p, p[0])  # what is left is float32's rounding of rewards, which is no merit either
    assert np.ptp(chances(episodes, first, by="return")) > 0.1


def test_equal_returns_count_alike():
    np.testing.assert_allclose(chances([(3.0, 2)] * 4, by="return"), 1 / 8)
    np.testing.assert_allclose(chances([(0.0, 2)] * 4), 1 / 8)


def test_a_small_alpha_leaves_the_best_episode_alone():
    np.testing.assert_allclose(chances(CARD, by="return", alpha=1e-4), [0, 0, 0.5])


def test_it_is_td3_bc_drawn_otherwise():
    assert diff("harness_tw", "td3_bc").splitlines() == [
        "selection",
        "  harness_tw: WeightedEpisodes(alpha=0.1, by='advantage')",
        "  td3_bc: None",
    ]
    assert make("iql", selection="harness_tw").selection == make("trajectory_weighting").selection


def test_wrong_settings_and_logs():
    with pytest.raises(UsageError, match=r"selection.alpha is 0.0; it must be above 0"):
        make("harness_tw", **{"selection.alpha": 0.0})
    with pytest.raises(UsageError, match=r"has 3 episodes, .* the 3 numbers .* at least 5. Set selection.by=return"):
        chances(CARD, np.zeros((3, 3)))
