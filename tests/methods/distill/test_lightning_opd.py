"""Card: preference_distill_hybrid.md, lightning-opd."""

import json

import numpy as np
import pytest
import torch

from upslope import Trainer, make
from upslope.exact import ExactLab
from upslope.testing import batch_of, finite_differences, value_and_gradient

LAB = ExactLab(vocabulary=3, horizon=2, seed=4)
DRAW = torch.Generator().manual_seed(7)
TEACHER, WRITER = (LAB.theta + torch.randn(LAB.theta.shape, generator=DRAW, dtype=torch.float64) for _ in range(2))


def estimate(theta, writer, name="lightning_opd"):
    columns = {"teacher_logp": LAB.logp(TEACHER), "anchor_logp": LAB.logp(theta)}
    return LAB.estimate(name, group_size=1, theta=theta, old=writer, columns=columns).mean


def test_at_the_teacher_there_is_no_gradient_whoever_wrote():
    for writer in (WRITER, LAB.theta, TEACHER):
        assert estimate(TEACHER, writer).abs().max() < 1e-12
    assert estimate(LAB.theta, WRITER).abs().max() > 1e-3


def test_its_first_gradient_on_its_own_completions_is_opds():
    torch.testing.assert_close(estimate(LAB.theta, LAB.theta), estimate(LAB.theta, LAB.theta, "opd"))


def test_following_the_mean_gradient_ends_at_the_teacher():
    theta = LAB.theta.clone()
    for _ in range(400):
        theta = theta + 5.0 * estimate(theta, WRITER)
    torch.testing.assert_close(theta.softmax(-1), TEACHER.softmax(-1), atol=2e-3, rtol=0)


def test_value_and_gradient_after_the_start_of_the_step():
    batch = batch_of([[1, 0], [0, 0, 1]], seed=3)
    batch = batch.replace(anchor_logp=batch.logp + 0.3 * (batch.entropy - 0.8), old_logp=None)
    mask, anchor, teacher = batch.mask.numpy(), batch.anchor_logp.numpy(), batch.teacher_logp.numpy()

    def loss_of(logp):
        a, r = teacher - anchor, np.exp(logp - anchor)
        tokens = np.maximum(-a * r, -a * np.clip(r, 0.8, 1.2)) * mask
        return (tokens.sum(1) / mask.sum(1)).mean()

    recipe = make("lightning_opd")
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch))
    assert float(loss) == pytest.approx(loss_of(batch.logp.numpy()))
    np.testing.assert_allclose(gradient, finite_differences(loss_of, batch.logp.numpy()) * mask, atol=1e-8)


def test_it_trains_on_data(toy, tmp_path):
    data = tmp_path / "own.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"p{i}", "completion": "abab"}) for i in range(30)))
    small = {"max_tokens": 8, "eval": {"prompts": 4, "every": 0}, "prompts_per_step": 4, "threads": 1, "steps": 3}
    with Trainer(
        "lightning_opd", model=toy, teacher="frozen", data=str(data), optimizer={"lr": 1e-2}, **small
    ) as trainer:
        rows = trainer.train().rows
    assert [row["rows/trained"] for row in rows[1:]] == [0, 0, 0], "the teacher is the policy"
