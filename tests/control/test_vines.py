"""Polychromic PPO in environments: what vines are, whose advantage is whose, the gradient by enumeration, resuming."""

import itertools

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.collect import seeded
from upslope.control.vines import VinePlayer
from upslope.parts.gae import GAE
from upslope.parts.network import MLP
from upslope.parts.vines import VineAdvantage, Vines
from upslope.policies.control import ControlPolicy, Critic
from upslope.tasks.opening import open_environments
from upslope.testing import batch_of, check_resume, finite_differences, value_and_gradient

SMALL = {"eval": {"episodes": 2}, "threads": 1, "rollout.environments": 2, "rollout.steps": 16, "rollout.vines": 3}


def player(task="upslope/FourRooms-v0", settings=None, **rollout):
    torch.manual_seed(0)
    part = Vines(**{"environments": 3, "steps": 20, "states": 2, "vines": 4, **rollout})
    environments = open_environments(task, part.environments, seed=0, settings=settings)
    policy = ControlPolicy(environments.observations, environments.actions, MLP(hidden=(8,)))
    made = part.player(environments, policy, Critic(policy))
    assert isinstance(made, VinePlayer)
    return made


def test_vines_start_where_the_rollout_was_and_end_with_the_episode():
    one = player(settings={"max_episode_steps": 30})
    for step in range(3):
        found = one.play(seeded(step))
    batch, seen = found.batch, found.played.observation.argmax(-1)
    assert batch.vine.tolist() == [False] * 3 + [True] * 24
    assert torch.bincount(batch.group[3:]).tolist() == [0] + [4] * 6
    for state in range(1, 7):
        starts = seen[batch.group == state, 0]
        assert len(set(starts.tolist())) == 1
        assert int(starts[0]) in set(seen[:3][batch.mask[:3]].tolist())
    length = batch.mask[3:].sum(1)
    assert (batch.ended[3:].float().argmax(1) == length - 1).all()
    assert batch.ended[3:].sum(1).tolist() == [1] * 24
    terminated = batch.reward[3:] == 1.0
    last = batch.next_value[3:].gather(1, length.unsqueeze(1) - 1).squeeze(1)
    assert (last[terminated] == 0).all()
    assert (last[~terminated] != 0).all()  # a time limit is no end
    value = one.critic(found.played.observation[3:]).detach()
    torch.testing.assert_close(batch.old_value[3:], torch.where(batch.mask[3:], value, 0.0))
    assert found.steps == 3 * 20 + int(length.sum())
    assert one.metrics()["env_steps"] == one.steps
    assert one.metrics()["replayed_steps"] % 4 == 0
    logp = one.policy.distribution(found.played.observation).log_prob(found.played.action).detach()
    torch.testing.assert_close(batch.logp, torch.where(batch.mask, logp, 0.0))


def test_a_vine_is_an_episode_of_the_environment():
    """Played again from the state by hand, the actions of a vine lead through the same cells."""
    one = player()
    found = one.play(seeded(1))
    city = one.environments.copies[0].unwrapped
    seen, action = found.played.observation.argmax(-1), found.played.action
    for row in range(3, len(found.batch)):
        cell = int(seen[row, 0])
        for t in range(int(found.batch.mask[row].sum())):
            assert cell == int(seen[row, t])
            cell = int(city._next[cell, int(action[row, t])])


@pytest.mark.parametrize("behavior", ["final", "visited"])
def test_vines_that_did_the_same_have_the_same_number(behavior):
    one = player(behavior=behavior, vines=16, settings={"max_episode_steps": 22, "size": 7})
    found = one.play(seeded(1))
    batch, seen, action = found.batch, found.played.observation.argmax(-1), found.played.action
    city = one.environments.copies[0].unwrapped
    told = []
    for row in range(3, len(batch)):
        length = int(batch.mask[row].sum())
        last = int(city._next[int(seen[row, length - 1]), int(action[row, length - 1])])
        told.append(last if behavior == "final" else frozenset([*seen[row, 1:length].tolist(), last]))
    for i, j in itertools.combinations(range(len(told)), 2):
        assert (told[i] == told[j]) == (batch.answer[3 + i] == batch.answer[3 + j])


