import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.report.text import cut, format_duration, format_number, format_share, format_short, number, plural, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("a\x00b\x7f", "a␀b␡"),
        ("line\r\n\tnext", "line␍\n\tnext"),
        ("abc\u202etxt.exe", "abc⟨U+202E⟩txt.exe"),
        ("zero\u200bwidth\ufeff", "zero⟨U+200B⟩width⟨U+FEFF⟩"),
        ("\ud800 alone", "⟨U+D800⟩ alone"),
        ("\U000e0041tag", "⟨U+E0041⟩tag"),
        ("👩‍👩‍👧 שלום नमस्ते", "👩‍👩‍👧 שלום नमस्ते"),
    ],
)
def test_what_would_hide_or_reorder_text_is_shown_by_name(text, shown):
    assert visible(text) == shown


@given(st.text(st.characters(codec=None)))
def test_visible_text_is_encodable_stable_and_free_of_controls(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert visible(shown) == shown
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n"]


@given(st.text(st.characters(codec="utf-8"), max_size=300), st.integers(4, 80))
def test_cut_keeps_the_beginning_and_the_end_and_counts_the_rest(text, limit):
    shown = cut(text, limit)
    if len(text) <= limit:
        assert shown == visible(text)
    else:
        tail = limit // 4
        assert shown.startswith(visible(text[: limit - tail]))
        assert shown.endswith(visible(text[len(text) - tail :]))
        assert f"{len(text) - limit:,} of {len(text):,} characters not shown" in shown


def test_a_megabyte_is_cut():
    assert len(cut("x" * 1_000_000)) < 4100


@pytest.mark.parametrize("value", [None, "1", math.nan, math.inf, 10**400, [1], {}])
def test_no_finite_float_is_no_number(value):
    assert number(value) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.4129, "0.413"), (12345.6, "12,346"), (1.5e-5, "1.50e-05"), (0.0, "0"), (1234, "1,234"), (True, "True"), (math.nan, "nan"),
     (9.996, "10.00"), (-0.25, "-0.250"), ("<b>", "<b>"), (10**400, "inf"), (2.5e10, "2.50e+10")],
)  # fmt: skip
def test_format_number(value, shown):
    assert format_number(value) == shown


def test_other_formats():
    assert [format_short(v) for v in (1.0, 0.5, 3.8e-6, 7, None)] == ["1", "0.5", "3.8e-06", "7", "None"]
    assert [format_share(v) for v in (0.0, 0.004, 0.5, 1.0)] == ["0 %", "0.4 %", "50 %", "100 %"]
    assert [format_duration(s) for s in (0.42, 12.34, 134, 11100)] == ["0.42 s", "12.3 s", "2 min 14 s", "3 h 05 min"]
    assert (plural(1, "step"), plural(2000, "step")) == ("1 step", "2,000 steps")
