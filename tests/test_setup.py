"""What a recipe reads against what training makes, before anything is opened."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from upslope import Trainer, UsageError, make
from upslope.batch import COLUMNS
from upslope.collect import SAMPLED_COLUMNS, first_batch
from upslope.config import Config
from upslope.control.on_policy import check_recipe
from upslope.parts.sampling import Uniform
from upslope.recipe import Part
from upslope.rollout import Example, Outcome, Rollouts
from upslope.setup import check_columns
from upslope.testing import methods_on_batches

NOT_TRAINED_HERE = {"grpo_guard": "step_size"}
"""Methods that nothing here trains, and a column of theirs that nothing makes: it comes from a sampler of images."""


@dataclass(frozen=True)
class Reads(Part):
    column: str = "reward"

    @property
    def needs(self):
        return frozenset({self.column})


@dataclass(frozen=True)
class Telling(Uniform):
    def track(self, visit, state):
        return {"expected_reward": torch.zeros(len(visit.batch))}, state


@dataclass(frozen=True)
class Observing(Reads):
    def observes(self):
        return {self.column: lambda log_probs, tokens: log_probs.amax(-1)}


@dataclass(frozen=True)
class Measuring(Reads):
    measured_from: ClassVar[frozenset[str]] = frozenset({"hidden"})
    words: int | None = 5

    def measure(self, batch, step):
        return {}


@dataclass(frozen=True)
class Altering(Reads):
    def alter_prompt(self, ids, blank, generator):
        return ids


@pytest.mark.parametrize("name", sorted(set(methods_on_batches()) - NOT_TRAINED_HERE.keys()))
def test_every_method_finds_its_columns(name):
    recipe = make(name)
    if recipe.trainer() is Trainer:
        check_columns(recipe)
    else:
        check_recipe(recipe, Config(method=name, task="CartPole-v1"))


@pytest.mark.parametrize(("name", "column"), NOT_TRAINED_HERE.items())
def test_a_method_that_nothing_here_trains_is_refused(name, column):
    with pytest.raises(UsageError, match=rf"^'{name}' reads .*'{column}'.*makes th") as error:
        check_columns(make(name))
    assert "\n" not in str(error.value)


def test_the_list_of_sampled_columns_is_that_of_the_first_batch():
    ones = torch.ones(1, 1)
    rollouts = Rollouts(
        [[1]], ones[0].long() - 1, ones.long(), ones.bool(), ones[0].long(), -ones, -ones, ["stop"], [""]
    )
    batch = first_batch(rollouts, [Outcome(1.0)], [Example("k", "q")])
    assert set(batch) | {"weight", "progress", "step"} == SAMPLED_COLUMNS
    assert all(hasattr(batch, name) for name in SAMPLED_COLUMNS)
    assert set(COLUMNS) >= SAMPLED_COLUMNS


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"curriculum": Telling()}, "expected_reward"),
        ({"control": Observing("seen")}, "seen"),
        ({"control": Measuring("measured")}, "measured"),
        ({"weight": Altering("masked_logp")}, "masked_logp"),
        ({"critic": Reads("value")}, "old_value"),
    ],
)
def test_columns_that_a_part_makes(changes, column):
    recipe = make("dr_grpo").replace(regularizer=Reads(column))
    with pytest.raises(UsageError, match=rf"reads '{column}'.* makes that column\. .* Batch that has it\."):
        check_columns(recipe)
    check_columns(recipe.replace(**changes))