def vine_batch(rewards, answers, base=2, width=7):
    """`base` rows of copies, then vines: a list per state."""
    rows = base + sum(map(len, rewards))
    batch = batch_of([[0.5] * rows], lengths=[width] * rows, seed=4)
    flat, given = [r for group in rewards for r in group], [a for group in answers for a in group]
    group = [0] * base + [1 + i for i, members in enumerate(rewards) for _ in members]
    return batch.replace(
        reward=torch.tensor([0.5] * base + flat, dtype=torch.float64),
        answer=torch.tensor([0] * base + given),
        group=torch.tensor(group),
        prompt_key=torch.tensor(group) * 7919,
        trajectory=torch.arange(rows),
        vine=torch.tensor([False] * base + [True] * len(flat)),
    )


def test_copies_get_gae_and_vines_their_sets_within_the_window():
    batch = vine_batch([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]], [[1, 2, 3, 3], [5, 5, 6, 7]])
    part = VineAdvantage(sets=3, size=2, window=3, gamma=0.9, lam=0.8)
    found, state = part(batch, part.init())
    plain = GAE(gamma=0.9, lam=0.8, whiten=False)(batch)
    torch.testing.assert_close(found["advantage"][:2], plain["advantage"][:2])
    torch.testing.assert_close(found["returns"], plain["returns"])
    assert found["mask"][:2].all()
    assert found["mask"][2:].tolist() == [[True] * 3 + [False] * 4] * 8
    assert not found["set_gains"][:2].any()
    assert state == {"step": 1}
    gains, losses = np.zeros(10), np.zeros(10)
    scores, chosen = [], []
    vines = batch.select(batch.vine)
    for j in range(3):
        members = part.draw(vines, 0, j)
        score = []
        for group in range(2):
            rows = ((vines.group == group) & members).nonzero().flatten()
            answers, earned = vines.answer[rows].tolist(), vines.reward[rows]
            distinct = len(set(answers)) if len(set(answers)) > 1 else 0
            score.append(float(earned.mean()) * distinct / 2)
        scores.append(score)
        chosen.append(members)
    for j in range(3):
        for row in chosen[j].nonzero().flatten().tolist():
            group = int(vines.group[row])
            advantage = scores[j][group] - np.mean([s[group] for s in scores])
            gains[2 + row] += max(advantage, 0) * 4 / 6
            losses[2 + row] += min(advantage, 0) * 4 / 6
    np.testing.assert_allclose(found["set_gains"], gains, atol=1e-12)
    np.testing.assert_allclose(found["set_losses"], losses, atol=1e-12)
    expected = torch.tensor(gains + losses)[2:].unsqueeze(1).expand(-1, 7)
    torch.testing.assert_close(found["advantage"][2:], expected)


def test_loss_and_gradient_of_the_formula():
    batch = vine_batch([[1.0, 0.0, 1.0, 0.0]], [[1, 2, 3, 3]])
    batch = batch.replace(old_logp=batch.logp + 0.3 * torch.randn_like(batch.logp))
    recipe = make("polychromic_ppo@control", sets=3, size=2)
    prepared = recipe.prepare(batch)
    mask, old = prepared.mask.numpy(), batch.old_logp.numpy()
    gains, losses = (prepared.set_gains.numpy()[:, None], prepared.set_losses.numpy()[:, None])
    plain = prepared.advantage.numpy()

    def loss(x):
        ratio = np.exp(x - old)
        clip = lambda a: np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2))  # noqa: E731
        per = np.where(batch.vine.numpy()[:, None], clip(gains) + clip(losses), clip(plain))
        per = per + 0.005 * (ratio - 1 - np.log(ratio))
        return per[mask].mean()

    value, gradient = value_and_gradient(recipe, prepared)
    assert float(value) == pytest.approx(loss(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss, batch.logp.numpy()), atol=1e-7)


