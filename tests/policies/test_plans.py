"""Micro-batches partition the rows, keep to their budget, and keep prompts together."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.policies.plans import plan

from .models import rollouts_of

PACKING = st.sampled_from(["tree", "padded"])
PROMPTS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@st.composite
def rollouts(draw):
    sizes = draw(PROMPTS)
    response = st.tuples(st.integers(0, len(sizes) - 1), st.integers(0, 12).map(lambda n: [3] * n))
    return rollouts_of([[4] * n for n in sizes], draw(st.lists(response, min_size=1, max_size=25)))


def cost(rollouts, rows, packing):
    prompt = torch.tensor([len(rollouts.prompts[p]) for p in rollouts.prompt.tolist()])
    if packing == "padded":
        return len(rows) * int((prompt + rollouts.length)[rows].max())
    return sum(len(rollouts.prompts[p]) for p in rollouts.prompt[rows].unique()) + int(rollouts.length[rows].sum())


@settings(deadline=None)
@given(rollouts(), st.integers(1, 200), st.booleans(), PACKING)
def test_a_partition_within_the_budget(rollouts, budget, keep_groups, packing):
    batches = plan(rollouts, tokens_per_pass=budget, keep_groups=keep_groups, packing=packing)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(rollouts)))
    for rows in batches:
        one_unit = len(rollouts.prompt[rows].unique()) == 1 if keep_groups else len(rows) == 1
        assert one_unit or cost(rollouts, rows, packing) <= budget


@settings(deadline=None)
@given(rollouts(), st.integers(1, 200), PACKING)
def test_groups_stay_whole_when_asked(rollouts, budget, packing):
    batches = plan(rollouts, tokens_per_pass=budget, keep_groups=True, packing=packing)
    for prompt in rollouts.prompt.unique():
        assert sum(bool((rollouts.prompt[rows] == prompt).any()) for rows in batches) == 1


@settings(deadline=None)
@given(rollouts(), st.integers(1, 200))
def test_a_prompt_is_only_split_if_it_must_be(rollouts, budget):
    batches = plan(rollouts, tokens_per_pass=budget)
    for prompt in rollouts.prompt.unique():
        rows = (rollouts.prompt == prompt).nonzero()[:, 0]
        if cost(rollouts, rows, "tree") <= budget:
            assert sum(bool((rollouts.prompt[batch] == prompt).any()) for batch in batches) == 1


@settings(deadline=None)
@given(rollouts(), st.integers(1, 200), PACKING)
def test_deterministic(rollouts, budget, packing):
    once, again = (plan(rollouts, tokens_per_pass=budget, packing=packing) for _ in range(2))
    assert [rows.tolist() for rows in once] == [rows.tolist() for rows in again]


def test_only_the_given_rows():
    some = rollouts_of([[4] * 3] * 2, [(0, [5, 6]), (1, [7]), (0, [8]), (1, [9])])
    assert [r.tolist() for r in plan(some, tokens_per_pass=100, rows=torch.tensor([3, 0]))] == [[0, 3]]
    assert plan(some, tokens_per_pass=100, rows=torch.tensor([], dtype=torch.int64)) == []


def test_a_large_group_costs_its_prompt_in_each_part():
    some = rollouts_of([[4] * 10], [(0, [5] * 5)] * 6)
    assert [len(rows) for rows in plan(some, tokens_per_pass=25)] == [3, 3]
    assert [len(rows) for rows in plan(some, tokens_per_pass=25, packing="padded")] == [1] * 6
    assert [len(rows) for rows in plan(some, tokens_per_pass=9)] == [1] * 6


def test_first_fit_fills_the_gaps():
    some = rollouts_of([[4] * 6, [4] * 5, [4] * 4, [4] * 3], [(p, [5]) for p in range(4)])
    assert [rows.tolist() for rows in plan(some, tokens_per_pass=12)] == [[0, 2], [1, 3]]


def test_padded_rows_lie_next_to_others_as_wide():
    some = rollouts_of([[4]] * 4, [(0, [5] * 9), (1, [5]), (2, [5] * 8), (3, [5] * 2)])
    assert [r.tolist() for r in plan(some, tokens_per_pass=20, packing="padded")] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("packing", ["tree", "padded"])
def test_masked_tokens_count_too(packing):
    some = rollouts_of([[4] * 4] * 2, [(0, [5] * 6), (1, [5] * 6)])
    some = dataclasses.replace(some, mask=torch.zeros_like(some.mask))
    assert len(plan(some, tokens_per_pass=10, packing=packing)) == 2
