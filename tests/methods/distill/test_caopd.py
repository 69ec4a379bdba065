"""Card: preference_distill_hybrid.md, caopd."""

import pytest
import torch

from upslope import Trainer, make
from upslope.batch import SOURCES
from upslope.collect import first_batch, seeded
from upslope.engines.local import LocalEngine
from upslope.methods.distill.caopd import CalibratedDivergence
from upslope.policies.language import LanguagePolicy
from upslope.rollout import Example, Outcome, Rollouts, Sampling
from upslope.teaching import Teaching
from upslope.testing import batch_of

TEACHER = SOURCES.index("teacher")
TEXTS = ["so 7\nConfidence: 0.9", "so 8 Confidence: 1", "7", "Confidence: 0.2", "9"]


def rollouts_of(texts, group):
    zeros = torch.zeros(len(texts), 1)
    return Rollouts(
        [[1]] * (max(group) + 1), torch.tensor(group), zeros.long(), zeros.bool(), zeros[:, 0].long(), zeros, zeros,
        ["stop"] * len(texts), texts,
    )  # fmt: skip


def rewritten():
    batch = batch_of([[1, 0, 1, 0, 1]], source=torch.tensor([0, 0, 0, 0, TEACHER]))
    return CalibratedDivergence(), rollouts_of(TEXTS, [0] * 5), batch


def test_every_confidence_becomes_the_share_that_is_right():
    part, rollouts, batch = rewritten()
    texts, metrics = part.rewrite(rollouts, batch)
    tail = "Confidence: 0.50"
    assert texts == [("so 7\n", tail), ("so 8\n", tail), ("7\n", tail), ("", tail), None]
    assert metrics["confidence/stated"] == 0.75
    assert metrics["confidence/over"] == pytest.approx(0.7 - 1 / 3)
    assert metrics["confidence/brier"] == pytest.approx((0.01 + 1 + 0.04) / 3)
    assert metrics["confidence/ranking"] == 0.5


def test_the_teacher_is_told_the_share():
    part, rollouts, batch = rewritten()
    found, _ = part.context(rollouts, batch, {})
    assert set(found) == {"A correct answer: 9\nThe confidence to state is 0.50.\n"}


def test_tokens_follow_the_text(toy):
    policy = LanguagePolicy.load(toy)
    rollouts = LocalEngine(policy).generate(
        [policy.encode("ab"), policy.encode("c")], [2, 2], Sampling(7), seeded("rows")
    )
    outcomes = [Outcome(value) for value in (1.0, 0.0, 1.0, 1.0)]
    batch = first_batch(rollouts, outcomes, [Example("k", "q")] * 4, source=torch.tensor([0, 0, 0, TEACHER]))
    ours, made = Teaching(make("caopd"), policy, None).rewritten(rollouts, batch)
    for row, share in enumerate(("0.50", "0.50", "1.00")):
        assert policy.decode(ours.tokens[row, : ours.length[row]].tolist()) == ours.text[row]
        assert ours.text[row].endswith(f"Confidence: {share}")
        assert ours.tokens[row, ours.length[row] - 1] == policy.tokenizer.eos_token_id
        assert ours.mask[row].sum() == ours.length[row]
    assert torch.equal(ours.tokens[3, :7], rollouts.tokens[3, :7])
    assert torch.equal(made.mask, ours.mask)
    assert torch.equal(made.reward, batch.reward)
    assert "old_logp" not in made


def test_a_body_without_room_is_cut(toy):
    policy = LanguagePolicy.load(toy)
    rollouts = LocalEngine(policy).generate([policy.encode("q" * 60)], [1], Sampling(30), seeded("rows"))
    batch = first_batch(rollouts, [Outcome(1.0)], [Example("k", "q")])
    ours, _ = Teaching(make("caopd"), policy, None).rewritten(rollouts, batch)
    assert ours.length[0] <= policy.context_length - 60
    assert ours.text[0].endswith("Confidence: 1.00")
    assert policy.decode(ours.tokens[0, : ours.length[0]].tolist()).endswith("Confidence: 1.00")


def test_it_learns_to_state_the_share(toy, questions):
    small = {"max_tokens": 6, "eval": {"prompts": 4, "every": 0}, "prompts_per_step": 3, "threads": 1, "steps": 12}
    with Trainer(
        "caopd", model=toy, data=str(questions), reward="exact", teacher="frozen", optimizer={"lr": 3e-3}, **small
    ) as trainer:
        rows = trainer.train().rows
    assert rows[1]["confidence/stated"] == 0
    assert "sampler_gap/max" not in rows[1]
    assert rows[-1]["loss"] < 0.9 * rows[1]["loss"]
