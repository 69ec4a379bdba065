"""Which rows can have a gradient, how groups fall into mini-batches, and that what is not finite is skipped by name."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from upslope import UsageError, make
from upslope.config import OptimizerConfig
from upslope.learner import Halves, Learner
from upslope.runs.state import pack, unpack
from upslope.testing import batch_of, value_and_gradient
from upslope.update import Actors, Updater, contributing

GROUPS = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5), min_size=1, max_size=5)


def updater(name="grpo", **changes):
    return Updater(make(name, **changes), Actors(None, None), tokens_per_pass=1, recompute_old_logp=False)


@settings(deadline=None)
@given(
    GROUPS, st.sampled_from(["grpo", "dr_grpo", "dapo", "gspo", "cispo", "gmpo", "rloo", "reinforce", "kimi_k15_md"])
)
def test_rows_left_out_have_no_gradient(rewards, name):
    recipe = make(name)
    batch = recipe.prepare(batch_of(rewards))
    used = contributing(recipe, batch)
    gradient = value_and_gradient(recipe, batch)[1]
    assert (gradient[~used] == 0).all()


def test_rows_without_advantage_are_left_out():
    recipe = make("dr_grpo")
    batch = recipe.prepare(batch_of([[1, 0, 0], [1, 1, 1], [0, 0, 0]]))
    assert contributing(recipe, batch).tolist() == [True] * 3 + [False] * 6


def test_a_regularizer_needs_every_row():
    recipe = make("grpo")
    assert recipe.regularizer is not None
    assert contributing(recipe, recipe.prepare(batch_of([[1, 1, 1], [1, 0, 1]]))).all()


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=7), minibatches=st.integers(1, 5), epochs=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_minibatches_part_the_groups(sizes, minibatches, epochs, seed):
    batch = batch_of([[0.0] * size for size in sizes])
    chosen = updater(minibatches=minibatches, epochs=epochs)._minibatches(batch, (seed,))
    per_epoch = min(minibatches, len(sizes))
    assert len(chosen) == per_epoch * epochs
    for epoch in range(epochs):
        mine = chosen[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(row for rows in mine for row in rows.tolist()) == list(range(len(batch)))
        groups = [set(batch.group[rows].tolist()) for rows in mine]
        assert sum(map(len, groups)) == len(sizes)  # no group in two
    again = updater(minibatches=minibatches, epochs=epochs)._minibatches(batch, (seed,))
    assert all(torch.equal(one, other) for one, other in zip(chosen, again, strict=True))


def test_groups_of_one_prompt_come_into_one_minibatch():
    prompt = torch.arange(6).repeat_interleave(4)
    batch = batch_of([[0.0, 0.0]] * 12).replace(prompt=prompt)  # of each prompt a given group and a sampled one
    for rows in updater(minibatches=3)._minibatches(batch, (0,)):
        assert len(rows) == 8
        assert torch.equal(prompt[rows].unique(return_counts=True)[1], torch.tensor([4, 4]))


def test_minibatches_come_in_another_order_in_every_epoch_and_step():
    batch = batch_of([[0.0, 1.0]] * 12)
    orders = [
        tuple(row for rows in updater(minibatches=4, epochs=2)._minibatches(batch, (step,)) for row in rows.tolist())
        for step in (1, 2)
    ]
    assert len({orders[0][:24], orders[0][24:], orders[1][:24], orders[1][24:]}) == 4


def learner(**changes):
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    return parameter, Learner([parameter], 0.1, OptimizerConfig(**changes), 10)


def parts_of(parameter, weights):
    return [lambda w=w: ((parameter * w).sum(), {"loss": (parameter * w).sum().detach()}) for w in weights]


def test_micro_batches_add_up():
    (a, one), (b, other) = learner(), learner()
    first = one.step(parts_of(a, [1.0, 2.0, 3.0]))
    second = other.step(parts_of(b, [6.0]))
    assert first.stats == second.stats == {"loss": 18.0}
    assert first.grad_norm == second.grad_norm == pytest.approx(6 * math.sqrt(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize(("weight", "reason"), [(math.nan, "the loss is nan"), (math.inf, "the loss is inf")])
def test_what_is_not_finite_is_skipped_and_named(weight, reason):
    parameter, taken = learner()
    result = taken.step(parts_of(parameter, [1.0, weight]))
    assert result.skipped == reason
    assert parameter.tolist() == [1.0, 2.0]
    assert parameter.grad is None
    assert taken.taken == 0
    assert taken.step(parts_of(parameter, [1.0])).skipped is None


def test_a_gradient_that_is_not_finite_is_skipped():
    parameter, taken = learner()
    result = taken.step([lambda: ((parameter - parameter.detach()).abs().sqrt().sum(), {})])
    assert result.skipped == "the gradient's norm is nan"
    assert parameter.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({}, [1, 1, 1]),
        ({"warmup": 4}, [0.2, 0.4, 0.6, 0.8, 1, 1]),
        ({"schedule": "linear"}, [1, 0.9, 0.8, 0.7]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(12)][:11]),
    ],
)
def test_schedules(changes, rates):
    parameter, taken = learner(**changes)
    found = []
    for _ in rates:
        found.append(taken.rate())
        taken.step(parts_of(parameter, [1.0]))
    assert found == pytest.approx([0.1 * rate for rate in rates])


@dataclass(frozen=True)
class Rule:
    """Remembers what it was told; a quarter of the scheduled rate."""

    told: list
    ema: float = 0.0

    def rate_factor(self, signal, noise):
        self.told.append((signal, noise))
        return 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_are_compared_and_add_up(dtype):
    """Gradients (1, 1) * 2 of a quarter of the rows, (1, 1) * 3 + (0, 1) of the rest, against NumPy."""
    rule, parameter = Rule([]), nn.Parameter(torch.tensor([1.0, 2.0], dtype=dtype))
    taken = Learner([parameter], 0.1, OptimizerConfig(grad_clip=math.inf), 10)
    late = [*parts_of(parameter, [3.0]), lambda: (parameter[1], {})]
    result = taken.step([*parts_of(parameter, [2.0]), *late], Halves(1, 0.25, rule))
    a, b = np.array([2.0, 2.0]) / 0.25, np.array([3.0, 4.0]) / 0.75
    assert rule.told == [(pytest.approx(a @ b), pytest.approx(0.25 * 0.75 * ((a - b) ** 2).sum()))]
    assert result.grad_norm == pytest.approx(math.hypot(5, 6), rel=1e-3)
    assert result.lr == pytest.approx(0.025) == taken.rate()
    assert result.stats["gradient/signal"] == taken.signal
    torch.testing.assert_close(parameter, torch.tensor([0.975, 1.975], dtype=dtype))


def test_a_half_without_gradient_is_all_noise():
    rule, (parameter, taken) = Rule([]), learner()
    taken.step(parts_of(parameter, [2.0]), Halves(1, 0.5, rule))
    taken.step(parts_of(parameter, [2.0]), Halves(0, 0.5, rule))
    assert rule.told == [(0.0, pytest.approx(8.0))] * 2


def test_the_rate_is_smoothed_and_resumed_bit_for_bit():
    rule = make("oblr_po", ema=0.5).update
    (a, one), (b, other) = learner(warmup=3), learner(warmup=3)
    for weights in ([1.0, 2.0], [3.0, -1.0], [2.0, 2.5]):
        one.step(parts_of(a, weights), Halves(1, 0.5, rule))
    for weights in ([1.0, 2.0], [3.0, -1.0]):
        other.step(parts_of(b, weights), Halves(1, 0.5, rule))
    assert other.signal == pytest.approx(0.5 * (0.5 * 16) + 0.5 * -24)
    assert other.rate() == 0.0, "the smoothed signal is negative"
    c, resumed = learner(warmup=3)
    with torch.no_grad():
        c.copy_(b)
    resumed.load_state_dict(unpack(*pack(other.state_dict())))
    resumed.step(parts_of(c, [2.0, 2.5]), Halves(1, 0.5, rule))
    assert torch.equal(c, a)
    assert (resumed.rate(), resumed.signal, resumed.noise) == (one.rate(), one.signal, one.noise)
    assert 0 < one.rate() < 0.1


def test_a_skipped_step_leaves_the_rate_alone():
    rule, (parameter, taken) = Rule([]), learner()
    result = taken.step(parts_of(parameter, [1.0, math.inf]), Halves(1, 0.5, rule))
    assert (result.lr, rule.told, taken.rate()) == (None, [], 0.1)


def test_the_next_step_is_adams():
    """What `direction` says of a gradient is what AdamW then does with it, from the first step on."""
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    taken = Learner([parameter], 0.1, OptimizerConfig(betas=(0.8, 0.95), grad_clip=math.inf), 10)
    for seed in range(4):
        gradient = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed))
        step, before = taken.next_step(parameter), parameter.detach().clone()
        moved = step.lr * step.direction(gradient[[1, 0]], torch.tensor([1, 0]))
        taken.step([lambda gradient=gradient: ((parameter * gradient).sum(), {})])
        torch.testing.assert_close(before - parameter.detach(), moved[[1, 0]])


def test_the_step_of_a_frozen_parameter_is_refused():
    _, taken = learner()
    with pytest.raises(UsageError, match=r"shape \[3\] is asked for, which this run does not train"):
        taken.next_step(torch.zeros(3))
