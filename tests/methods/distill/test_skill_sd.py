"""Card: preference_distill_hybrid.md, skill-sd; line 5 of its cross-identities."""

import numpy as np
import pytest
import torch

from upslope import Batch, Trainer, UsageError, make
from upslope.exact import ExactLab
from upslope.methods.distill.skill_sd import SkillDistillation
from upslope.rollout import Rollouts
from upslope.testing import batch_of, finite_differences, value_and_gradient

PART = SkillDistillation()


def test_card_number():
    logp, teacher = (torch.tensor([[p]], dtype=torch.float64).log() for p in (0.5, 0.6))
    assert PART(Batch(logp=logp, old_logp=logp, teacher_logp=teacher)).item() == pytest.approx(0.017678, abs=5e-7)


def test_its_mean_gradient_on_policy_is_that_of_the_reverse_kl():
    lab = ExactLab(vocabulary=3, horizon=1)
    s, t = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.7, 0.2, 0.1], [0.5, 0.3, 0.2]))
    recipe = make("opd").replace(advantage=None, surrogate=PART)
    mean = lab.estimate(recipe, group_size=1, theta=s, columns={"teacher_logp": lab.logp(t)}).mean
    np.testing.assert_allclose(-mean, [[0.175945, -0.098118, -0.077827]], atol=5e-7)


def test_value_and_gradient_off_policy_of_the_term():
    batch = batch_of([[1, 0], [0, 0, 1]], seed=3)
    batch = batch.replace(old_logp=batch.logp + 0.3 * (batch.entropy - 0.8))
    mask, old, teacher = batch.mask.numpy(), batch.old_logp.numpy(), batch.teacher_logp.numpy()

    def term(logp):
        u = logp - teacher
        return 0.001 * (np.exp(logp - old) * (np.exp(-u) - 1 + u))[mask].mean()

    (loss, gradient), (grpo, grpo_gradient) = (
        value_and_gradient(make(name), make(name).prepare(batch)) for name in ("skill_sd", "grpo")
    )
    assert float(loss - grpo) == pytest.approx(term(batch.logp.numpy()))
    expected = finite_differences(term, batch.logp.numpy()) * mask
    np.testing.assert_allclose(gradient - grpo_gradient, expected, atol=1e-9)


def rollouts_of(texts, group):
    zeros = torch.zeros(len(texts), 1)
    return Rollouts(
        [[1]] * (max(group) + 1), torch.tensor(group), zeros.long(), zeros.bool(), zeros[:, 0].long(), zeros, zeros,
        ["stop"] * len(texts), texts,
    )  # fmt: skip


def step(state, rewards, texts, part=PART):
    batch = batch_of(rewards)
    before = repr(state)
    told, after = part.context(rollouts_of(texts, batch.group.tolist()), batch, state)
    assert repr(state) == before
    return told, after


def test_skills_are_made_told_and_chosen():
    told, state = step(PART.init(), [[1, 0], [0, 0]], list("abcd"))
    assert told == [""] * 4
    told, state = step(state, [[1, 1], [1, 0]], list("efgh"))
    first, second = "This was right: a\nThis was wrong: b\n", "This was wrong: c\n"
    assert told == [first, first, second, second]
    assert [(s["text"], s["earned"], s["told"]) for s in state["bank"]["1000"]] == [
        (first, 1.0, 1), ("This was right: e\n", 0.0, 0),
    ]  # fmt: skip
    told, state = step(state, [[0, 0]], list("ij"))
    assert told == ["This was right: e\n"] * 2, "one that was never told comes first"


def test_the_upper_bound():
    skills = [{"text": "a", "earned": 3.0, "told": 4}, {"text": "b", "earned": 0.5, "told": 1}]
    assert SkillDistillation(exploration=1.0)._choose(skills) == 1  # .75 + sqrt(ln 5 / 4) < .5 + sqrt(ln 5)
    assert SkillDistillation(exploration=0.1)._choose(skills) == 0


def test_no_more_than_some_are_kept():
    part, state = SkillDistillation(kept=2), PART.init()
    for reward, text in ((1.0, "a"), (1.0, "b"), (0.2, "c"), (1.0, "d")):
        _, state = step(state, [[reward]], [text], part)
    assert len(state["bank"]["1000"]) == 2
    with pytest.raises(UsageError, match="kept=0"):
        SkillDistillation(kept=0)


def test_it_trains_and_resumes(toy, tmp_path):
    data = tmp_path / "few.jsonl"
    data.write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(6)))
    small = {"max_tokens": 6, "eval": {"prompts": 1, "every": 0}, "prompts_per_step": 4, "threads": 1}

    def trained(steps, out, resume=False):
        with Trainer(
            "skill_sd",
            model=toy,
            data=str(data),
            reward="exact",
            steps=steps,
            out=tmp_path / out,
            resume=resume,
            **small,
        ) as trainer:
            return trainer.train()

    whole = trained(4, "whole")
    assert whole.rows[-1]["teacher/informed"] > 0
    trained(2, "parts")
    again = trained(4, "parts", resume=True)
    for one, other in zip(whole.parts.actors.policy.parameters(), again.parts.actors.policy.parameters(), strict=True):
        assert torch.equal(one, other)
