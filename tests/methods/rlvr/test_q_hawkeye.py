"""Card: rlvr_core.md, q-hawkeye."""

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.testing import batch_of, finite_differences, value_and_gradient


@pytest.mark.parametrize(
    ("scores", "factor"), [([1, 5, 1, 5], 0.81873), ([2, 3, 3, 4], 0.97531), ([3, 3, 3, 3], 1), ([1, 9, 1, 9], 0.81873)]
)
def test_card_weights(scores, factor):
    prediction = [2.0] * 4 + [float(score) for score in scores]
    batch = batch_of([[1, 0, 0, 1], [1, 0, 0, 1]], lengths=[2] * 8, prediction=prediction)
    weight = make("q_hawkeye").prepare(batch).weight
    np.testing.assert_allclose(weight[:4], 1.0)
    np.testing.assert_allclose(weight[4:], factor, atol=5e-6)


def test_a_failed_completion_has_no_say():
    valid = torch.tensor([True, True, True, False])
    batch = batch_of([[1, 0, 0, 1]], lengths=[2] * 4, prediction=[2.0, 2.0, 2.0, 5.0])
    assert (make("q_hawkeye").prepare(batch).weight < 1).all()
    assert (make("q_hawkeye").prepare(batch.replace(valid=valid)).weight[valid] == 1).all()


def numpy_loss(batch, logp, gamma, progress):
    reward, group, mask, old, ref, masked, prediction = (
        getattr(batch, name).numpy()
        for name in ("reward", "group", "mask", "old_logp", "ref_logp", "masked_logp", "prediction")
    )
    total, perception = 0.0, 0.0
    for i in range(len(reward)):
        mates = group == group[i]
        a = (reward[i] - reward[mates].mean()) / (reward[mates].std(ddof=1) + 1e-4)
        a *= np.exp(-0.2 * min(prediction[mates].var() / (0.25 * 4**2), 1))
        x = logp[i][mask[i]]
        r, toward, shown = (np.exp(x - old[i][mask[i]]), ref[i][mask[i]] - x, masked[i][mask[i]] - x)
        token = np.maximum(-a * r, -a * np.clip(r, 0.8, 1.2)) + 0.04 * (np.exp(toward) - toward - 1)
        total += token.mean() / len(reward)
        perception += (np.exp(shown) - shown - 1).sum() / mask.sum()
    return total - gamma * 0.5 * (1 + np.cos(np.pi * progress)) * perception


@pytest.mark.parametrize(("progress", "reached"), [(0.0, 0.0), (0.25, 0.5), (0.8, 1.0)])
def test_value_and_gradient_off_policy(progress, reached):
    batch = batch_of([[1, 0, 0, 1], [0.3, 0, 1]], seed=5, progress=[progress] * 7)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8), masked_logp=batch.logp - 2 * batch.entropy)
    recipe = make("q_hawkeye", gamma=0.3, until=0.5)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(numpy_loss(batch, batch.logp.numpy(), 0.3, reached))
    expected = finite_differences(lambda logp: numpy_loss(batch, logp, 0.3, reached), batch.logp.numpy())
    np.testing.assert_allclose(gradient, expected * batch.mask.numpy(), atol=1e-8)


def test_defaults():
    recipe = make("q_hawkeye")
    assert (recipe.weight.alpha, recipe.weight.span, recipe.advantage.eps) == (0.2, 4.0, 1e-4)
    perception = recipe.terms[0].surrogate
    assert (perception.gamma, perception.until, perception.hide) == (1e-4, 1.0, 0.5)
    assert recipe.rollout.group_size == 4


def test_without_either_it_is_grpo():
    batch = batch_of([[1, 0, 0], [0, 1]])
    batch = batch.replace(old_logp=batch.logp + 0.3 * batch.entropy)
    ours, theirs = make("q_hawkeye", alpha=0.0, gamma=0.0), make("grpo", eps=1e-4)
    results = [value_and_gradient(r, r.prepare(batch)) for r in (ours, theirs)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_perception_moves_away_from_the_masked_policy():
    batch = batch_of([[1.0, 1.0]], lengths=[2, 2])  # no advantage
    batch = batch.replace(masked_logp=batch.logp - 1.0)
    recipe = make("q_hawkeye", regularizer=None)
    _, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    np.testing.assert_allclose(gradient, -1e-4 * (1 - np.exp(-1)) / 4 * np.ones((2, 2)))


def test_the_prompt_is_hidden_by_its_setting():
    (part,) = [part for _, part in make("q_hawkeye", hide=1.0).stages() if "masked_logp" in part.needs]
    assert part.alter_prompt([5, 6, 7], 0, torch.Generator()) == [0, 0, 0]


@pytest.mark.parametrize("settings", [{"span": 0.0}, {"until": 0.0}, {"hide": 2.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        make("q_hawkeye", **settings)
