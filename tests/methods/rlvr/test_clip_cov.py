"""Card: rlvr_core.md, entropy-mechanism."""

import numpy as np
import pytest
import torch

from upslope import Batch, UsageError, make
from upslope.exact import ExactLab
from upslope.parts.surrogate import ClippedRatio
from upslope.testing import batch_of, finite_differences, value_and_gradient

LOOSE = {"share": 0.2, "cov_low": -0.5, "cov_high": 0.9}


def off_policy(seed=5):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=seed)
    return batch.replace(old_logp=batch.logp + 0.8 * (batch.entropy - 0.8))


def test_card_covariance_and_defaults():
    recipe = make("clip_cov")
    batch = recipe.minibatch(
        Batch(
            logp=[[-0.1, -2.0], [-0.1, -2.0]],
            old_logp=[[-0.1, -2.0], [-0.1, -2.0]],
            advantage=[1.0, -1.0],
            trajectory=[0, 1],
        ),
        recipe.init(),
    )[0]
    np.testing.assert_allclose(batch.covariance, [[0.95, -0.95], [-0.95, 0.95]], rtol=1e-6)
    assert not batch.selected.any(), "none lies between 1 and 5"
    control = recipe.control
    assert (control.share, control.cov_low, control.cov_high) == (2e-4, 1.0, 5.0)
    assert (control.ratio_low, control.ratio_high) == (0.0, 2.0)
    assert (recipe.rollout.group_size, recipe.update.minibatches, recipe.regularizer) == (8, 8, None)


def test_of_a_hundred_thousand_tokens_twenty_are_left_out():
    logp = torch.linspace(-3, 0, 1000, dtype=torch.float64).expand(100, 1000)
    advantage = torch.tensor([2.0, -2.0], dtype=torch.float64).repeat(50)
    recipe = make("clip_cov")
    batch = Batch(logp=logp, old_logp=logp, advantage=advantage, trajectory=torch.arange(100))
    batch = recipe.minibatch(batch, recipe.init())[0]
    assert int((batch.weight == 0).sum()) == int(batch.selected.sum()) == 20
    assert batch.covariance[batch.selected].min() > 1
    loss, _ = recipe.loss(batch)
    assert float(loss) == pytest.approx(float(-(batch.advantage * batch.weight).sum()) / 100_000), (
        "the denominator stays"
    )


def numpy_loss(batch, keep, logp):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        ratio = np.exp(logp[i] - batch.old_logp[i].numpy())[mask[i]]
        losses += list(np.maximum(-a * ratio, -a * np.clip(ratio, 0.9, 1.2)) * keep[i][mask[i]])
    return np.mean(losses)


