"""Expressions of files are data: what would have to be run is refused, whatever it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope import UsageError
from upslope.hyperparameters.literals import Name, parse_literal

PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
NAMES = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(lambda name: name.isidentifier() and name != "dict")
DATA = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(NAMES | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(DATA)
def test_reads_back_what_python_writes(value):
    """Strings with runs of white space aside, which a folded YAML line has, too."""
    text = repr(value)
    if " ".join(text.split()) == text:
        assert parse_literal(text, "here") == value


@given(st.dictionaries(NAMES, PLAIN.filter(lambda v: not isinstance(v, str)), max_size=4))
def test_dict_of_keywords(values):
    import keyword

    values = {name: value for name, value in values.items() if not keyword.iskeyword(name)}
    text = f"dict({', '.join(f'{name}={value!r}' for name, value in values.items())})"
    assert parse_literal(text, "here") == values


def value_or_error(text):
    said = "FILE"
    try:
        parse_literal(text, "FILE")
    except UsageError as error:
        said = str(error)
    assert "FILE" in said


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_a_clear_error(text):
    value_or_error(text)


@given(st.text(alphabet="[({-+~1,a.'\"})]", max_size=200))
def test_any_punctuation_is_a_value_or_a_clear_error(text):
    value_or_error(text)


def test_networks():
    text = """dict(log_std_init=-2,
                   activation_fn=nn.ReLU, net_arch=[dict(pi=[256, 256], vf=[256])])"""
    found = parse_literal(text, "policy_kwargs")
    assert found == {"log_std_init": -2, "activation_fn": "nn.ReLU", "net_arch": [{"pi": [256, 256], "vf": [256]}]}
    assert isinstance(found["activation_fn"], Name)
    assert parse_literal("th.nn.Tanh", "x") == "th.nn.Tanh"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch hacked')",
        "dict(a=__import__('os').system('touch hacked'))",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "open('hacked', 'w')",
        "getattr(nn, 'ReLU')",
        "dict(**{'a': 1})",
        "dict([('a', 1)])",
        "f'{open}'",
        "1 + 1",
        "2 ** 10 ** 10",
        "not True",
        "a if b else c",
        "nn['ReLU']",
        "{**{'a': 1}}",
        "b'bytes'",
        "...",
        "{[1]: 2}",
        "-True",
        "--'a'",
        "a := 1",
        "*a",
        "1; 2",
        "",
        "\0",
        "(" * 500,
        "[" * 3000 + "]" * 3000,
        "9" * 9999,
        "0" + "+0" * 4000,
    ],
)
def test_what_would_have_to_be_run_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="FILE"):
        parse_literal(text, "FILE")
    assert not list(tmp_path.iterdir())
