"""Cards: offline_imitation.md, ope-estimators and fqe. Unbiasedness is checked over every episode there is, not by sampling."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope.diagnostics import off_policy as ope
from upslope.errors import UsageError

D = torch.float64
STATES, ACTIONS, HORIZON, DISCOUNT = 3, 2, 3, 0.9


def mdp(seed=0):
    """Transitions [S, A, S], rewards [S, A], starts [S], policy and behavior [S, A]; state 2 is the end, worth nothing."""
    torch.manual_seed(seed)
    move = torch.rand(STATES, ACTIONS, STATES, dtype=D).softmax(-1)
    reward = torch.randn(STATES, ACTIONS, dtype=D)
    policy, behavior = (torch.randn(STATES, ACTIONS, dtype=D).softmax(-1) for _ in range(2))
    return move, reward, torch.tensor([0.7, 0.3, 0.0], dtype=D), policy, behavior


def every_episode(move, start, behavior):
    """All (states, actions, mask) of HORIZON steps, [N, T] each, with their probabilities [N] under the behavior."""
    found = {}
    for path in itertools.product(range(STATES), *[range(ACTIONS), range(STATES)] * HORIZON):
        states, actions = path[0::2], path[1::2]
        chance, live, key = float(start[states[0]]), True, []
        for t in range(HORIZON):
            live = live and states[t] != 2
            if not live:
                break
            chance *= float(behavior[states[t], actions[t]] * move[states[t], actions[t], states[t + 1]])
            key += [states[t], actions[t]]
        if chance > 0 and key:
            last = states[len(key) // 2] if len(key) // 2 <= HORIZON else 2
            found[(*key, last)] = chance
    rows = []
    for key, chance in found.items():
        steps = len(key) // 2
        pad = HORIZON - steps
        rows.append(([*key[0:-1:2], *[2] * pad], [*key[1:-1:2], *[0] * pad], [1.0] * steps + [0.0] * pad, chance))
    states, actions, mask, chance = (torch.tensor(column) for column in zip(*rows, strict=True))
    assert abs(float(chance.double().sum()) - 1) < 1e-6
    return states, actions, mask, torch.tensor([row[3] for row in rows], dtype=D)


def value(move, reward, policy):
    """V_t [HORIZON + 1, S] of a policy, backwards, with nothing after the end or the horizon."""
    found = [torch.zeros(STATES, dtype=D)]
    for _ in range(HORIZON):
        after = found[-1].clone()
        after[2] = 0
        q = reward + DISCOUNT * move @ after
        v = (policy * q).sum(-1)
        v[2] = 0
        found.append(v)
    return list(reversed(found))


def logged(seed=0):
    move, reward, start, policy, behavior = mdp(seed)
    states, actions, mask, chance = every_episode(move, start, behavior)
    ratio = (policy.log() - behavior.log())[states, actions]
    truth = float((start * value(move, reward, policy)[0]).sum())
    return ratio, reward[states, actions], mask, chance, truth, states, actions, policy


@pytest.mark.parametrize("seed", range(4))
def test_ips_per_decision_and_doubly_robust_are_unbiased(seed):
    ratio, reward, mask, chance, truth, states, actions, policy = logged(seed)
    assert float(chance @ ope.ips(ratio, reward, DISCOUNT, mask)) == pytest.approx(truth, abs=1e-9)
    assert float(chance @ ope.per_decision(ratio, reward, DISCOUNT, mask)) == pytest.approx(truth, abs=1e-9)
    table = torch.randn(STATES, ACTIONS, dtype=D)  # any Q at all
    q, v = table[states, actions], (policy * table).sum(-1)[states]
    assert float(chance @ ope.doubly_robust(ratio, reward, DISCOUNT, q, v, mask)) == pytest.approx(truth, abs=1e-9)
    biased = float(chance @ ope.ips(ratio, reward, DISCOUNT, mask, clip=0.9))
    assert abs(biased - truth) > 1e-3


def test_the_true_q_leaves_doubly_robust_no_variance_of_its_actions():
    """With deterministic moves, rewards of (s, a), and Q of each step: every episode's term is V(s_0)."""
    _, reward, _, policy, behavior = mdp()
    move = torch.zeros(STATES, ACTIONS, STATES, dtype=D)
    move[0, 0, 1] = move[0, 1, 0] = move[1, 0, 0] = move[1, 1, 2] = move[2, :, 2] = 1
    start = torch.tensor([0.7, 0.3, 0.0], dtype=D)
    states, actions, mask, _ = every_episode(move, start, behavior)
    steps = value(move, reward, policy)
    q = torch.stack([(reward + DISCOUNT * move @ steps[t + 1])[states[:, t], actions[:, t]] for t in range(HORIZON)], 1)
    v = torch.stack([steps[t][states[:, t]] for t in range(HORIZON)], 1)
    ratio = (policy.log() - behavior.log())[states, actions]
    found = ope.doubly_robust(ratio, reward[states, actions], DISCOUNT, q, v, mask)
    torch.testing.assert_close(found, steps[0][states[:, 0]])


