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
