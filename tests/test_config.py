"""Settings survive YAML and the command line, and what cannot be right is refused by name."""

import dataclasses
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope import UsageError
from upslope.config import LEAST, Config, config_from, merge_overrides, parse_value, read_config

VALUES = {
    "method": st.sampled_from(["grpo", "grpo@trl", "mine.py"]),
    "settings": st.dictionaries(st.sampled_from(["ratio_high", "advantage"]), st.floats(0, 2) | st.just("rloo")),
    "task": st.none() | st.just("chain_sum"),
    "steps": st.integers(0, 10**6),
    "max_tokens": st.none() | st.integers(1, 512),
    "top_p": st.floats(0.1, 1),
    "stop": st.lists(st.text(max_size=5), max_size=3),
    "optimizer": st.fixed_dictionaries(
        {},
        optional={
            "lr": st.none() | st.floats(0, 1),
            "betas": st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)).map(list),
        },
    ),
    "eval": st.fixed_dictionaries({}, optional={"samples": st.integers(1, 64), "temperature": st.floats(0, 2)}),
    "old_logp": st.sampled_from(["auto", "sampler", "recompute"]),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_round_trip_through_yaml(values):
    config = config_from(values)
    again = config_from(yaml.safe_load(yaml.safe_dump(config.to_dict())))
    assert again == config
    held = config.to_dict()
    for name, value in values.items():
        assert held[name] == ({**held[name], **value} if isinstance(value, dict) else value)


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_overrides_say_the_same_as_a_file(values):
    overrides = []
    for name, value in values.items():
        inner = value.items() if isinstance(value, dict) else ()
        overrides += [f"{name}.{key}={yaml.safe_dump(item).removesuffix('...' + chr(10))}" for key, item in inner]
        if not isinstance(value, dict):
            overrides.append(f"{name}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10))}")
    assert config_from(merge_overrides({}, overrides)) == config_from(values)


def test_overrides_find_their_place_and_leave_the_given_values_alone():
    values = {"steps": 3, "optimizer": {"lr": 1e-3}, "settings": {"beta": 0.1}}
    overrides = [
        "optimizer.warmup=2",
        "ratio_high=1.28",
        "surrogate.dual=3",
        "steps=5",
        "task_settings.min_terms=4",
        "settings.eps=0",
    ]
    assert merge_overrides(values, overrides) == {
        "steps": 5,
        "optimizer": {"lr": 1e-3, "warmup": 2},
        "settings": {"beta": 0.1, "ratio_high": 1.28, "surrogate.dual": 3, "eps": 0},
        "task_settings": {"min_terms": 4},
    }
    assert values == {"steps": 3, "optimizer": {"lr": 1e-3}, "settings": {"beta": 0.1}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("3", 3), ("0.5", 0.5), ("true", True), ("null", None), ("none", None), ("None", None), ("", None),
        ("rloo", "rloo"), ("[1, 2]", [1, 2]), ("grpo@trl", "grpo@trl"), ("{", "{"), ("a=b", "a=b"), ("inf", math.inf),
    ],
)  # fmt: skip
def test_values_as_yaml_reads_them_and_numbers_without_a_point(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize("name", LEAST)
def test_least_values(name):
    config_from({name: LEAST[name]})
    with pytest.raises(
        UsageError, match=rf"{name} is {LEAST[name] - 1}; it must be a finite number of at least {LEAST[name]}"
    ):
        config_from({name: LEAST[name] - 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"lr": -1}}, "optimizer.lr is -1"),
        ({"optimizer": {"lr": math.nan}}, "optimizer.lr is nan"),
        ({"optimizer": {"lr": math.inf}}, "optimizer.lr is inf"),
        ({"optimizer": {"weight_decay": -0.1}}, "optimizer.weight_decay is -0.1"),
        ({"optimizer": {"grad_clip": 0}}, "optimizer.grad_clip is 0"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas is .* in .0, 1."),
        ({"optimizer": {"betas": [0.9]}}, "OptimizerConfig.betas takes"),
        ({"optimizer": {"schedule": "linera"}}, "'constant' or 'linear' or 'cosine' or 'inverse_sqrt', not 'linera'"),
        ({"eval": {"samples": 0}}, "eval.samples is 0"),
        ({"eval": {"temperature": -1}}, "eval.temperature is -1"),
        ({"lora": {"rank": -1}}, "lora.rank is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"top_p": 0}, "top_p is 0"),
        ({"reward_timeout": math.nan}, "reward_timeout is nan"),
        ({"steps": True}, "Config.steps takes int, not True"),
        ({"steps": 2.5}, "Config.steps takes int, not 2.5"),
        ({"model": 3}, "Config.model takes str, not 3"),
        ({"settings": 3}, "config.settings takes a mapping"),
        ({"eval": [1]}, "config.eval takes settings"),
        ({"stepz": 3}, "config has no setting 'stepz'. Did you mean steps?"),
        ({"eval": {"evry": 3}}, "config.eval has no setting 'evry'. Did you mean every?"),
        ({3: 4}, "config has no setting '3'"),
    ],
)
def test_refused(values, message):
    with pytest.raises(UsageError, match=message):
        config_from(values)


def test_bounded_settings_are_settings():
    assert set(LEAST) <= {f.name for f in dataclasses.fields(Config)}


@pytest.mark.parametrize(("text", "message"), [("- 1", "holds list"), ("", "holds NoneType"), ("a: [", "is not YAML")])
def test_file_that_holds_no_settings(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_config(tmp_path / "c.yaml")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([f.name for f in dataclasses.fields(Config)]) | st.text(max_size=5) | st.integers()


@given(st.dictionaries(NAMES, ANY, max_size=4))
def test_whatever_a_file_holds_it_is_a_config_or_refused(values):
    try:
        config = config_from(values)
    except UsageError as error:
        assert str(error)  # noqa: PT017
    else:
        assert all(getattr(config, name) is not None or values[name] is None for name in values)


@pytest.mark.parametrize("first", ["settings=", "settings=3", "optimizer=7"])
def test_a_setting_within_what_is_no_mapping_is_refused(first):
    with pytest.raises(UsageError, match="has no settings"):
        merge_overrides({}, [first, "optimizer.lr=1" if "optimizer" in first else "ratio_high=1"])


@given(
    st.lists(
        st.text(max_size=12) | st.tuples(NAMES, st.text(max_size=8)).map(lambda pair: f"{pair[0]}={pair[1]}"),
        max_size=3,
    )
)
def test_whatever_set_is_given_it_is_a_config_or_refused(overrides):
    try:
        config_from(merge_overrides({}, overrides))
    except UsageError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize("method", ["iql", "ppo", "sac@cleanrl"])
def test_reward_is_a_stage_where_the_environment_gives_rewards(method):
    given = {"method": method}
    assert merge_overrides(given, ["reward=null", "reward.scale=2"]) == {
        **given,
        "settings": {"reward": None, "reward.scale": 2},
    }
    for words in ({"method": "grpo"}, {"method": "no such"}, {}):
        assert merge_overrides(words, ["reward=judge.py:score"]) == {**words, "reward": "judge.py:score"}
