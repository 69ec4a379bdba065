"""Card: control_theory.md, redq."""

import itertools

import numpy as np
import pytest
import torch

from upslope import make
from upslope.actor_critic.contract import learner_of, transitions
from upslope.actor_critic.testing import GivenPolicy, minibatch_of


def test_card_defaults():
    redq = make("redq")
    assert (redq.critic.members, redq.ensemble.of, redq.actor.critics) == (10, 2, "mean")
    assert (redq.update.per_step, redq.update.actor_every, redq.targets.rate, redq.targets.every) == (20, 20, 0.005, 1)
    assert redq.rollout.warmup == 5000


def test_pairs_without_replacement_uniformly():
    ensemble, generator = make("redq").ensemble, torch.Generator().manual_seed(0)
    pairs = [tuple(sorted(ensemble.choose(4, generator))) for _ in range(6000)]
    assert set(pairs) == set(itertools.combinations(range(4), 2))
    counts = np.array([pairs.count(pair) for pair in set(pairs)])
    assert (abs(counts - 1000) < 5 * 1000**0.5).all()
    values = np.array([1.0, 2.0, 3.0, 4.0])
    mean = np.mean([values[list(pair)].min() for pair in itertools.combinations(range(4), 2)])
    assert mean == pytest.approx(1.6667, abs=5e-5)
    assert np.mean([values[list(pair)].min() for pair in pairs]) == pytest.approx(mean, abs=0.04)


def test_the_target_is_the_least_of_the_pair_that_was_drawn():
    q = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    found = set()
    for seed in range(40):
        recipe = make("redq")
        policy = GivenPolicy(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
        m = minibatch_of([[0.0]], target_q=lambda _: q, members=4, policy=policy, ensemble=recipe.ensemble, seed=seed)
        found.add(round(float(recipe.target(m)) / 0.99, 9))
    assert found == {1.0, 2.0, 3.0}  # 4 is in no pair the least


@pytest.mark.parametrize("of", [2, None])
def test_two_of_two_is_sacs_minimum(of):
    redq = make("redq", members=2, of=of, per_step=1, actor_every=1, critics="lowest")
    one, other = learner_of(redq), learner_of(make("sac"))
    for index in range(3):
        for learner in (one, other):
            learner.update(transitions(learner.layout, index))
    for name in ("policy", "critic"):
        assert torch.equal(one.flats[name].values, other.flats[name].values)


def test_more_members_in_the_minimum_are_more_pessimistic():
    learner = learner_of(make("redq"))
    m = learner.minibatch(transitions(learner.layout))
    q = m.networks.target_critic(m.state_action)
    least = [float(q[:of].min(0).values.mean()) for of in (1, 2, 5, 10)]
    assert least == sorted(least, reverse=True)


def test_actor_and_temperature_after_twenty_updates():
    learner = learner_of(make("redq"))
    start = learner.flats["policy"].values.clone()
    for index in range(20):
        assert torch.equal(learner.flats["policy"].values, start)
        assert learner.state["temperature"]["steps"] == 0
        learner.update(transitions(learner.layout, index))
    assert not torch.equal(learner.flats["policy"].values, start)
    assert learner.state["temperature"]["steps"] == 1