def test_value_and_gradient_off_policy():
    recipe = make("clip_cov", ratio_low=0.9, ratio_high=1.2, **LOOSE)
    batch = recipe.prepare(off_policy())
    keep = batch.weight.numpy()
    assert (keep == 0)[batch.mask.numpy()].sum() == int(0.2 * batch.mask.sum()) > 0
    loss, gradient = value_and_gradient(recipe, batch)
    assert float(loss) == pytest.approx(numpy_loss(batch, keep, batch.logp.numpy()))
    expected = finite_differences(lambda logp: numpy_loss(batch, keep, logp), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_all_candidates_are_those_in_the_band_that_the_clip_leaves_alone():
    recipe = make("clip_cov", share=1.0, cov_low=-0.5, cov_high=0.9, ratio_low=0.9, ratio_high=1.2)
    batch = recipe.prepare(off_policy())
    mask = batch.mask.numpy()
    a, logp = batch.advantage.numpy(), batch.logp.numpy()
    ratio = np.exp(logp - batch.old_logp.numpy())
    cov = (a - a[mask].mean()) * (logp - logp[mask].mean())
    np.testing.assert_allclose(batch.covariance.numpy()[mask], cov[mask])
    assert cov[mask].sum() == pytest.approx(mask.sum() * np.cov(a[mask], logp[mask], bias=True)[0, 1])
    clipped = np.maximum(-a * ratio, -a * np.clip(ratio, 0.9, 1.2)) > -a * ratio
    band = mask & (cov > -0.5) & (cov < 0.9)
    assert (band & clipped).any()
    assert (batch.selected.numpy() == (band & ~clipped)).all()


def test_the_draw_changes_with_the_mini_batch_and_is_uniform():
    recipe = make("clip_cov", share=0.2, cov_low=-100.0, cov_high=100.0, ratio_high=100.0)
    batch, state = off_policy(), recipe.init()
    prepared, first = recipe.prepare(batch, state)
    assert state == {"control": {"minibatch": 0}}
    assert first == {"control": {"minibatch": 1}}
    assert torch.equal(recipe.prepare(batch).selected, prepared.selected)
    drawn, state = torch.zeros_like(batch.logp), first
    for _ in range(600):
        after, state = recipe.prepare(batch, state)
        drawn += after.selected
    assert state == {"control": {"minibatch": 601}}
    tokens = int(batch.mask.sum())
    share = int(0.2 * tokens) / tokens
    assert not drawn[~batch.mask].any()
    frequency = drawn[batch.mask].numpy() / 600
    np.testing.assert_allclose(frequency, share, atol=5 * np.sqrt(share * (1 - share) / 600))


def test_share_0_is_ppos_clip():
    batch = off_policy()
    ours = make("clip_cov", share=0.0)
    theirs = make("grpo", regularizer=None, aggregate=ours.aggregate, surrogate=ClippedRatio(0.0, 2.0))
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 2.0}, r"share=2\): it is a fraction"),
        ({"cov_low": 5.0}, r"between 5 and 5: there is none"),
        ({"ratio_high": 0.2}, r"LeaveOutCovariant clips to \[0, 0.2\]"),
    ],
)
def test_errors_name_the_remedy(settings, message):
    with pytest.raises(UsageError, match=message):
        make("clip_cov", **settings)


# The law behind the method, in the exact lab


def children(lab, prefix):
    """Masks [S] of the sequences that begin with the prefix and each next token, [V, S]."""
    begins = [[word[: len(prefix) + 1] == (*prefix, v) for word in lab.words] for v in range(lab.vocabulary)]
    return np.array(begins)


def entropies(theta):
    """Entropy of the next-token distribution after each prefix, [N]."""
    logp = theta.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize(
    ("lab", "natural"), [(ExactLab(4, 1), False), (ExactLab(3, 3, eos=0), False), (ExactLab(3, 3), True)]
)
def test_a_gradient_step_changes_the_entropy_by_minus_eta_times_the_covariance(lab, natural):
    probability, rewards = lab.probability(lab.theta).numpy(), lab.rewards.numpy()
    covariances, step = [], torch.zeros_like(lab.theta)
    for n, prefix in enumerate(lab.prefixes):
        next_token = children(lab, prefix)
        reached = next_token @ probability
        visits, pi = reached.sum(), reached / reached.sum()
        advantage = (next_token @ (probability * rewards)) / reached
        advantage = advantage - pi @ advantage
        change = advantage if natural else visits * pi * advantage  # of the logits, for eta = 1
        step[n] = torch.from_numpy(change)
        log_pi = np.log(pi)
        covariances.append(pi @ ((log_pi - pi @ log_pi) * (change - pi @ change)))
    if not natural:  # the step is the gradient of the expected reward
        torch.testing.assert_close(step, lab.gradient(lab.theta))
    before, eta = entropies(lab.theta), 1e-3
    errors = [
        (entropies(lab.theta + size * step) - before).numpy() + size * np.array(covariances) for size in (eta, eta / 2)
    ]
    assert np.abs(covariances).min() > 1e-4
    assert np.abs(errors[0]).max() < 1e-3 * eta
    np.testing.assert_allclose(errors[0], 4 * errors[1], rtol=0.01, atol=1e-14)  # what is left is of second order
