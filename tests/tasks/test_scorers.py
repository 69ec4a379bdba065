"""The verifiers that come along, called directly, and through reasoning-gym's own scorers."""

import datetime
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.tasks.procedural import make_dataset
from upslope.tasks.scorers import (
    RIGHT,
    WRONG,
    Choices,
    Exact,
    Math,
    Pattern,
    Procedural,
    Sample,
    describe_error,
    excerpt,
    final_answer,
    to_score,
)


class Notes:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def score(scorer, completion, reference=None, **data):
    return scorer.score(Sample("question", completion, data, reference))


@given(st.lists(st.text("ab1.", min_size=1, max_size=5), min_size=1))
def test_exact_ignores_only_whitespace(words):
    exact = Exact(Notes())
    assert score(exact, "  \n".join(words), " ".join(words)) == RIGHT
    assert score(exact, " ".join([*words, "x"]), " ".join(words)) == WRONG


def test_exact_references():
    exact, loose = Exact(Notes()), Exact(Notes(), ignore_case=True)
    assert score(exact, "12", 12) == RIGHT
    assert score(exact, "B", ["A", "B"]) == RIGHT
    assert score(exact, "yes", "Yes") == WRONG
    assert score(loose, "yes", "Yes") == RIGHT
    assert score(exact, "12")[1] == "the row has no reference answer"


@pytest.mark.parametrize(
    ("completion", "reference", "value"),
    [
        ("A", "A", 1.0),
        ("A", "A, C", 0.5),
        ("A", ["A", "B", "C", "D"], 0.25),
        ("c;a", "A, C", 1.0),
        ("A A", "A, C", 0.5),
        ("A, B", "A, C", 0.0),
        ("A, B, C", "A, C", 0.0),
        ("", "A", 0.0),
        ("I think it is A", "A", 0.0),
        ("I think <answer>B</answer>, no: <answer> (A), (C). </answer>", "A C", 1.0),
        ("10, 12", [10, 12, 14, 16], 0.5),
    ],
)
def test_choices_give_the_share_named_unless_one_is_wrong(completion, reference, value):
    assert score(Choices(Notes()), completion, reference) == (value, None)


def test_choices_without_a_usable_reference_fail():
    assert score(Choices(Notes()), "A")[1] == "the row has no reference answer"
    assert score(Choices(Notes()), "A", " , ")[1] == "the reference answer names no option: ' , '"


def test_pattern():
    assert score(Pattern(Notes(), r"^<a>.*</a>$"), "<a>1</a>", "2") == RIGHT
    assert score(Pattern(Notes(), r"^<a>.*</a>$"), "1", "1") == WRONG
    group = Pattern(Notes(), r"answer is (\w+)?")
    assert score(group, "the answer is 12, yes", 12) == RIGHT
    assert score(group, "the answer is 13", 12) == WRONG
    assert score(group, "the answer is ", 12) == WRONG
    assert score(group, "the answer is 13") == RIGHT


@pytest.fixture(scope="module")
def verifier():
    return Math(Notes())


@settings(deadline=None, max_examples=30)
@given(st.integers(-999, 999), st.integers(1, 99))
def test_math_knows_equal_fractions(verifier, above, below):
    reference = str(Fraction(above, below))
    assert score(verifier, rf"So it is $\frac{{{3 * above}}}{{{3 * below}}}$.", reference) == RIGHT
    assert score(verifier, rf"\boxed{{{above + below}/{below}}}", reference) == WRONG


@pytest.mark.parametrize(
    ("reference", "completion"),
    [
        ("Tom has 3 * 24 = 72 apples.\n#### 72", "The answer is 72"),
        (r"$\sqrt{8}$", r"\boxed{2\sqrt{2}}"),
        (0.5, "1/2"),
        ("1,000", r"$1000$"),
    ],
)
def test_math_reference_forms(verifier, reference, completion):
    assert score(verifier, completion, reference) == RIGHT


def test_math_without_a_usable_reference_fails(verifier):
    assert score(verifier, "1", "") == (None, "the reference answer cannot be parsed: ''")
    assert score(verifier, "1")[1] == "the row has no reference answer"
    assert score(verifier, "no idea", "1") == WRONG


def test_procedural_scores_oracle_and_garbage():
    scorer = Procedural(Notes(), "chain_sum", {})
    entry = make_dataset("chain_sum", {}, seed=3)[5]
    assert score(scorer, f" {entry['answer']}\n", **entry) == RIGHT
    assert score(scorer, f"I think <answer>9</answer> <answer> {entry['answer']} </answer>", **entry) == RIGHT
    assert score(scorer, "", **entry) == WRONG


def test_a_scorer_that_raises_on_garbage_counts_as_wrong_and_is_named_once():
    scorer = Procedural(channel := Notes(), "prime_factorization", {})
    entry = make_dataset("prime_factorization", {}, seed=3)[5]
    assert score(scorer, entry["answer"], **entry) == RIGHT
    assert [score(scorer, "seven", **entry), score(scorer, "eight", **entry)] == [WRONG, WRONG]
    (note,) = channel.notes
    assert note.startswith("prime_factorization's scorer raised ValueError")


@given(st.text())
def test_final_answer_is_what_the_last_element_holds(text):
    assert final_answer(text.replace("<", "")) == text.replace("<", "").strip()
    assert final_answer(f"<answer>1</answer><answer>{text.replace('<', '')}</answer>") == text.replace("<", "").strip()


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.floats()), st.dates()))
def test_a_score_is_a_finite_float_or_a_reason(value):
    number, failure = to_score(value)
    finite = isinstance(value, int | float) and abs(value) < 1e308
    assert (number == float(value)) if finite else (number is None or abs(number) < float("inf"))
    assert (failure is None) == (value is None or number is not None)


def test_errors_are_told_whatever_they_are():
    class UnprintableError(Exception):
        def __str__(self):
            raise RuntimeError

    assert describe_error(UnprintableError()) == "UnprintableError: (its message cannot be printed)"
    assert describe_error(KeyError()) == "KeyError"
    assert len(describe_error(ValueError("x\n" * 5000))) < 400
    assert excerpt("x" * 100) == repr("x" * 79 + "…")
    assert to_score(datetime.date(2020, 1, 1)) == (None, "returned date, not a number")
