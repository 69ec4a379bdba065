"""Card: preference_distill_hybrid.md and generative_robot.md, seppo, with log-probs in the place of denoising errors."""

import math

import numpy as np
import pytest
import torch

from upslope import UsageError, make
from upslope.batch import SOURCES, Batch
from upslope.testing import batch_of, finite_differences, value_and_gradient

EXPERT, EARLIER, POLICY = (SOURCES.index(name) for name in ("expert", "earlier", "policy"))


def of_errors(given, sampled):
    """One given completion and one sample of one token each, from the errors (policy, checkpoint) of both."""
    policy, checkpoint = zip(given, sampled, strict=True)
    columns = {"source": [EXPERT, EARLIER], "prompt": [0, 0], "group": [0, 1]}
    return Batch(
        logp=-torch.tensor(policy).double()[:, None], old_logp=-torch.tensor(checkpoint)[:, None].double(), **columns
    )


def step_of(samples=2, seed=0):
    """Three prompts with one given completion each; the checkpoint's log-probs are in old_logp."""
    prompt = torch.arange(3).repeat_interleave(1 + samples)
    source = torch.tensor(([EXPERT] + [EARLIER] * samples) * 3)
    batch = batch_of([[0.0] * (1 + samples)] * 3, seed=seed)
    return batch.replace(source=source, prompt=prompt, group=2 * prompt + (source != EXPERT), old_logp=batch.ref_logp)


def test_the_cards_numbers():
    recipe = make("seppo", beta=50.0)
    for given, sampled, loss in [((0.10, 0.12), (0.11, 0.10), 0.201413), ((0.12, 0.10), (0.11, 0.10), 1.701413)]:
        assert float(recipe(of_errors(given, sampled))[0]) == pytest.approx(loss, abs=5e-7)
    batch = of_errors((0.10, 0.11), (0.12, 0.115))
    assert float(recipe(batch)[0]) == pytest.approx(0.386871, abs=5e-7)
    part = recipe.surrogate
    _, stats = recipe(batch)
    assert float(stats["pairs/flipped"]) == 0.0
    z = 50 * (0.01 - (-1) * -0.005)  # the card's last number: f = -1 forced on a pair whose anchor says +1
    assert np.logaddexp(0, -z) == pytest.approx(0.575939, abs=5e-7)
    forced = part(batch.replace(ref_logp=batch.old_logp, logp=torch.tensor([[-0.12], [-0.12]]).double()))
    assert float(forced[0]) == pytest.approx(np.logaddexp(0, -50 * (-0.01 - 0.005)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("flip", [True, False])
def test_value_and_gradient_against_numpy(seed, flip):
    batch = step_of(seed=seed)
    ref, mask, start = batch.old_logp.numpy(), batch.mask.numpy(), batch.logp.numpy()
    sign = np.sign(((start - ref) * mask).sum(1)[::3])[:, None] if flip else np.ones((3, 1))

    def loss_at(logp):
        score = ((logp - ref) * mask).sum(1).reshape(3, 3)
        return np.mean(np.logaddexp(0, -0.1 * (score[:, :1] - sign * score[:, 1:])))

    recipe = make("seppo", flip=flip)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_at(start))
    np.testing.assert_allclose(gradient, finite_differences(loss_at, start), atol=1e-9)
    assert float(recipe(batch)[1]["pairs/flipped"]) == pytest.approx(np.mean(sign < 0))


def test_both_signs_are_seen():
    signs = [float(make("seppo")(step_of(seed=seed))[1]["pairs/flipped"]) for seed in range(4)]
    assert 0 < np.mean(signs) < 1


def test_a_sample_beside_a_worse_policy_is_reinforced_too():
    better, worse = of_errors((0.10, 0.12), (0.5, 0.5)), of_errors((0.14, 0.12), (0.5, 0.5))
    gradients = [value_and_gradient(recipe := make("seppo"), recipe.prepare(one))[1] for one in (better, worse)]
    assert gradients[0][0] < 0 < gradients[0][1], "the loss falls with the given one and rises with the sample"
    assert gradients[1][0] < 0
    assert gradients[1][1] < 0, "the checkpoint knows the anchor better: its sample counts as good"


def test_without_the_flip_and_with_a_fixed_reference_it_is_dpo():
    batch = step_of(samples=1)
    ours, dpo = make("seppo", flip=False), make("dpo")
    as_pairs = batch.replace(
        group=batch.prompt, label=(batch.source == EXPERT).double(), ref_logp=batch.old_logp, source=None
    )
    for one, other in zip(
        value_and_gradient(ours, ours.prepare(batch)), value_and_gradient(dpo, dpo.prepare(as_pairs)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("flip", [True, False])
def test_at_the_checkpoint_the_loss_is_log_two_and_its_sample_is_the_rejected_one(flip):
    batch = step_of()
    recipe = make("seppo", flip=flip)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch.replace(old_logp=batch.logp)))
    assert float(loss) == pytest.approx(math.log(2))
    assert (gradient[batch.source == EXPERT].sum(1) < 0).all()
    assert (gradient[batch.source == EARLIER].sum(1) > 0).all()


def test_samples_of_other_prompts_and_failed_ones_are_in_no_pair():
    batch = step_of()
    alone = batch.replace(valid=batch.source == EXPERT)
    loss, gradient = value_and_gradient(make("seppo"), make("seppo").prepare(alone))
    assert float(loss) == 0.0
    assert not gradient.any()
    moved = batch.logp.clone()
    moved[4] -= 1.0  # a sample of the second prompt
    changed = make("seppo").prepare(batch.replace(logp=moved))
    before, after = (make("seppo").surrogate(one) for one in (make("seppo").prepare(batch), changed))
    assert (before != after).nonzero().flatten().tolist() == [3]


def test_defaults_and_bad_settings():
    rollout = make("seppo").rollout
    assert (rollout.sampler, rollout.pool_every, rollout.pool_size, rollout.samples) == ("pool", 30, 7, 1)
    with pytest.raises(UsageError, match="must be positive"):
        make("seppo", beta=0)
