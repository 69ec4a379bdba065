"""Card: control_theory.md, droq."""

import torch

from upslope import make
from upslope.actor_critic.contract import learner_of, transitions


def test_card_defaults():
    droq = make("droq")
    assert (droq.critic.members, droq.critic.dropout, droq.critic.layer_norm) == (2, 0.01, True)
    assert (droq.update.per_step, droq.actor.critics) == (20, "mean")


def test_dropout_is_active_in_targets_and_critics():
    learner = learner_of(make("droq", dropout=0.5))
    m = learner.minibatch(transitions(learner.layout))
    one, other = (m.target_value(m.observation, m.action) for _ in range(2))
    assert not torch.equal(one, other)
    one, other = (m.q(m.observation, m.action) for _ in range(2))
    assert not torch.equal(one, other)


def test_without_dropout_and_norm_it_is_sac():
    plain = make(
        "droq", **{"critic.layer_norm": False, "dropout": 0.0, "critics": "lowest", "per_step": 1, "actor_every": 1}
    )
    one, other = learner_of(plain), learner_of(make("sac"))
    for index in range(3):
        for learner in (one, other):
            learner.update(transitions(learner.layout, index))
    for name in ("policy", "critic"):
        assert torch.equal(one.flats[name].values, other.flats[name].values)
