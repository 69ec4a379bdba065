"""Card: rlvr_core.md, remix. Replay and the second start in a run: tests/test_collect_parts.py and tests/test_trainer.py."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.methods.rlvr.remix import CenteredClip, ConvexKL, Reincarnation
from upslope.parts.sampling import Update
from upslope.testing import batch_of, finite_differences, value_and_gradient


def replayed(rewards, **moves):
    """A batch of an older policy: anchor and policy moved away from old_logp, each by its own amounts."""
    batch = batch_of(rewards, seed=5)
    old = batch.logp + 0.3 * (batch.entropy - 0.8)
    return batch.replace(old_logp=old, anchor_logp=old + 0.2 * (batch.old_value - 0.1), **moves)


def test_card_interval():
    """c = 1.1 and eps = 0.2: ratios from 0.9 to 1.3 have a gradient where the advantage pushes outwards."""
    ratio = torch.tensor([[0.85, 0.95, 1.25, 1.35]], dtype=torch.float64)
    for advantage, active in ((1.0, [1, 1, 1, 0]), (-1.0, [0, 1, 1, 1])):
        batch = batch_of([[1.0]], lengths=[4]).replace(advantage=torch.tensor([advantage], dtype=torch.float64))
        batch = batch.replace(old_logp=batch.logp - ratio.log(), anchor_logp=batch.logp - (ratio / 1.1).log())
        logp = batch.logp.clone().requires_grad_()
        CenteredClip(eps=0.2)(batch.replace(logp=logp)).sum().backward()
        np.testing.assert_allclose(logp.grad, -advantage * ratio * torch.tensor(active), atol=1e-12)


def test_card_schedule():
    steps = torch.tensor([1, 50, 51, 60, 61, 71, 100, 101, 500])
    np.testing.assert_allclose(ConvexKL().lam(steps), [1, 1, 0.9, 0.9, 0.8, 0.7, 0.5, 0.5, 0.5], atol=1e-6)


def test_defaults():
    recipe = make("remix")
    assert (recipe.rollout.replay, recipe.rollout.replay_window, recipe.update.epochs) == (0.4, 2, 2)
    assert (recipe.surrogate.eps, recipe.update.reincarnate_at) == (0.2, 100)


def test_second_start():
    recipe = make("remix", reincarnate_at=3)
    asked = [recipe.update.before_step(step) for step in range(1, 7)]
    assert asked == [set(), set(), set(), {"reset_optimizer", "reset_reference"}, set(), set()]
    for step, replay, epochs in ((1, 0.4, 2), (3, 0.4, 2), (4, 0.0, 1), (9, 0.0, 1)):
        now = recipe.update.recipe_at(recipe, step)
        assert (now.rollout.replay, now.update.epochs) == (replay, epochs)
        assert now.surrogate is recipe.surrogate
    never = make("remix", reincarnate_at=None)
    assert never.update.recipe_at(never, 10_000) is never
    assert never.update.before_step(101) == set()
    assert Reincarnation(fresh_optimizer=True).before_step(1) == {"reset_optimizer"}


def numpy_loss(batch, logp, lam):
    reward, group, mask = batch.reward.numpy(), batch.group.numpy(), batch.mask.numpy()
    old, anchor, ref = (getattr(batch, f"{name}_logp").numpy() for name in ("old", "anchor", "ref"))
    losses = []
    for i in range(len(reward)):
        mates = reward[group == group[i]]
        a = (reward[i] - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        r, c = np.exp(logp[i] - old[i])[mask[i]], np.exp(anchor[i] - old[i])[mask[i]]
        losses.append(np.maximum(-a * r, -a * np.clip(r, c - 0.1, c + 0.1)).mean())
        for share, u in ((lam, logp[i] - ref[i]), (1 - lam, logp[i] - anchor[i])):
            losses[-1] += 0.3 * share * (np.exp(-u) - 1 + u)[mask[i]].mean()
    return np.mean(losses)


@pytest.mark.parametrize(("step", "lam"), [(7, 1.0), (75, 0.7), (300, 0.5)])
def test_value_and_gradient(step, lam):
    batch = replayed([[1, 0.1, 0.7, 0.4], [0.3, 0.9, 1]], step=torch.full((7,), step))
    recipe = make("remix", **{"surrogate.eps": 0.1, "beta": 0.3})
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), lam))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, lam), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_new_rollouts_before_the_decay_are_grpo():
    batch = batch_of([[1, 0, 0.2], [0, 1]])
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy)
    batch = batch.replace(anchor_logp=batch.old_logp)
    ours, theirs = make("remix"), make("grpo")
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_at_the_start_of_a_step_the_gradient_is_importance_weighted():
    batch = replayed([[1, 0, 0.2], [0, 1]])
    batch = batch.replace(anchor_logp=batch.logp)
    recipe = make("remix", regularizer=None)
    prepared = recipe.prepare(batch)
    _, gradient = value_and_gradient(recipe, prepared)
    center = (batch.logp - batch.old_logp).exp()
    torch.testing.assert_close(gradient, -center * prepared.advantage * prepared.scale_0 * batch.mask)


def test_clip_without_width_is_refused():
    with pytest.raises(UsageError, match=r"CenteredClip\(eps=0\)"):
        make("remix", **{"surrogate.eps": 0.0})


def test_an_update_of_the_run_stays_as_it_is():
    recipe = make("grpo")
    assert isinstance(recipe.update, Update)
    assert recipe.update.recipe_at(recipe, 5) is recipe
