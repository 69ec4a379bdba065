"""Reading a reward: texts, sums, weights, files; what is wrong is said before anything runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.tasks.rewards import RewardPart, parse_reward

OWN = RewardPart("chain_sum", "reasoning_gym")


@pytest.fixture
def rewards_file(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text("def score(completions, **columns): ...\nasync def slow(solution_str): ...\n")
    return path


def weights(spec, own=None):
    return {part.name: part.weight for part in parse_reward(spec, own)}


def test_single_verifiers():
    assert weights("exact") == {"exact": 1.0}
    assert parse_reward("exact:ignore_case")[0].settings["ignore_case"] is True
    assert weights("math") == {"math": 1.0}
    assert parse_reward("choices+0.5*regex:x")[0] == RewardPart("choices", "choices")
    assert parse_reward("choices")[0].needs_reference
    assert weights("task", OWN) == {"chain_sum": 1.0}
    assert parse_reward("package.module:function")[0].settings["module"] == "package.module"


@pytest.mark.parametrize("pattern", [r"a+b*0.5+exact", r"\d+", ":", "x:y.py", r"^(?:[^*]*)$"])
def test_a_regex_takes_the_rest_of_the_text(pattern):
    assert parse_reward(f"regex:{pattern}")[0].settings["pattern"] == pattern
    first, last = parse_reward(f"exact*2+0.5*regex:{pattern}")
    assert (first.weight, last.weight, last.settings["pattern"]) == (2.0, 0.5, pattern)


@given(st.floats(-1e9, 1e9).filter(bool), st.floats(1e-9, 1e9))
def test_weights_on_either_side_in_any_notation(first, second):
    assert weights(f"exact*{first!r}+math*{second!r}") == {"exact": first, "math": second}
    assert weights(f"{second:e}*math+{first!r}*exact") == {"math": float(f"{second:e}"), "exact": first}


def test_sum_with_a_file(rewards_file):
    assert weights(f"{rewards_file}:score*0.5+exact*1.0") == {"score": 0.5, "exact": 1.0}
    assert weights({f"{rewards_file}:score": 2.0, "exact": 1}) == {"score": 2.0, "exact": 1.0}
    assert weights(["exact", "exact", "math"]) == {"exact": 1.0, "exact_2": 1.0, "math": 1.0}


def test_a_file_name_may_hold_a_plus(tmp_path):
    path = tmp_path / "a+b*2.py"
    path.write_text("def f(completions): ...")
    assert parse_reward(f"{path}:f")[0].settings["path"] == str(path)


def test_a_function_is_named_by_its_file():
    part = parse_reward(weights)[0]
    assert (part.settings["path"], part.settings["function"]) == (__file__, "weights")
    with pytest.raises(UsageError, match="top level of a file"):
        parse_reward(lambda completions: [])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "empty"),
        ("exakt", "no reward 'exakt'. A reward is exact"),
        ("exact+", "empty term"),
        ("+exact", "empty term"),
        ("exact*zero", "no number: 'zero'"),
        ("exact*0", "must be finite and not 0"),
        ("exact*nan", "must be finite"),
        ("regex:", "no pattern"),
        ("regex:(", "does not compile: missing \\)"),
        ("task", "a data file has none"),
        ("missing.py:score", "missing.py cannot be read: No such file"),
        ("exact:sometimes", "has no option 'sometimes'; it has ignore_case"),
        ("ast:sometimes", "has no option 'sometimes'; it has think"),
        ("some where:f", "there is no reward 'some where:f'"),
        (7, "a text or a function, not int"),
        ([7], "a text or a function, not int"),
        ([], "the reward is empty"),
    ],
)
def test_wrong_texts_are_explained(spec, message):
    with pytest.raises(UsageError, match=message):
        parse_reward(spec)


def test_file_errors_name_line_and_functions(tmp_path, rewards_file):
    with pytest.raises(UsageError, match=r"names no function.*Its functions: score, slow"):
        parse_reward(str(rewards_file))
    with pytest.raises(UsageError, match="Its functions: score, slow"):
        parse_reward(f"{rewards_file}:")
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ndef score(completions:\n    return 1\n")
    with pytest.raises(UsageError, match=r"broken.py has a syntax error at line 2"):
        parse_reward(f"{broken}:score")
    broken.write_bytes(b"x = '\xff\xfe'\x00")
    with pytest.raises(UsageError, match=r"broken\.py"):
        parse_reward(f"{broken}:score")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        parse_reward(f"{tmp_path}/:score")
