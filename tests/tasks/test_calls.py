"""Function calls compared by their syntax trees: what is equal, what is no list of calls, and that nothing is executed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.rollout import Example
from upslope.tasks.calls import LONGEST, FunctionCalls, parse_calls
from upslope.tasks.judge import Judge
from upslope.tasks.rewards import parse_reward
from upslope.tasks.scorers import RIGHT, WRONG, Sample


def score(completion, reference, think=False):
    return FunctionCalls(None, think=think).score(Sample("question", completion, {}, reference))


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        ("f(x=3,y=2)", "f(x=3, y=2)"),
        ("f(y=2, x=3)", "f(x=3, y=2)"),
        ("[f(x=3, y=2)]", "f(x=3, y=2)"),
        ("  \n f(x=3,\n   y=2)\n", "f(x=3, y=2)"),
        ("g(), f(x=1)", "[f(x=1), g()]"),
        ("g()\nf(x=1)", "f(x=1); g()"),
        ("f(a='b')", 'f(a="b")'),
        ("f(n=1_000)", "f(n=1000)"),
        ("api.find(q=[1, {'b': 2, 'a': 1}])", "api.find(q=[1, {'a': 1, 'b': 2}])"),
        ("f({1, 2})", "f({2, 1})"),
        ("f(x=g(b=1, a=2))", "f(x=g(a=2, b=1))"),
        ("f(x=-1, y=None, *z, **w)", "f(y=None, x=-1, *z, **w)"),
        ("<think>two calls: f()</think>\nf(x=1)", "f(x=1)"),
        ("It is <answer>f(x=1)</answer>", "f(x=1)"),
        ("f(x=1)", ["g()", "f(x=1)"]),
    ],
)
def test_equal(completion, reference):
    assert score(completion, reference) == RIGHT


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        ("f(x=3)", "f(x=3, y=2)"),
        ("f(x=3, y=2, z=1)", "f(x=3, y=2)"),
        ("g(x=3)", "f(x=3)"),
        ("f(y=3)", "f(x=3)"),
        ("f(x=3)", "f(x='3')"),
        ("f(x=3)", "f(x=3.0)"),
        ("f(x=1)", "f(x=True)"),
        ("f(3)", "f(x=3)"),
        ("f(1, 2)", "f(2, 1)"),
        ("f(x=[1, 2])", "f(x=[2, 1])"),
        ("f(x='a ')", "f(x='a')"),
        ("a.f()", "b.f()"),
        ("f()", "[f(), f()]"),
        ("[f(), f()]", "f()"),
        ("[f(), g()]", "f()"),
        ("f(x=1) and g()", "f(x=1)"),
        ("Call f(x=1)", "f(x=1)"),
        ("```python\nf(x=1)\n```", "f(x=1)"),
        ("y = f(x=1)", "f(x=1)"),
        ("f(x=1)(2)", "f(x=1)"),
        ("f", "f()"),
        ("[]", "f()"),
        ("", "f()"),
        ("f(x=1", "f(x=1)"),
        ("<think>f(x=1)", "f(x=1)"),
    ],
)
def test_different_or_no_call(completion, reference):
    assert score(completion, reference) == WRONG


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>the value is 1</think>f(x=1)", RIGHT),
        (" \n<think>a\nb</think>\n\nf(x=1)\n", RIGHT),
        ("the prompt opened it</think>f(x=1)", RIGHT),
        ("f(x=1)", WRONG),
        ("<think>never closed f(x=1)", WRONG),
        ("<think>a</think><think>b</think>f(x=1)", WRONG),
        ("<think>a</think>So: f(x=1)", WRONG),
        ("<think>a</think>", WRONG),
        ("Well. <think>a</think>f(x=1)", WRONG),
    ],
)
def test_the_format_with_reasoning(completion, value):
    assert score(completion, "f(x=1)", think=True) == value


def test_a_reference_that_is_no_call_fails():
    assert score("f()", None)[1] == "the row has no reference answer"
    for reference in ("42", "", [], ["f()", "42"]):
        value, failure = score("f()", reference)
        assert value is None
        assert failure.startswith("the reference answer is no function call")


def test_nothing_is_executed_and_nothing_breaks_the_parser(tmp_path):
    touched = tmp_path / "touched"
    assert score(f"open({str(touched)!r}, 'w')", "f()") == WRONG
    assert not touched.exists()
    hostile = [
        "f(" * 5000,
        "f(x=" + "-" * 5000 + "1)",
        "f(x=" + "[" * 300 + "]" * 300 + ")",
        "f(" + "9" * 5000 + ")",
        "f(x=0x" + "f" * 6000 + ")",
        "f(\0)",
        "f(x='\ud800')",
        "f(x=1, x=2)",
        r"f('\d')",
        "f()" + " " * LONGEST + "\n",
    ]
    for text in hostile:
        assert score(text, "f(x=1)") == WRONG
    assert score("f(x=0x" + "f" * 6000 + ")", "f(x=0x" + "f" * 6000 + ")") == RIGHT


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["f", "g", "a.b"]), st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3)),
    min_size=1,
    max_size=4,
)


def written(calls):
    return [f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls]


@given(CALLS, st.randoms())
def test_any_order_of_calls_and_of_named_arguments_is_equal(calls, random):
    shuffled = [(name, dict(random.sample(list(given.items()), len(given)))) for name, given in calls]
    random.shuffle(shuffled)
    assert score("\n".join(written(shuffled)), f"[{', '.join(written(calls))}]") == RIGHT


@given(CALLS, CALLS)
def test_equal_trees_are_equal_lists_of_names_and_values(one, other):
    def plain(calls):
        return sorted((name, sorted((key, repr(value)) for key, value in given.items())) for name, given in calls)

    def ordered(value):
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value)}
        return [ordered(item) for item in value] if isinstance(value, list) else value

    sides = [
        plain([(name, {k: ordered(v) for k, v in given.items()}) for name, given in calls]) for calls in (one, other)
    ]
    assert (parse_calls("\n".join(written(one))) == parse_calls("\n".join(written(other)))) == (sides[0] == sides[1])


def test_in_a_worker():
    with Judge(parse_reward("ast:think*0.5+ast"), reference=lambda example: "f(x=1)") as judge:
        examples = [Example("a", "question")] * 2
        outcomes = judge.score(examples, ["<think>so</think>f(x=1)", "f(x=1)"])
    assert [outcome.value for outcome in outcomes] == [1.5, 1.0]
