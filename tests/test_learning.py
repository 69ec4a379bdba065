"""Learning on the embedded model, minutes long: `make test-learning`. Figures of longer runs: docs/results/learning.md."""

from pathlib import Path

import pytest

from upslope import Trainer
from upslope.config import config_from, read_config

pytestmark = pytest.mark.learning
DEMO = read_config(Path(__file__).parents[1] / "demo.yaml")


def passes(settings):
    """Held-out pass@1 with its interval, before and after."""
    with Trainer(config=config_from({**DEMO, "threads": 1, "sinks": [], **settings})) as trainer:
        rows = [row for row in trainer.train().rows if "eval/pass@1" in row]
    return [(row["eval/pass@1"], row["eval/pass@1_low"], row["eval/pass@1_high"]) for row in (rows[0], rows[-1])]


def test_the_demo_rises_from_below_a_half_to_above_eight_tenths():
    before, after = passes({})
    assert before[0] <= 0.5
    assert after[0] >= 0.8


@pytest.mark.parametrize("task", ["spell_backward", "simple_equations", "leg_counting"])
def test_other_tasks_rise(task):
    before, after = passes({"task": task, "steps": 60, "max_tokens": 16})
    assert after[1] > before[2]


@pytest.mark.parametrize("method", ["reinforce", "rloo", "dr_grpo", "cispo", "gspo", "gmpo", "reinforce_pp_baseline"])
def test_methods_rise(method):
    before, after = passes({"method": method, "steps": 60})
    assert after[1] > before[2]
