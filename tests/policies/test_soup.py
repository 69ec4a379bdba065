"""Averages of models."""

import pytest
import torch

from upslope import UsageError
from upslope.policies.language import LanguagePolicy
from upslope.policies.soup import average_models


@pytest.fixture
def other(toy, tmp_path):
    """A folder with the toy's weights times 3."""
    policy = LanguagePolicy.load(toy)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(3)
    policy.save(tmp_path / "other")
    return tmp_path / "other"


def weights(path):
    return dict(LanguagePolicy.load(str(path)).model.named_parameters())


@pytest.mark.parametrize(("shares", "factor"), [(None, 2.0), ([0.75, 0.25], 1.5), ([1.0, 0.0], 1.0)])
def test_weights_are_averaged(toy, other, tmp_path, shares, factor):
    one, soup = weights(toy), weights(average_models([toy, other], tmp_path / "soup", shares))
    assert one.keys() == soup.keys()
    for name, weight in one.items():
        torch.testing.assert_close(soup[name], factor * weight)


def test_other_shapes_and_wrong_shares_are_refused(toy, other, tmp_path):
    with pytest.raises(UsageError, match=r"shares \[0\.5, 0\.6\]"):
        average_models([toy, other], tmp_path / "soup", [0.5, 0.6])
    with pytest.raises(UsageError, match="not 1 models"):
        average_models([toy], tmp_path / "soup")
    with pytest.raises(UsageError, match="cannot be averaged"):
        average_models([toy, "tiny"], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
