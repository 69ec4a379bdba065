"""The rule that keeps a tenth of all questions for evaluation."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from upslope.tasks.holdout import BUCKETS, is_held_out


@given(st.text())
def test_reads_the_first_eight_bytes_of_the_sha256(question):
    first = hashlib.sha256(question.encode()).hexdigest()[:16]
    assert is_held_out(question) == (int(first, 16) % 10 == 0)


def test_the_rule_never_moves():
    """Changing the rule would put questions that the embedded model was trained on into evaluations."""
    held_out = [number for number in range(100) if is_held_out(f"{number} + 1 =")]
    assert held_out == [5, 34, 51, 57, 63, 71, 74, 80, 81, 87]


def test_a_tenth_is_held_out():
    share = np.mean([is_held_out(f"question {number}") for number in range(20_000)])
    assert abs(share - 1 / BUCKETS) < 4 * np.sqrt(0.09 / 20_000)


@given(st.text(min_size=1))
def test_every_character_counts(question):
    """Texts that differ by white space are different questions, so nobody may strip them before asking."""
    variants = {question + " " * count for count in range(200)}
    assert {is_held_out(variant) for variant in variants} == {True, False}
