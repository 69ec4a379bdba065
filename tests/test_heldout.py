"""The interval of a held-out loss: its parts by prompt add up to the loss, for every method that learns from given completions."""

import json

import numpy as np
import pytest
import torch

from upslope import Batch, Trainer
from upslope.heldout import loss_interval
from upslope.parts.aggregate import LocalTokenMean, SequenceMean, SequenceSum, TokenMean, TokenSum
from upslope.parts.data import FromData
from upslope.recipe import Recipe
from upslope.registry import list_methods, make
from upslope.runs.statistics import bootstrap, mean

SMALL = {
    "max_tokens": 8,
    "eval": {"prompts": 12, "every": 0},
    "prompts_per_step": 4,
    "threads": 1,
    "steps": 2,
    "self_checks": False,
}
GIVEN = [n for n in list_methods() if isinstance(made := make(n), Recipe) and isinstance(made.rollout, FromData)]


def sft(aggregate):
    return make("sft").replace(aggregate=aggregate, regularizer=None)


def losses_of(batch, aggregate):
    recipe = sft(aggregate)
    prepared = recipe.prepare(batch)
    return recipe, prepared, float(recipe.loss(prepared)[0]), recipe.row_losses(prepared)


@pytest.mark.parametrize("aggregate", [TokenMean(), SequenceMean(), SequenceSum(), TokenSum(0.5)])
def test_the_interval_is_that_of_resampled_prompts(aggregate):
    """Against resampling whole prompts and taking the recipe's loss anew."""
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(1, 7, (20,), generator=generator)
    logp = -torch.rand(20, 6, generator=generator, dtype=torch.float64) * length.unsqueeze(1)
    batch = Batch(logp=logp, mask=torch.arange(6) < length.unsqueeze(1))
    prompt = torch.arange(20) // 2
    recipe, prepared, loss, losses = losses_of(batch, aggregate)
    assert float(losses.sum()) == pytest.approx(loss)
    found = loss_interval(recipe, prepared, loss, losses, prompt)
    rng, drawn = np.random.default_rng(1), []
    for _ in range(1500):
        rows = torch.cat([torch.arange(20)[prompt == one] for one in rng.integers(10, size=10)])
        drawn.append(float(recipe.loss(recipe.prepare(batch.select(rows)))[0]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found["loss_low"], found["loss_high"]) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_of_a_mean_over_rows_it_is_the_interval_of_every_other_mean():
    batch = Batch(logp=-torch.arange(1.0, 10.0).unsqueeze(1))
    found = loss_interval(*losses_of(batch, SequenceSum()), torch.arange(9))
    other = bootstrap(np.arange(1.0, 10.0), mean)
    assert (found["loss_low"], found["loss_high"]) == pytest.approx((other.low, other.high), rel=0.02)


def test_no_interval_of_one_prompt_or_of_runs_of_rows():
    batch = Batch(logp=-torch.ones(4, 2))
    assert loss_interval(*losses_of(batch, TokenMean()), torch.zeros(4, dtype=torch.int64)) == {}
    assert loss_interval(*losses_of(batch, LocalTokenMean(rows=4)), torch.arange(4)) == {}


@pytest.mark.parametrize("name", GIVEN)
def test_every_method_on_given_completions_has_it(toy, other_toy, tmp_path, name):
    kind = make(name).rollout.kind
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"p{i % 30}", "chosen": "abcd"[: 1 + i % 4], "rejected": "XYZ"[: 1 + i % 3]} for i in range(60)]
    if kind == "demonstrations":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"], "pass_rate": 0.1, "score": 1.0} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Trainer(name, model=toy, data=str(path), teacher=other_toy, **SMALL) as trainer:
        trainer.train()
    for row in trainer.rows:
        if "eval/loss_low" in row:
            assert row["eval/loss_low"] <= row["eval/loss"] <= row["eval/loss_high"]
    last = trainer.rows[-1]
    if make(name).advantage is None:
        assert last["eval/loss_low"] < last["eval/loss_high"]
    else:  # a policy gradient, whose level says nothing
        assert "eval/loss_low" not in last
