"""Card: offline_imitation.md, fqe: against values that are known exactly."""

import pytest
import torch

from upslope.diagnostics.fitted import FitSettings, fitted_value
from upslope.errors import UsageError

QUICK = FitSettings(steps=1500, lr=1e-2, hidden=(32,), copy_every=20, batch_size=64, discount=0.9)


def test_the_cards_chain_and_a_policy_that_the_log_did_not_follow():
    """Two steps: r = 1 or 3 by the action, then 2. The log acts at random; the policy always takes action -1, worth 1."""
    action = torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
    state, after = torch.zeros(100, 1), torch.ones(100, 1)
    first = torch.where(action[:, 0] < 0, 1.0, 3.0)
    log = (
        torch.cat([state, after]),
        torch.cat([action, action]),
        torch.cat([first, torch.full((100,), 2.0)]),
        torch.cat([after, after]),
        torch.cat([torch.zeros(100), torch.ones(100)]),
    )
    for choice, wanted in ((-1.0, 2.8), (1.0, 4.8)):
        found = fitted_value(*log, torch.zeros(1, 1), lambda rows, a=choice: torch.full((len(rows), 1), a), QUICK)
        assert found.value == pytest.approx(wanted, abs=0.05)
        assert found.drift < 0.1


def test_an_endless_reward_is_worth_one_over_one_less_the_discount():
    rows = torch.zeros(64, 1)
    found = fitted_value(rows, rows, torch.full((64,), 5.0), rows, torch.zeros(64), rows[:1], lambda o: o * 0, QUICK)
    assert found.value == pytest.approx(50, rel=0.05)


def test_the_same_seed_gives_the_same_and_settings_are_checked():
    torch.manual_seed(0)
    rows, reward = torch.randn(64, 2), torch.randn(64)
    few = FitSettings(steps=50, hidden=(8,))
    first, second = (
        fitted_value(rows, rows, reward, rows.flip(0), torch.zeros(64), rows[:2], torch.tanh, few) for _ in range(2)
    )
    assert first == second
    with pytest.raises(UsageError, match="discount is 1"):
        FitSettings(discount=1.0)
