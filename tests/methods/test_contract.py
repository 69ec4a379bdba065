"""Every registered method keeps the contract of upslope.testing."""

import pytest

from upslope import find, list_methods, make
from upslope.testing import check_method


@pytest.mark.parametrize("name", list_methods())
def test_contract(name):
    check_method(name)


@pytest.mark.parametrize("name", [f"{name}@{system}" for name in list_methods() for system in find(name).presets])
def test_preset_builds_and_differs_from_its_method(name):
    assert make(name).parts() != make(name.partition("@")[0]).parts()
