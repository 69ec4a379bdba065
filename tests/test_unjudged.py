"""A method that learns from a teacher alone trains on prompts without a reward, and is evaluated by its KL to the teacher."""

import json
import math

import pytest
import torch

from upslope import Trainer, UsageError
from upslope.parts.sampling import Sample
from upslope.recipe import Recipe
from upslope.registry import list_methods, make
from upslope.report import write_report
from upslope.report.read import read_run
from upslope.report.verdict import verdict
from upslope.rollout import Outcome
from upslope.unjudged import learns_unjudged

SMALL = {
    "steps": 2, "prompts_per_step": 3, "max_tokens": 5, "threads": 1, "self_checks": False, "teacher": "frozen",
    "eval": {"prompts": 4, "samples": 3, "every": 0}, "optimizer": {"lr": 1e-2},
}  # fmt: skip


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(40)))
    return path


def trained(toy, data, method="opd", **settings):
    with Trainer(method, model=toy, data=str(data), **{**SMALL, **settings}) as trainer:
        return trainer.train()


def sampled(recipe):
    return isinstance(recipe.rollout, Sample)


def test_which_methods_need_no_reward():
    recipes = {name: made for name in list_methods() if isinstance(made := make(name), Recipe) and sampled(made)}
    found = {name for name, recipe in recipes.items() if learns_unjudged(recipe)}
    assert found == {"opd", "g_opd", "gkd", "minillm", "vopd", "opsd_sdft"}
    assert not learns_unjudged(make("opd", curriculum="dapo")), "it chooses prompts by their rewards"
    assert not learns_unjudged(make("opsd_sdft", demonstration="sibling")), "it is told what earned most"


def test_it_trains_and_says_what_it_does_not_measure(toy, prompts, tmp_path):
    trainer = trained(toy, prompts, out=tmp_path / "run")
    first, last = trainer.rows[0], trainer.rows[-1]
    assert first["eval/teacher/kl"] == pytest.approx(0, abs=1e-6), "the policy is its teacher at first"
    assert 0 < last["eval/teacher/kl_low"] <= last["eval/teacher/kl"] <= last["eval/teacher/kl_high"]
    names = {name for row in trainer.rows for name in row if not name.startswith("time/")}
    assert not [name for name in names if "reward" in name or "pass@" in name or "zero_variance" in name]
    assert "none is given" in trainer.parts.task.describe()
    found = verdict(read_run(tmp_path / "run"))
    assert found.sentence.startswith("Held-out KL to the teacher rose from ")
    assert "No reward is measured" in found.sentence
    assert found.tone == "worse"
    assert not any(sample["failure"] for sample in trainer.samples)
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "no reward says which answers are better" in page
    assert '<select name="level">' not in page, "there are no rewards to filter by"
    assert "<dt>teacher</dt><dd>frozen</dd>" in page


def test_the_kl_is_the_mean_over_tokens_of_that_of_whole_distributions(toy, prompts):
    with Trainer("opd", model=toy, data=str(prompts), **SMALL) as trainer:
        policy, teacher = trainer.parts.actors.policy, trainer.parts.actors.teacher
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        found = trainer.evaluate()
        with torch.no_grad():
            columns = [one.score(found.rollouts, frozenset({"log_distribution"})) for one in (policy, teacher.policy)]
    p, q = (column["log_distribution"].double() for column in columns)
    kl = (p.exp() * (p - q)).sum(-1)[found.rollouts.mask].mean()
    assert len(found.rollouts) == 12
    assert found.outcomes == [Outcome(None)] * 12
    assert found.metrics["eval/teacher/kl"] == pytest.approx(float(kl), rel=1e-4)


def test_no_interval_of_one_prompt(toy, tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    row = trained(toy, path).rows[-1]
    assert row["eval/prompts"] == 1
    assert "eval/teacher/kl" in row
    assert "eval/teacher/kl_low" not in row


def test_it_resumes_bit_for_bit(toy, prompts, tmp_path):
    whole = trained(toy, prompts, out=tmp_path / "whole")
    trained(toy, prompts, out=tmp_path / "parts", steps=1)
    again = trained(toy, prompts, out=tmp_path / "parts", resume=True)
    for one, other in zip(whole.parts.actors.policy.parameters(), again.parts.actors.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole.rows[-1]["eval/teacher/kl"] == again.rows[-1]["eval/teacher/kl"]


def test_with_a_reward_it_is_evaluated_by_it(toy, questions):
    row = trained(toy, questions, reward="exact").rows[-1]
    assert "eval/pass@1" in row
    assert "eval/teacher/kl" not in row
    assert math.isfinite(row["reward"])


def test_what_learns_from_rewards_still_asks_for_one(toy, prompts):
    for method in ("grpo", "scope_opd", "caopd"):
        with pytest.raises(UsageError, match=r"say how answers to prompts.jsonl are verified: --reward"):
            trained(toy, prompts, method)


def test_reference_answers_are_still_read(toy, questions, prompts):
    row = trained(toy, questions, "opsd_sdft", teacher="live").rows[-1]
    assert row["eval/teacher/kl"] > 0, "the teacher is told the answer"
    with pytest.raises(
        UsageError, match=r"the prompt that begins 'q\d+' has none; its columns: prompt\. .*reference_rows=0"
    ):
        trained(toy, prompts, "gkd")
