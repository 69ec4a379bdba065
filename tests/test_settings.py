"""Overriding by name: found by field, by stage or by both; refused with what there is."""

from dataclasses import dataclass, field, replace

import pytest

from upslope import Part, Term, UsageError, make
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import SequenceMean, TokenMean
from upslope.parts.kl import KL
from upslope.registry import _part_named
from upslope.settings import converted, known_settings, with_settings


def changed(recipe, **settings):
    return with_settings(recipe, settings, _part_named)


def test_a_setting_by_its_field():
    recipe = make("grpo", ratio_high=1.28, beta=0, group_size=4)
    assert (recipe.surrogate.ratio_high, recipe.regularizer.beta, recipe.rollout.group_size) == (1.28, 0.0, 4)
    assert isinstance(recipe.regularizer.beta, float)
    assert recipe.surrogate.ratio_low == make("grpo").surrogate.ratio_low


def test_a_stage_by_method_by_part_or_removed():
    assert make("grpo", advantage="rloo").advantage == make("rloo").advantage
    assert make("grpo", aggregate=TokenMean()).aggregate == TokenMean()
    assert make("grpo", regularizer=None).regularizer is None
    assert make("grpo", surrogate="dapo@verl").surrogate.dual == 10


def test_a_setting_of_the_new_part_of_a_stage():
    assert make("grpo", advantage="reinforce", gamma=0.5).advantage.gamma == 0.5


def test_settings_of_one_part_apply_together():
    recipe = make("dapo", cache=3, max_length=5)
    assert (recipe.reward.max_length, recipe.reward.cache) == (5, 3)
    assert make("grpo", estimator="k1", ratio_weighted=True).regularizer == KL(0.04, "k1", True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio_hihg": 1.3}, r"no part of 'grpo' reads 'ratio_hihg'. Did you mean ratio_high\? It has: advantage.baseline, "),
        ({"surrogate.eps": 1.0}, r"no part of 'grpo' reads 'surrogate.eps'"),
        ({"gamma": 1.0}, r"no part of 'grpo' reads 'gamma'.*surrogate.dual, surrogate.ratio_high, surrogate.ratio_low"),
        ({"ratio_high": "wide"}, r"ClippedRatio.ratio_high takes float, not 'wide'"),
        ({"ratio_high": True}, r"ClippedRatio.ratio_high takes float, not True"),
        ({"group_size": 2.5}, r"Sample.group_size takes int, not 2.5"),
        ({"scale": "std"}, r"GroupBaseline.scale takes 'sample_std' or 'population_std' or 'batch_std', NoneType, not 'std'"),
        ({"estimator": "k4"}, r"KL.estimator takes 'k1' or 'k2' or 'k3' or 'k3_value_k2_gradient', not 'k4'"),
        ({"estimator": "k1"}, r"KL\(estimator='k1'\) in the loss has no gradient in expectation"),
        ({"advantage": "grop"}, r"no method 'grop'. Did you mean"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_refuses(settings, message):
    with pytest.raises(UsageError, match=message):
        make("grpo", **settings)


def test_a_name_that_two_parts_share_has_to_be_told_apart():
    recipe = make("reinforce_pp_baseline", reward="reinforce_pp")
    with pytest.raises(UsageError, match=r"several parts of .* read 'beta'. Say which: reward.beta, regularizer.beta"):
        changed(recipe, beta=0.5)
    assert changed(recipe, **{"reward.beta": 0.5}).reward.beta == 0.5
    assert changed(recipe, **{"reward.beta": 0.5}).regularizer == recipe.regularizer


def test_two_parts_of_one_stage_are_told_apart_by_class():
    recipe = make("grpo").replace(regularizer=(KL(beta=0.1), KLToo(beta=0.2)))
    with pytest.raises(UsageError, match=r"Say which: regularizer.KL.beta, regularizer.KLToo.beta"):
        changed(recipe, **{"regularizer.beta": 1.0})
    found = changed(recipe, **{"regularizer.KLToo.beta": 1.0}).regularizer
    assert [part.beta for part in found] == [0.1, 1.0]


@dataclass(frozen=True)
class KLToo(KL):
    pass


def test_a_setting_in_a_term():
    term = Term(make("grpo").surrogate, SequenceMean(), regularizer=(KL(beta=0.1),))
    recipe = make("reinforce").replace(terms=(term,))
    found = changed(recipe, **{"terms[0].beta": 0.7, "ratio_high": 1.5})
    assert found.terms[0] == replace(
        term, surrogate=replace(term.surrogate, ratio_high=1.5), regularizer=(KL(beta=0.7),)
    )


def test_what_a_term_is_multiplied_by():
    term = Term(make("grpo").surrogate, SequenceMean(), coefficient=0.2, regularizer=(KL(beta=0.1),))
    recipe = make("reinforce").replace(terms=(term,))
    assert "terms[0].coefficient" in known_settings(recipe)
    for key in ("coefficient", "terms[0].coefficient", "terms[0].Term.coefficient"):
        assert changed(recipe, **{key: 3}).terms == (replace(term, coefficient=3.0),)
    both = changed(recipe, **{"coefficient": 0.5, "terms[0].beta": 0.7}).terms[0]
    assert (both.coefficient, both.regularizer) == (0.5, (KL(beta=0.7),)), "whichever comes first, both are there"
    assert changed(recipe, **{"terms[0].beta": 0.7, "coefficient": 0.5}).terms[0] == both
    with pytest.raises(UsageError, match=r"several .* terms\[0\].coefficient, terms\[1\].coefficient"):
        changed(recipe.replace(terms=(term, term)), coefficient=1.0)
    with pytest.raises(UsageError, match=r"Term.coefficient takes float, not 'much'"):
        changed(recipe, coefficient="much")


def test_a_term_whose_part_has_a_coefficient_keeps_it_there():
    recipe = make("rpo_sft", coefficient=0.3)
    assert (recipe.terms[0].surrogate.coefficient, recipe.terms[0].coefficient) == (0.3, 1.0)
    assert known_settings(recipe).count("terms[0].coefficient") == 1


def test_known_settings_are_sorted_and_complete():
    known = known_settings(make("grpo"))
    assert known == sorted(known)
    assert {"advantage.eps", "rollout.temperature", "update.epochs", "regularizer.estimator"} <= set(known)


@dataclass(frozen=True)
class Kinds(Part):
    flag: bool = False
    count: int | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    of: GroupBaseline = field(default_factory=GroupBaseline)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("flag", True, True),
        ("count", None, None),
        ("count", 3, 3),
        ("pair", [0.5, 2], (0.5, 2.0)),
        ("names", ["a", "b"], ("a", "b")),
        ("of", GroupBaseline(eps=1.0), GroupBaseline(eps=1.0)),
    ],
)
def test_values_as_the_annotation_wants_them(setting, value, expected):
    assert converted(Kinds(), setting, value) == expected


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("flag", 1),
        ("count", "3"),
        ("count", True),
        ("pair", 3),
        ("pair", [1, 2, 3]),
        ("pair", [1, "2"]),
        ("names", "ab"),
        ("of", "x"),
    ],
)
def test_values_of_the_wrong_kind(setting, value):
    with pytest.raises(UsageError, match=f"Kinds.{setting} takes"):
        converted(Kinds(), setting, value)


def test_a_stage_takes_no_number():
    with pytest.raises(UsageError, match=r"weight is a stage of 'grpo', so it takes a part, .* and not 0.5"):
        make("grpo", weight=0.5)
