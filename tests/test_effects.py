"""Settings that act on nothing are named."""

import re

import pytest

from upslope import make
from upslope.config import Config
from upslope.effects import without_effect


@pytest.mark.parametrize(
    ("recipe", "config", "says"),
    [
        (make("dapo"), Config(), r"max_length=20480 is beyond max_tokens=64.*Set it to 64"),
        (make("grpo", fresh_reference=5, regularizer=None), Config(), "reads no frozen reference"),
        (make("dpo"), Config(teacher="tiny-teacher"), "'dpo' asks no teacher. Leave it out"),
    ],
)
def test_named_with_what_to_do(recipe, config, says):
    (message,) = without_effect(recipe, config, 64)
    assert re.search(says, message)


def test_nothing_to_say_where_all_acts():
    assert without_effect(make("opd"), Config(teacher="tiny-teacher"), 64) == []
    assert without_effect(make("dpo", fresh_reference=5), Config(), 64) == []
