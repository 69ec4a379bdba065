"""GAE and the return-to-go: the card's numbers, the definition as a double sum, and tokens that the policy did not write."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import Batch
from upslope.parts.gae import GAE, gae, return_to_go
from upslope.testing import batch_of

UNIT = st.floats(0, 1)
ROW = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.booleans()), min_size=1, max_size=7)


def by_definition(reward, value, gamma, lam):
    """sum over s >= t of (gamma lam)^(s-t) delta_s, over the tokens that the policy wrote."""
    following = np.append(value[1:], 0.0)
    delta = reward + gamma * following - value
    n = len(value)
    return np.array([sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)])


def test_card_numbers():
    batch = batch_of([[1.0]], lengths=[3], old_value=torch.tensor([[0.5, 0.6, 0.7]], dtype=torch.float64))
    raw = GAE(gamma=1.0, lam=0.95, whiten=False)(batch)
    np.testing.assert_allclose(raw["advantage"][0], [0.46575, 0.385, 0.3])
    np.testing.assert_allclose(raw["returns"][0], [0.96575, 0.985, 1.0])
    white = GAE(gamma=1.0, lam=0.95)(batch)
    np.testing.assert_allclose(white["advantage"][0], [0.99134, 0.01709, -1.00844], atol=5e-6)
    torch.testing.assert_close(white["returns"], raw["returns"])


@given(ROW, UNIT, UNIT)
def test_equals_the_definition_on_the_written_tokens(row, gamma, lam):
    reward, value, mask = (np.array(column) for column in zip(*row, strict=True))
    arrays = (
        torch.tensor(column).unsqueeze(0) for column in (np.where(mask, reward, 0.0), np.where(mask, value, 5.0), mask)
    )
    found = gae(*arrays, gamma, lam)[0].numpy()
    np.testing.assert_allclose(found[mask], by_definition(reward[mask], value[mask], gamma, lam), atol=1e-12)
    assert not found[~mask].any()


def test_a_reward_on_tool_text_belongs_to_the_token_before_it():
    mask = torch.tensor([[True, False, False, True, False]])
    on_tool = gae(torch.tensor([[0.0, 1, 2, 0, 4]]), torch.zeros(1, 5), mask, 0.5, 1.0)
    on_token = gae(torch.tensor([[3.0, 0, 0, 4, 0]]), torch.zeros(1, 5), mask, 0.5, 1.0)
    torch.testing.assert_close(on_tool, on_token)
    assert on_token.tolist() == [[5.0, 0, 0, 4.0, 0]]


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_lam_one_with_a_constant_value_is_the_reward_minus_it(reward, value):
    batch = batch_of([[reward, 0.0]], lengths=[4, 2])
    batch = batch.replace(old_value=torch.full_like(batch.logp, value))
    found = GAE(lam=1.0, whiten=False)(batch)
    np.testing.assert_allclose(found["advantage"][0], reward - value, atol=1e-12)
    np.testing.assert_allclose(found["returns"][0], reward, atol=1e-12)


def test_return_to_go_reads_token_rewards_where_there_are_any():
    batch = batch_of([[9.0]], lengths=[3])
    np.testing.assert_allclose(return_to_go(batch, 0.5)[0], [2.25, 4.5, 9])
    batch = Batch(logp=torch.zeros(1, 3), token_reward=torch.tensor([[1.0, 2, 4]]))
    assert return_to_go(batch, 0.5).tolist() == [[3.0, 4.0, 4.0]]


def test_without_whitening_the_advantage_scales_with_the_reward():
    batch = batch_of([[1.0, 0.0]], lengths=[2, 3])
    zero = batch.replace(old_value=torch.zeros_like(batch.logp))
    part = GAE(whiten=False)
    torch.testing.assert_close(part(zero.replace(reward=3 * batch.reward))["advantage"], 3 * part(zero)["advantage"])
    assert not torch.allclose(part(batch)["advantage"], part(zero)["advantage"])


EPISODES = st.lists(
    st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2), st.sampled_from(["on", "terminated", "truncated"])),
    min_size=1,
    max_size=40,
)


def over_episodes(reward, value, next_value, ended, gamma, lam):
    """The recursion, step by step from the last one back, anew in every episode."""
    found, after = np.zeros(len(reward)), 0.0
    for t in reversed(range(len(reward))):
        after = reward[t] + gamma * next_value[t] - value[t] + gamma * lam * (0.0 if ended[t] else after)
        found[t] = after
    return found


@given(EPISODES, UNIT, UNIT)
def test_episode_ends_cut_and_time_limits_bootstrap(steps, gamma, lam):
    reward, value, beyond, fate = (np.array(column) for column in zip(*steps, strict=True))
    ended = fate != "on"
    next_value = np.where(ended | (np.arange(len(value)) == len(value) - 1), beyond, np.append(value[1:], 0.0))
    next_value = np.where(fate == "terminated", 0.0, next_value)
    arrays = [torch.tensor(column).unsqueeze(0) for column in (reward, value, np.ones_like(ended))]
    extra = {"ended": torch.tensor(ended).unsqueeze(0), "next_value": torch.tensor(next_value).unsqueeze(0)}
    found = gae(*arrays, gamma, lam, **extra)[0].numpy()
    np.testing.assert_allclose(found, over_episodes(reward, value, next_value, ended, gamma, lam), atol=1e-12)


def test_card_numbers_of_control():
    """Card: control_theory.md, ppo, identity 3."""
    reward, value = torch.tensor([[1.0, 0.0, 1.0]]).double(), torch.tensor([[0.5, 0.4, 0.3]]).double()
    after = torch.tensor([[0.4, 0.3, 0.2]]).double()
    mask, no = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool)
    for lam, expected in (
        (0.95, [1.593446, 0.741569, 0.898]),
        (1, [1.674160, 0.786020, 0.898]),
        (0, [0.896, -0.103, 0.898]),
    ):
        found = gae(reward, value, mask, 0.99, lam, ended=no, next_value=after)
        np.testing.assert_allclose(found[0], expected, atol=5e-7)
    batch = Batch(
        logp=torch.zeros(1, 3).double(),
        token_reward=reward,
        old_value=value,
        ended=torch.tensor([[False, True, False]]),
        next_value=torch.tensor([[0.4, 0.0, 0.2]]).double(),
    )
    found = GAE(gamma=0.99, lam=0.95, whiten=False)(batch)
    np.testing.assert_allclose(found["advantage"][0], [0.5198, -0.4, 0.898], atol=1e-9)
    np.testing.assert_allclose(found["returns"][0], [1.0198, 0.0, 1.198], atol=1e-9)


def test_long_rows_do_not_lose_precision():
    generator = torch.Generator().manual_seed(0)
    reward, value, after = (torch.randn(2, 3000, generator=generator) for _ in range(3))
    ended, mask = torch.rand(2, 3000, generator=generator) < 0.002, torch.ones(2, 3000, dtype=torch.bool)
    found = gae(reward, value, mask, 0.99, 1.0, ended=ended, next_value=after)
    for row in range(2):
        arrays = (column[row].double().numpy() for column in (reward, value, after, ended))
        np.testing.assert_allclose(found[row], over_episodes(*arrays, 0.99, 1.0), rtol=1e-5, atol=1e-5)
