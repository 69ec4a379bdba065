"""Card: preference_distill_hybrid.md, ppo-max."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.batch import SOURCES
from upslope.config import Config, OptimizerConfig
from upslope.learner import Learner
from upslope.methods.rlhf.ppo_max import RunningScale
from upslope.testing import batch_of, value_and_gradient

RNG = np.random.default_rng(0)


def scores(*sizes, scale=1.0):
    return [(scale * RNG.normal(2.0, 3.0, size)).tolist() for size in sizes]


def run(part, steps):
    """Scaled rewards of every step, and the state after the last."""
    state, found = part.init(), []
    for step in steps:
        scaled, state = part(batch_of([step]), state)
        found.append(scaled.numpy())
    return found, state


@pytest.mark.parametrize("shift", [False, True])
def test_moments_are_those_of_everything_pooled(shift):
    steps = [*scores(4, 7), *scores(3, scale=100.0), [5.0]]
    found, state = run(RunningScale(shift=shift), steps)
    for step in range(len(steps)):
        pooled = np.concatenate(steps[: step + 1])
        expected = (np.array(steps[step]) - (pooled.mean() if shift else 0.0)) / pooled.std()
        np.testing.assert_allclose(found[step], expected, rtol=1e-9)
    assert state["count"] == 15
    assert state["mean"] == pytest.approx(pooled.mean())
    assert state["squares"] / 15 == pytest.approx(pooled.var())


def test_a_factor_on_all_scores_changes_nothing():
    steps = scores(4, 6)
    one, other = run(RunningScale(), steps)[0], run(RunningScale(), [[10 * r for r in step] for step in steps])[0]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b)


def test_equal_first_scores_are_left_as_they_are():
    assert run(RunningScale(), [[2.0, 2.0]])[0][0].tolist() == [2.0, 2.0]


def test_a_failed_score_is_in_no_moment():
    batch = batch_of([[1.0, 99.0, 3.0]]).replace(valid=torch.tensor([True, False, True]))
    _, state = RunningScale()(batch, RunningScale().init())
    assert (state["count"], state["mean"], state["squares"]) == (2, 2.0, 2.0)


def test_clips():
    (found,), _ = run(RunningScale(clip=0.5), [[-10.0, 0.0, 1.0, 10.0]])
    assert found[[0, 3]].tolist() == [-0.5, 0.5]
    batch = batch_of([[1, 0, 3], [2, -1]], seed=2)
    free = make("ppo_max", whiten=True).prepare(batch)
    bound = make("ppo_max", whiten=True, bound=0.4).prepare(batch)
    torch.testing.assert_close(bound.advantage, free.advantage.clamp(-0.4, 0.4))
    torch.testing.assert_close(bound.returns, free.returns)


def test_switched_off_it_is_rlhf_ppo():
    batch = batch_of([[1, 0, 3], [2, -1]], seed=2)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    off = {"reward.RunningScale.scale": False, "advantage.eps": 1e-8}
    ours, parent = make("ppo_max", beta=0.05, whiten=True, **off), make("rlhf_ppo")
    one, other = (value_and_gradient(r, r.prepare(batch)) for r in (ours, parent))
    torch.testing.assert_close(one, other)


def test_the_scaled_score_is_what_the_kl_is_taken_from():
    batch = batch_of([[4.0, 0.0]], lengths=[1, 2])
    prepared = make("ppo_max").prepare(batch)
    kl = 0.01 * (batch.old_logp - batch.ref_logp)
    np.testing.assert_allclose(prepared.token_reward[0, 0], 4.0 / 2.0 - kl[0, 0])
    np.testing.assert_allclose(prepared.token_reward[1, 1], -kl[1, 1])


def test_a_drifting_scale_reaches_the_critic_tamed():
    """Scores that grow tenfold: bare returns do, too; scaled ones stay within some deviations."""
    steps = [scores(64, scale=10 ** (k / 4))[0] for k in range(5)]
    found, _ = run(RunningScale(), steps)
    assert np.std(found[-1]) / np.std(found[0]) < 3 < np.std(steps[-1]) / np.std(steps[0])


def test_wrong_settings():
    with pytest.raises(UsageError, match=r"RunningScale\(clip=0\)"):
        make("ppo_max", **{"reward.RunningScale.clip": 0.0})
    with pytest.raises(UsageError, match=r"BoundedGAE\(bound=-1\)"):
        make("ppo_max", bound=-1.0)


def with_given(seed=2):
    """Two prompts with two sampled completions and a given one each, off-policy."""
    batch = batch_of([[1, 0, 3], [2, -1, 0.5]], seed=seed)
    source = torch.where(torch.arange(6) % 3 == 2, SOURCES.index("teacher"), SOURCES.index("policy"))
    return batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8), source=source)


def test_ptx_adds_the_likelihood_of_given_completions():
    """Value and gradient are those of the sampled rows alone, plus w times the mean of -logp over the given tokens."""
    batch, off = with_given(), make("ppo_max")
    on = make("ppo_max", **{"terms[0].coefficient": 0.7})
    given = (batch.source != 0).unsqueeze(1) & batch.mask
    (plain, plain_grad), (value, grad) = (value_and_gradient(r, r.prepare(batch)) for r in (off, on))
    count = int(given.sum())
    assert float(value - plain) == pytest.approx(float(-0.7 * batch.logp[given].sum() / count))
    np.testing.assert_allclose(grad - plain_grad, np.where(given, -0.7 / count, 0.0), atol=1e-12)
    rows = (batch.source == 0).nonzero().squeeze(1)
    alone = off.prepare(batch.select(rows))
    torch.testing.assert_close(value_and_gradient(off, alone)[0], plain)
    assert not plain_grad[given].any()


def test_given_completions_are_in_no_moment_and_teach_the_critic_nothing():
    batch, recipe = with_given(), make("ppo_max", whiten=True)
    own = batch.source == 0
    prepared, state = recipe.prepare(batch, recipe.init())
    alone = recipe.prepare(batch.select(own.nonzero().squeeze(1)))
    assert state["reward.RunningScale"]["count"] == 4
    torch.testing.assert_close(prepared.advantage[own], alone.advantage)
    torch.testing.assert_close(prepared.returns[own], alone.returns)
    assert not prepared.advantage[~own].any()
    error = recipe.critic(prepared.replace(value=batch.value))
    assert not error[~own].any()
    torch.testing.assert_close(error[own], make("rlhf_ppo").critic(prepared.replace(value=batch.value))[own])


@pytest.mark.parametrize(("target", "sign"), [(None, -1), (35.0, -1), (0.1, 1)])
def test_entropy_loss_is_the_distance_of_the_mean_entropy_to_its_target(target, sign):
    batch = batch_of([[1, 0, 3], [2, -1]], seed=2)
    settings = {"regularizer.coefficient": 0.2, **({} if target is None else {"weight.target": target})}
    on, off = make("ppo_max", **settings), make("ppo_max")
    mean = float(batch.entropy[batch.mask].mean())
    value, plain = (float(r.loss(r.prepare(batch))[0]) for r in (on, off))
    assert value - plain == pytest.approx(0.2 * sign * mean)
    if target is not None:
        assert sign * mean == pytest.approx(abs(mean - target) + sign * target)
    assert "entropy" not in off.needs


def test_the_schedule_of_the_authors():
    """After the warm-up, sqrt(warmup / step) of the rate."""
    weight = torch.nn.Parameter(torch.zeros(1))
    learner = Learner([weight], 1e-3, OptimizerConfig(schedule="inverse_sqrt", warmup=4), 100)
    rates = []
    for _ in range(40):
        rates.append(learner.rate())
        learner.step([lambda: (weight.sum(), {})])
    np.testing.assert_allclose(rates[:5], 1e-3 * np.array([0.2, 0.4, 0.6, 0.8, 1.0]))
    np.testing.assert_allclose(rates[5:], 1e-3 * np.sqrt(4 / np.arange(5, 40)))


def test_every_trick_is_a_setting():
    make(
        "ppo_max", scale=False, shift=True, gamma=0.99, lam=0.9, whiten=True, bound=5.0, ratio_low=0.7, ratio_high=1.3,
        reference_rows=1, group_size=2, minibatches=2, epochs=1, temperature=0.8,
        **{
            "reward.RunningScale.clip": 5.0, "reward.KLInReward.beta": 0.02, "critic.clip": 0.1, "weight.target": 35.0,
            "regularizer.coefficient": 0.01, "terms[0].coefficient": 0.5,
        },
    )  # fmt: skip
    optimizer = {"grad_clip": 0.5, "schedule": "inverse_sqrt", "warmup": 100, "lr": 5e-7, "critic_lr": 1.5e-6}
    Config(critic_from="reward_model", top_p=0.9, optimizer=OptimizerConfig(**optimizer, betas=(0.9, 0.95)))
