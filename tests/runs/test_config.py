from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.runs.config import changed_settings, flatten, is_free, plain, read_config, write_config

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(), inner, max_size=3),
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("config") / "config.yaml"


@settings(max_examples=50, deadline=None)
@example(config={"\x85": "\u4e2d\u6587"})
@given(config=st.dictionaries(st.text(), VALUES, max_size=4))
def test_written_settings_are_read_back_and_unchanged(path, config):
    write_config(path, config)
    assert read_config(path) == plain(config)
    assert changed_settings(read_config(path), config) == {}


def test_changes_are_named_by_their_path():
    old = {"seed": 1, "task": {"name": "countdown", "settings": {"size": 3}}, "gone": 1, "same": (1, 2)}
    new = {"seed": 2, "task": {"name": "countdown", "settings": {"size": 4}}, "new": None, "same": [1, 2], "added": 0.5}
    assert changed_settings(old, new) == {
        "seed": (1, 2),
        "task.settings.size": (3, 4),
        "added": (None, 0.5),
        "gone": (1, None),
    }


def test_free_settings_cover_what_lies_under_them():
    assert is_free("eval", {"eval"})
    assert is_free("eval.every", {"eval"})
    assert is_free("task.eval.size", {"task.eval"})
    assert not is_free("evaluate", {"eval"})
    assert not is_free("task.eval", {"eval"})


def test_paths_sets_and_subclasses_become_plain():
    class Text(str):
        __slots__ = ()

    assert plain({"a": Path("x/y"), "b": {2, 1}, "c": Text("t")}) == {"a": "x/y", "b": [1, 2], "c": "t"}
    assert flatten({"a": {"b": {"c": 1}, "d": {}}}) == {"a.b.c": 1, "a.d": {}}
    with pytest.raises(UsageError, match=r"the setting 'a\.b\[1\]' is a object"):
        plain({"a": {"b": [1, object()]}})


@pytest.mark.parametrize("content", [b"", b"a: [", b"- 1", b"\xff\xfe", b"!!python/object/apply:os.getcwd []"])
def test_settings_that_cannot_be_read(path, content):
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"config.yaml"):
        read_config(path)
