"""Training on given completions: the rows that come of data, held-out loss, resume, and what is refused."""

import json

import pytest
import torch

from upslope import Trainer, UsageError
from upslope.given import GivenCollector
from upslope.policies.language import LanguagePolicy
from upslope.prompts import PromptStream
from upslope.registry import make
from upslope.rollout import Example
from upslope.runs.metrics import read_metrics
from upslope.tasks.completions import Completion

SMALL = {"max_tokens": 8, "eval": {"prompts": 4, "every": 0}, "prompts_per_step": 4, "threads": 1}


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": "abc"[: 1 + i % 3], "rejected": "XYZ"[: 1 + i % 2]} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def trained(toy, data, method="dpo", **settings):
    with Trainer(method, model=toy, data=str(data), **{**SMALL, **settings}) as trainer:
        return trainer.train()


def test_it_learns_which_completion_is_preferred(toy, pairs):
    rows = trained(toy, pairs, steps=30, optimizer={"lr": 1e-3}).rows
    assert rows[0]["eval/loss"] == pytest.approx(0.6931, abs=1e-3), "at the reference every pair costs log 2"
    assert rows[-1]["eval/loss"] < 0.6
    assert rows[-1]["eval/pairs/accuracy"] == 1.0
    assert not any(name.startswith("sampler_gap") for row in rows for name in row)


def test_demonstrations(toy, tmp_path):
    path = tmp_path / "demos.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"p{i}", "completion": "abab"}) for i in range(30)))
    rows = trained(toy, path, "sft", steps=30, optimizer={"lr": 3e-3}).rows
    assert rows[-1]["eval/loss"] < 0.5 * rows[0]["eval/loss"]


def test_rows_of_a_pair(toy):
    policy = LanguagePolicy.load(toy)
    example = Example("k", "ab", {"completions": (Completion("xyz", 1.0), Completion("q", 0.0, score=0.25))})
    collector = GivenCollector(
        policy=policy, stream=PromptStream([example], 0), recipe=make("dpo"), limit=16, max_tokens=3
    )
    found, state = collector.collect({"cursor": 0}, prompts=1, sampling=None, key=())
    end = policy.tokenizer.eos_token_id
    first, second = (policy.tokenizer(text, add_special_tokens=False)["input_ids"] + [end] for text in ("xyz", "q"))
    assert found.rollouts.tokens[0, :3].tolist() == first[:3]
    assert found.rollouts.tokens[1, : len(second)].tolist() == second
    assert found.rollouts.finish == ["length", "stop"]
    assert [event.kind for event in found.events] == ["completion cut"]
    assert found.batch.label.tolist() == [1.0, 0.0]
    assert found.batch.reward.tolist() == [1.0, 0.25]
    assert found.batch.group.tolist() == [0, 0]
    assert "old_logp" not in found.batch
    assert state == {"cursor": 1}


def test_resumed_bit_for_bit(toy, pairs, tmp_path):
    whole = trained(toy, pairs, steps=6, out=tmp_path / "whole")
    trained(toy, pairs, steps=3, out=tmp_path / "parts")
    again = trained(toy, pairs, steps=6, out=tmp_path / "parts", resume=True)
    for one, other in zip(whole.parts.actors.policy.parameters(), again.parts.actors.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(read_metrics(tmp_path / "parts" / "metrics.jsonl")) == 7


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("dpo", {}, "give --data FILE"),
        ("dpo", {"data": "pairs.jsonl", "reward": "exact", "task": "chain_sum"}, "--reward would not be read"),
        ("grpo", {"data": "pairs.jsonl", "task": "chain_sum"}, "both task 'chain_sum' and data"),
    ],
)
def test_refused(toy, method, settings, says):
    with pytest.raises(UsageError, match=says):
        Trainer(method, model=toy, **{**SMALL, **settings})


def test_a_surrogate_with_ratios_needs_sampled_rows(toy, pairs):
    recipe = make("dpo").replace(surrogate=make("grpo").surrogate, aggregate=make("grpo").aggregate)
    with pytest.raises(UsageError, match=r"reads 'advantage'.*'old_logp'"):
        Trainer(recipe, model=toy, data=str(pairs), **SMALL)


@pytest.mark.parametrize("tokens", [1, 4096])
def test_measuring_does_not_depend_on_the_passes(toy, pairs, tokens):
    with Trainer("dpo", model=toy, data=str(pairs), steps=2, **SMALL, tokens_per_pass=tokens) as trainer:
        trainer.train()
        assert trainer.evaluate().metrics["eval/loss"] == pytest.approx(
            Trainer("dpo", model=toy, data=str(pairs), steps=2, **SMALL).train().evaluate().metrics["eval/loss"],
            rel=1e-5,
        )