def test_the_expected_gradient_is_that_of_the_sets_score_by_enumeration():
    """A state with three outcomes, N = 4 vines, M = 3 sets of n = 2: every 4-tuple of outcomes, weighed by its chance.

    Summed over the vines the expectation is N/n (1 - 1/M) (1 - n/N) times the gradient of E[f(tau_1, tau_2)]: sets share
    members with their own baseline, which takes a part of the length and nothing of the direction.
    """
    logits, earns = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64, requires_grad=True), [1.0, 0.8, 0.1]
    p = logits.softmax(0)
    score = lambda a, b: (earns[a] + earns[b]) / 2 * (a != b)  # noqa: E731
    value = sum(p[a] * p[b] * score(a, b) for a in range(3) for b in range(3))
    (wanted,) = torch.autograd.grad(value, logits, retain_graph=True)
    tuples = list(itertools.product(range(3), repeat=4))
    batch = vine_batch([[earns[a] for a in one] for one in tuples], tuples, base=1, width=2)
    outcome = torch.tensor(tuples).flatten()
    chance = p.detach()[torch.tensor(tuples)].prod(1).repeat_interleave(4)
    part = VineAdvantage(sets=3, size=2)
    state, total = part.init(), torch.zeros(len(outcome), dtype=torch.float64)
    draws = 400
    for _ in range(draws):
        found, state = part(batch, state)
        total += found["advantage"][1:, 0] / draws
    (gradient,) = torch.autograd.grad((chance * total * p.log()[outcome]).sum(), logits)
    factor = 4 / 2 * (1 - 1 / 3) * (1 - 2 / 4)
    np.testing.assert_allclose(gradient, factor * wanted, atol=0.02 * float(wanted.abs().max()))


def test_sets_of_one_are_the_mean_baseline():
    """n = 1, d = 1: over draws the advantage is (1 - 1/M) (R_i - mean), Monte Carlo with a mean baseline."""
    rewards = [0.9, 0.1, 0.5, 0.3]
    batch = vine_batch([rewards], [[1, 1, 1, 1]])
    part = VineAdvantage(sets=4, size=1)
    state, total = part.init(), torch.zeros(4, dtype=torch.float64)
    for _ in range(3000):
        found, state = part(batch, state)
        total += found["advantage"][2:, 0] / 3000
    np.testing.assert_allclose(total, 0.75 * (np.array(rewards) - np.mean(rewards)), atol=0.02)


def test_returns_outside_the_range_are_named_and_can_be_mapped():
    batch = vine_batch([[10.0, 0.0]], [[1, 2]])
    with pytest.raises(UsageError, match=r"VineAdvantage needs rewards in \[0, 1\].*reward_range"):
        VineAdvantage()(batch, {"step": 0})
    wide, _ = VineAdvantage(sets=2, size=1, reward_range=(0.0, 10.0))(batch, {"step": 0})
    unit, _ = VineAdvantage(sets=2, size=1)(batch.replace(reward=batch.reward / 10), {"step": 0})
    torch.testing.assert_close(wide["advantage"][2:], unit["advantage"][2:])


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    settings = {**SMALL, "task": "upslope/FourRooms-v0", "steps": 6, "task_settings": {"slip": 0.1}}
    check_resume("polychromic_ppo@control", tmp_path, killed=5, checkpoint_every=3, **settings)


def test_bad_settings_and_environments_say_what_to_do():
    with pytest.raises(UsageError, match=r"Vines\.states is 0"):
        Vines(states=0)
    with pytest.raises(UsageError, match="observation_noise"):
        Vines(observation_noise=0.1)
    with pytest.raises(UsageError, match="reward_range"):
        VineAdvantage(reward_range=(1.0, 0.0))
    assert "vines from each of 2 states" in make("polychromic_ppo@control").rollout.describe()
