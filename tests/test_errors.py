"""Numbers outside their range are refused by name, in whatever part they are set."""

import math

import pytest

from upslope import make
from upslope.errors import UsageError, check_within
from upslope.parts.gae import GAE


def test_within_is_inclusive_and_names_part_setting_and_bounds():
    check_within(GAE(gamma=0.0, lam=1.0), 0, 1, "gamma", "lam")
    with pytest.raises(UsageError, match=r"^GAE.lam is 3; it must be from 0 to 1\.$"):
        GAE(lam=3.0)
    with pytest.raises(UsageError, match=r"GAE.eps is 1e-08; it must be a finite number of at least 1"):
        check_within(GAE(), 1, math.inf, "eps")


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("ppo", "gamma"),
        ("ppo", "lam"),
        ("trpo", "lam"),
        ("a2c", "gamma"),
        ("pdppo", "advantage.gamma"),
        ("ospo@grpo", "gamma"),
        ("n_pg_igt", "advantage.gamma"),
        ("polychromic_ppo@control", "lam"),
        ("sac", "discount"),
        ("td3", "discount"),
        ("iql", "target.discount"),
    ],
)
def test_discounts_and_traces_are_from_0_to_1(method, setting, value):
    with pytest.raises(UsageError, match=rf"\.{setting.split('.')[-1]} is .*; it must be from 0 to 1"):
        make(method, **{setting: value})


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [
        ("td3", "noise", -1.0),
        ("td3", "target.clip", -0.5),
        ("td3", "exploration.std", math.nan),
        ("ppo", "critic.clip", 0.0),
    ],
)
def test_widths_of_noise_and_clips_are_not_negative(method, setting, value):
    with pytest.raises(UsageError, match=rf"\.{setting.split('.')[-1]} is .*must be"):
        make(method, **{setting: value})
