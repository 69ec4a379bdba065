"""Card: control_theory.md, rlpd. Half of each batch from the log: tests/actor_critic/test_trainer.py."""

from upslope import diff, make


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