def test_card_numbers():
    weight = torch.tensor([[0.4], [0.4], [1.6], [0.4]], dtype=D).log()
    reward = torch.tensor([[1.0], [0], [1], [1]], dtype=D)
    q, v = torch.tensor([[0.4], [0.4], [0.6], [0.4]], dtype=D), torch.full((4, 1), 0.56, dtype=D)
    assert float(ope.ips(weight, reward, 1.0).mean()) == pytest.approx(0.6)
    assert ope.wis(weight, reward, 1.0) == pytest.approx(0.857143, abs=1e-6)
    assert ope.direct_method(v[:, 0]) == pytest.approx(0.56)
    assert float(ope.doubly_robust(weight, reward, 1.0, q, v).mean()) == pytest.approx(0.8)
    assert ope.effective_sample_size(weight[:, 0]) == pytest.approx(2.578947, abs=1e-6)
    two = torch.tensor([[0.4, 1.6]], dtype=D).log()
    assert float(ope.ips(two, torch.tensor([[1.0, 2.0]]), 0.9).mean()) == pytest.approx(1.792)
    assert float(ope.per_decision(two, torch.tensor([[1.0, 2.0]]), 0.9).mean()) == pytest.approx(1.552)


@given(st.integers(0, 1000))
def test_identities(seed):
    torch.manual_seed(seed)
    ratio, reward = torch.randn(5, 4, dtype=D), torch.randn(5, 4, dtype=D)
    mask = (torch.arange(4) < torch.randint(1, 5, (5, 1))).double()
    zero = torch.zeros_like(reward)
    same = ope.doubly_robust(ratio, reward, 0.9, zero, zero, mask)
    torch.testing.assert_close(same, ope.per_decision(ratio, reward, 0.9, mask))
    weighted = ope.weighted_doubly_robust(ratio, reward, 0.9, zero, zero, mask)
    assert weighted == pytest.approx(ope.weighted_per_decision(ratio, reward, 0.9, mask))
    plain = float((0.9 ** torch.arange(4, dtype=D) * reward * mask).sum(-1).mean())
    for found in (
        ope.ips(zero, reward, 0.9, mask).mean(),
        ope.wis(zero, reward, 0.9, mask),
        ope.per_decision(zero, reward, 0.9, mask).mean(),
        ope.weighted_per_decision(zero, reward, 0.9, mask),
    ):
        assert float(found) == pytest.approx(plain)  # on the policy's own episodes
    assert ope.effective_sample_size(torch.zeros(7)) == pytest.approx(7)
    assert 1 <= ope.effective_sample_size(ratio.sum(-1)) <= 5 + 1e-9
    noise = torch.where(mask > 0, torch.zeros(()), torch.full((), 1e9))  # what lies beyond the end is not read
    torch.testing.assert_close(ope.ips(ratio + noise, reward - noise, 0.9, mask), ope.ips(ratio, reward, 0.9, mask))


def test_long_episodes_do_not_underflow():
    ratio = torch.full((3, 2000), -1.0, dtype=D)
    ratio[0, 0] = 0.0
    assert ope.wis(ratio, torch.ones(3, 2000), 1.0) == pytest.approx(2000)
    assert 1 < ope.effective_sample_size(ratio.sum(-1)) < 3


def test_fitted_q_is_the_policys_q():
    move, reward, _, policy, _ = mdp(3)
    following = (move / move.amin()).round()  # counts in a log, so that its moves are exact
    move = following / following.sum(-1, keepdim=True)
    rows = [
        (s, a, float(reward[s, a]), n)
        for s, a, n in itertools.product(range(STATES), range(ACTIONS), range(STATES))
        for _ in range(int(following[s, a, n]))
    ]
    state, action, earned, after = (torch.tensor(column) for column in zip(*rows, strict=True))
    earned = torch.tensor([row[2] for row in rows], dtype=D)
    done = after == 2
    found = ope.fitted_q(state, action, earned, after, done, policy, DISCOUNT)
    go_on = move.clone()
    go_on[..., 2] = 0
    chain = (go_on[..., None] * policy).reshape(STATES * ACTIONS, STATES * ACTIONS)
    wanted = torch.linalg.inv(torch.eye(STATES * ACTIONS, dtype=D) - DISCOUNT * chain) @ reward.reshape(-1)
    torch.testing.assert_close(found.reshape(-1), wanted)


def test_fitted_q_of_the_cards_chain():
    whole = torch.ones(3, 1)
    found = ope.fitted_q(*map(torch.tensor, ([0, 1], [0, 0], [1.0, 2.0], [1, 2], [0, 1])), whole, 0.9)
    assert found[:, 0].tolist() == pytest.approx([2.8, 2.0, 0.0])


def test_errors_name_what_is_wrong():
    never = torch.full((2, 1), -torch.inf)
    with pytest.raises(UsageError, match="every weight is 0"):
        ope.wis(never, torch.ones(2, 1), 1.0)
    assert ope.effective_sample_size(never[:, 0]) == 0
    with pytest.raises(UsageError, match="never end"):
        ope.fitted_q(*map(torch.tensor, ([0], [0], [1.0], [0], [0])), torch.ones(1, 1), 1.0)
    with pytest.raises(UsageError, match="clip is 0"):
        ope.ips(never, torch.ones(2, 1), 1.0, clip=0.0)
