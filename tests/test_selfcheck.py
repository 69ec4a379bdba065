"""Each self-check passes on a sound model and fails on the bug that it stands for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from upslope import UsageError
from upslope.config import config_from
from upslope.selfcheck import self_checks
from upslope.setup import open_parts

NAMES = ["tokens round-trip", "sampler and trainer agree", "mask coverage", "micro-batches add up", "save and load"]


def config_of(toy, questions, **changes):
    return config_from(
        {"model": toy, "data": str(questions), "reward": "exact", "max_tokens": 8, "threads": 1, **changes}
    )


@pytest.fixture
def opened(toy, questions):
    """Opens the parts of a run, and ends its workers."""
    made = []

    def make(**changes):
        config = config_of(toy, questions, **changes)
        made.append(open_parts(config, recipe=None, task=None, policy=None, weights=None))
        return made[-1], config

    yield make
    for parts in made:
        parts.task.close()


def failed(parts, config):
    """Names of the checks that fail, and what they say."""
    checks = self_checks(parts, config)
    assert [check.name for check in checks] == NAMES
    assert [check.ok for check in checks] == [check.value <= check.limit for check in checks]
    return {check.name: check.message for check in checks if not check.ok}


def weights(parts):
    return torch.cat([p.detach().flatten() for p in parts.actors.policy.model.parameters()])


@pytest.mark.parametrize(
    "settings", [{}, {"method": "ppo_llm"}, {"packing": "padded"}, {"method": "gspo"}, {"lora": {"rank": 2}}]
)
def test_sound_models_pass_and_keep_their_weights(opened, settings):
    parts, config = opened(**settings)
    before = weights(parts)
    assert failed(parts, config) == {}
    assert torch.equal(weights(parts), before)
    assert not parts.actors.learner.state_dict()["optimizer"]["state"]


def test_a_tokenizer_that_loses_characters(opened, toy, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(toy, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "q1"}, "content": "Q"}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = failed(*opened(model=str(model)))
    assert list(found) == ["tokens round-trip"]
    assert "the tokenizer changes prompts: 'q1" in found["tokens round-trip"]


def broken_score(parts, change):
    policy = parts.actors.policy
    score = policy.score

    def broken(rollouts, needs=frozenset({"logp"}), *, rows=None, **options):
        columns = score(rollouts, needs, rows=rows, **options)
        count = len(rollouts) if rows is None else len(rows)
        return {**columns, "logp": change(columns["logp"], count)}

    policy.score = broken


def test_a_trainer_that_scores_otherwise_than_the_sampler(opened):
    parts, config = opened()
    broken_score(parts, lambda logp, rows: logp + 0.1)
    found = failed(parts, config)
    assert "sampler and trainer agree" in found
    assert "by at most 1.0e-01 (limit 0.001)" in found["sampler and trainer agree"]
    assert "micro-batches add up" not in found


def test_a_score_that_depends_on_the_rows_beside(opened):
    parts, config = opened()
    broken_score(parts, lambda logp, rows: logp * (1 + 0.01 * rows) - 0.01 * rows * logp.detach())
    assert list(failed(parts, config)) == ["micro-batches add up"]


def test_a_mask_with_padding(opened):
    parts, config = opened()
    generate = parts.engine.generate

    def shorter_by_one(*given):
        rollouts = generate(*given)
        length = rollouts.length.clone()
        length[0] -= 1
        return replace(rollouts, length=length)

    parts.engine.generate = shorter_by_one
    assert "1 padded positions are masked in" in failed(parts, config)["mask coverage"]


def test_rows_without_a_trained_token(opened):
    parts, config = opened()
    generate = parts.engine.generate

    def without_first(*given):
        rollouts = generate(*given)
        mask = rollouts.mask.clone()
        mask[0] = False
        return replace(rollouts, mask=mask)

    parts.engine.generate = without_first
    assert "1 rows have none" in failed(parts, config)["mask coverage"]


def test_a_folder_with_other_weights(opened):
    parts, config = opened()
    policy, save = parts.actors.policy, parts.actors.policy.save

    def slightly_off(folder):
        save(folder)
        file = Path(folder) / "model.safetensors"
        scaled = {name: weight * (1 + 1e-6) for name, weight in load_file(file).items()}
        save_file(scaled, file, {"format": "pt"})

    policy.save = slightly_off
    found = failed(parts, config)
    assert list(found) == ["save and load"]
    assert "weights changed" in found["save and load"]


def test_long_prompts_are_passed_over(opened, tmp_path):
    data = tmp_path / "long.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"{i}" * (100 if i < 9 else 1), "answer": "1"}) + "\n" for i in range(1, 40))
    )
    assert failed(*opened(data=str(data))) == {}
    data.write_text("".join(json.dumps({"question": f"{i}" * 100, "answer": "1"}) + "\n" for i in range(1, 40)))
    with pytest.raises(UsageError, match="no training prompt fits into the 88 tokens"):
        opened(data=str(data))
