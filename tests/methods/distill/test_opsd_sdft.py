"""Card: preference_distill_hybrid.md, opsd-sdft."""

import numpy as np
import pytest
import torch

from upslope import Trainer, UsageError, make
from upslope.batch import SOURCES
from upslope.parts.privileged import PrivilegedDivergence
from upslope.parts.sampling import Sample
from upslope.rollout import Rollouts
from upslope.testing import batch_of

SMALL = {"max_tokens": 6, "eval": {"prompts": 4, "every": 0}, "prompts_per_step": 3, "threads": 1, "steps": 2}
TEACHER = SOURCES.index("teacher")


def rollouts_of(texts, group):
    zeros = torch.zeros(len(texts), 1)
    return Rollouts(
        [[1]] * (max(group) + 1), torch.tensor(group), zeros.long(), zeros.bool(), zeros[:, 0].long(), zeros, zeros,
        ["stop"] * len(texts), texts,
    )  # fmt: skip


def contexts(rewards, source, texts, valid=None, **settings):
    batch = batch_of(rewards, source=torch.tensor(source), valid=valid)
    part = PrivilegedDivergence(template="[{}]", **settings)
    return part.context(rollouts_of(texts, batch.group.tolist()), batch, {})[0]


def test_the_reference_of_the_group_is_told_to_all_its_rows():
    found = contexts([[0, 1, 1], [0, 0]], [0, 0, TEACHER, 0, 0], list("abcde"))
    assert found == ["[c]", "[c]", "[c]", "", ""]


def test_of_siblings_the_best_other_is_told():
    found = contexts([[0, 0.8, 1], [0, 1], [0.2, 0]], [0] * 7, list("abcdefg"), demonstration="sibling")
    assert found == ["[c]", "[c]", "[b]", "[e]", "", "", ""]
    failed = torch.tensor([True, True, False])
    assert contexts([[0, 0.8, 1]], [0] * 3, list("abc"), valid=failed, demonstration="sibling") == ["[b]", "", "[b]"]


def test_value_and_gradient_leave_out_the_reference_and_the_first_tokens():
    batch = batch_of([[0, 1, 1], [0, 0]], lengths=[5, 3, 4, 2, 4], source=torch.tensor([0, 0, TEACHER, 0, 0]))
    for name, skip in (("opsd_sdft", 0), ("opsd_sdft@caopd", 3)):
        recipe, column = make(name), batch.divergence.clone().requires_grad_()
        loss, _ = recipe.loss(recipe.prepare(batch).replace(divergence=column))
        rows = [row for row in (0, 1, 3, 4) if batch.length[row] > skip]
        d = [batch.divergence[row, skip : int(batch.length[row])].numpy() for row in rows]
        assert loss.item() == pytest.approx(np.mean([each.mean() for each in d]))
        (gradient,) = torch.autograd.grad(loss, column)
        expected = np.zeros(gradient.shape)
        for row, each in zip(rows, d, strict=True):
            expected[row, skip : skip + len(each)] = 1 / len(each) / len(rows)
        np.testing.assert_allclose(gradient, expected)


def trained(toy, questions, name="opsd_sdft", **settings):
    with Trainer(name, model=toy, data=str(questions), reward="exact", **{**SMALL, **settings}) as trainer:
        return trainer.train()


def test_told_nothing_the_live_policy_has_nothing_to_teach(toy, questions):
    settings = {"demonstration": "sibling", "rollout": Sample(group_size=4), "optimizer": {"lr": 1e-2}}
    rows = trained(toy, questions, teacher="live", **settings).rows
    assert [row["teacher/informed"] for row in rows[1:]] == [0, 0], "no completion of random weights is right"
    assert all(abs(row["loss"]) < 1e-6 for row in rows[1:])
    assert all(row["grad_norm"] < 1e-4 for row in rows[1:])


def test_the_reverse_kl_to_a_frozen_teacher_that_is_told_nothing_is_gkds(toy, questions):
    shared = {"optimizer": {"lr": 1e-2}, "beta": 1.0, "teacher": "frozen", "rollout": Sample(group_size=2)}
    ours = trained(toy, questions, demonstration="sibling", **{**shared, "aggregate": make("gkd").aggregate})
    theirs = trained(toy, questions, "gkd", **shared)
    for one, other in zip(ours.parts.actors.policy.parameters(), theirs.parts.actors.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_learns_what_the_answer_would_have_it_say(toy, questions):
    rows = trained(toy, questions, steps=15, optimizer={"lr": 3e-3}, teacher="frozen").rows
    assert rows[1]["teacher/informed"] == 1
    assert rows[-1]["loss"] < 0.9 * rows[1]["loss"]


@pytest.mark.parametrize(("settings", "says"), [({"template": "x"}, "no place {}"), ({"rate": 0.0}, r"rate=0")])
def test_wrong_settings(settings, says):
    with pytest.raises(UsageError, match=says):
        make("opsd_sdft", **settings)
