"""Card: control_theory.md, rlpd. Half of each batch from the log: tests/actor_critic/test_trainer.py."""

import torch

from upslope import diff, make
from upslope.actor_critic.contract import learner_of, transitions


def test_card_defaults():
    rlpd = make("rlpd")
    assert (rlpd.data.log_share, rlpd.data.batch_size) == (0.5, 256)
    assert (rlpd.critic.members, rlpd.critic.layer_norm, rlpd.critic.dropout, rlpd.ensemble.of) == (10, True, 0.0, 2)
    assert (rlpd.update.per_step, rlpd.actor.critics, rlpd.rollout.offline_steps) == (20, "mean", 0)


def test_it_is_redq_with_half_a_log_and_norms():
    assert {line for line in diff("rlpd", "redq").splitlines() if not line.startswith(" ")} == {
        "rollout",
        "data",
        "critic",
    }


def same_updates(one, other):
    one, other = learner_of(one), learner_of(other)
    for index in range(2):
        for learner in (one, other):
            learner.update(transitions(learner.layout, index))
    return all(torch.equal(flat.values, other.flats[name].values) for name, flat in one.flats.items())


def test_without_norms_it_updates_as_redq_and_with_two_critics_as_sac():
    small = {"critic.hidden": [8], "policy.hidden": [8], "per_step": 1, "actor_every": 1}
    plain = {"critic.layer_norm": False, **small}
    assert same_updates(make("rlpd", **plain), make("redq", **small))
    assert not same_updates(make("rlpd", **small), make("redq", **small))
    assert same_updates(make("rlpd", members=2, critics="lowest", **plain), make("sac", **small))


def test_layer_normalisation_bounds_what_is_extrapolated():
    """|Q| <= |w| sqrt(width) + |b| whatever the input, after the last layer's normalisation and ReLU with gains of 1."""
    critic = learner_of(make("rlpd")).networks.critic
    far = 1e6 * torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    weight, bias = critic.weights[-1][:, :, 0], critic.biases[-1][:, 0, 0]
    bound = weight.norm(dim=-1) * 256**0.5 + bias.abs()
    assert (critic(far).abs() <= bound[:, None]).all()
    assert (learner_of(make("redq")).networks.critic(far).abs() > bound[:, None]).any()
