"""The contract itself: a sound method passes, and each defect is caught and named."""

import gymnasium
import numpy as np
import pytest
import torch

from upslope import UsageError
from upslope.registry import read_method
from upslope.testing import batch_of, check_method, check_resume, finite_differences

PAGE = '''"""Mine: a method.

    A  R - mean    [R]

Differs from grpo:  everything.
Limits:  none.
Expects:  two completions.
Source:  me.
Deviations:  none.
Not this:  grpo.
"""
'''
BODY = """
from dataclasses import dataclass
import torch
from upslope.methods.rlvr.grpo import grpo
from upslope.recipe import Part, Recipe
from upslope.registry import method
from upslope.parts.aggregate import TokenMean
from upslope.parts.surrogate import PolicyGradient, token_ratio

@dataclass(frozen=True)
class Advantage(Part):
    needs = frozenset({"reward", "group"})
    def __call__(self, batch):
        mean, _ = batch.group_mean(batch.reward)
        return ADVANTAGE

@dataclass(frozen=True)
class Surrogate(Part):
    needs = frozenset({"advantage"})
    def __call__(self, batch):
        return SURROGATE

@method(paper="2501.00001", title="My Own", parent="grpo")
def mine() -> Recipe:
    return grpo().replace(advantage=Advantage(), surrogate=Surrogate(), regularizer=None, aggregate=TokenMean())
"""


def write(
    folder,
    *,
    advantage="batch.reward - mean[batch.group]",
    surrogate="-batch.advantage * batch.logp",
    page=PAGE,
    old="",
    new="",
):
    read_method.cache_clear()
    path = folder / "mine.py"
    path.write_text(page + BODY.replace("ADVANTAGE", advantage).replace("SURROGATE", surrogate).replace(old, new))
    return str(path)


def test_a_sound_method_passes(tmp_path):
    check_method(write(tmp_path))


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ({"surrogate": "-batch.advantage * batch.logp + batch.entropy"}, "Surrogate reads the column 'entropy'"),
        ({"old": '{"reward", "group"}', "new": '{"reward", "group", "tokens"}'}, "declares needs 'tokens'"),
        ({"surrogate": "-batch.advantage * batch.logp.detach()"}, "does not require grad|gradient"),
        ({"advantage": "(batch.reward - mean[batch.group]) * torch.arange(len(batch))"}, "row order changes the result"),
        ({"advantage": "(batch.reward - mean[batch.group]) / batch.logp.shape[1]"}, "padding changes the result"),
        ({"surrogate": "-batch.advantage * batch.logp * len(batch)"}, "micro-batches changes the result"),
        ({"advantage": "batch.reward - batch.reward.mean()"}, "a failed reward changes the result"),
        ({"surrogate": "-batch.advantage * (1e3 * (batch.logp - 10)).exp().reciprocal()"}, "column|finite|nan|inf"),
        ({"advantage": "(batch.reward - mean[batch.group]) / batch.group_mean((batch.reward - mean[batch.group])**2)[0]"
                       "[batch.group]"}, "'advantage' is nan"),
        ({"advantage": "(batch.reward - mean[batch.group]) / (batch.group_mean(batch.reward)[1] - 1)[batch.group]"},
         "groups of one: column 'advantage' is nan"),
        ({"page": PAGE.replace("Limits:  none.\n", "")}, "docstring lacks Limits"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_defect_is_caught(tmp_path, defect, message):
    with pytest.raises((AssertionError, UsageError, RuntimeError), match=message):
        check_method(write(tmp_path, **defect))


def test_a_copy_of_the_parent_is_caught(tmp_path):
    copy = {"old": "return grpo().replace(advantage=Advantage(), surrogate=Surrogate(), regularizer=None, aggregate=TokenMean())",
            "new": "return grpo()"}  # fmt: skip
    with pytest.raises(AssertionError, match="has the very parts of its parent grpo"):
        check_method(write(tmp_path, **copy))


def test_batch_of_is_seeded_ragged_and_on_policy():
    one, other = batch_of([[1, 0], [1]], seed=3), batch_of([[1, 0], [1]], seed=3)
    assert torch.equal(one.logp, other.logp)
    assert torch.equal(one.logp, one.old_logp)
    assert one.group.tolist() == [0, 0, 1]
    assert one.logp.dtype == torch.float64
    assert batch_of([[1, 0]], lengths=[2, 5]).length.tolist() == [2, 5]


def test_finite_differences():
    at = np.array([[1.0, 2.0], [3.0, -1.0]])
    np.testing.assert_allclose(finite_differences(lambda x: (x**3).sum(), at), 3 * at**2, rtol=1e-6)


class Unrepeatable(gymnasium.Env):
    """Draws from another generator than its own."""

    observation_space, action_space = gymnasium.spaces.Box(-9, 9, (1,)), gymnasium.spaces.Discrete(2)
    drawn = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.drawn.normal(size=1).astype(np.float32), {}

    def step(self, action):
        return self.drawn.normal(size=1).astype(np.float32), 1.0, bool(self.drawn.random() < 0.2), False, {}


def test_a_run_that_goes_on_otherwise_is_told(tmp_path):
    small = {
        "eval": {"episodes": 0},
        "threads": 1,
        "rollout.environments": 2,
        "rollout.steps": 16,
        "checkpoint_every": 2,
    }
    check_resume("a2c", tmp_path / "good", killed=3, steps=4, task="CartPole-v1", **small)
    with pytest.raises(AssertionError, match="after resuming"):
        check_resume("a2c", tmp_path / "bad", killed=3, steps=4, task=Unrepeatable, **small)
    with pytest.raises(AssertionError, match="no step 9"):
        check_resume("a2c", tmp_path / "late", killed=9, steps=2, task="CartPole-v1", **small)
