"""Recipe: terms and their denominators, state, mini-batches and micro-batches, what it refuses."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from upslope import Batch, Part, Recipe, Term, UsageError, make
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean, SequenceMean, TokenMean
from upslope.parts.kl import KL
from upslope.parts.surrogate import ClippedRatio, ClippedSequenceRatio, PolicyGradient
from upslope.testing import batch_of, check_columns, check_invariances, value_and_gradient


@dataclass(frozen=True)
class Likelihood(Part):
    """-logp [R, T], with gradient: supervised fine-tuning."""

    formula: ClassVar[str] = "-logp"

    def __call__(self, batch):
        return -batch.logp


@dataclass(frozen=True)
class FromSource(Part):
    source: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    formula: ClassVar[str] = "rows of source {source}"

    def __call__(self, batch):
        return batch.source == self.source


@dataclass(frozen=True)
class Scaled(Part):
    """A weight that multiplies."""

    by: float = 2.0

    def __call__(self, batch):
        return torch.full_like(batch.logp, self.by)


@dataclass(frozen=True)
class Plus(Part):
    """A reward that adds."""

    amount: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __call__(self, batch):
        return batch.reward * 2 + self.amount


@dataclass(frozen=True)
class Best(Part):
    """Reward over the best of all steps before; remembers it."""

    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def init(self):
        return {"best": 0.0}

    def __call__(self, batch, state):
        return batch.reward - state["best"], {"best": max(state["best"], float(batch.reward.max()))}


def mixed(coefficient=0.3):
    """Policy gradient on the policy's rows, supervised fine-tuning on the expert's."""
    supervised = Term(Likelihood(), SequenceMean(), rows=FromSource(1), coefficient=coefficient, regularizer=(KL(0.5),))
    return make("grpo", regularizer=None, aggregate=TokenMean()).replace(rows=FromSource(0), terms=(supervised,))


def mixed_batch():
    return batch_of([[1, 0, 0], [0, 1]], lengths=[2, 3, 1, 4, 2], source=[0, 0, 1, 0, 1])


def test_two_terms_have_their_own_rows_and_denominators():
    recipe, batch = mixed(), mixed_batch()
    prepared = recipe.prepare(batch)
    loss, stats = recipe.loss(prepared)
    own, expert = batch.mask.numpy()[[0, 1, 3]], np.array([2, 4])
    advantage = prepared.advantage.numpy()
    first = -(advantage[[0, 1, 3]] * own).sum() / own.sum()
    logp, ref_logp, mask = (getattr(batch, name).numpy()[expert] for name in ("logp", "ref_logp", "mask"))
    u = logp - ref_logp
    per_token = (-logp + 0.5 * (np.exp(-u) + u - 1)) * mask
    second = np.mean(per_token.sum(1) / mask.sum(1))
    assert float(loss) == pytest.approx(first + 0.3 * second)
    assert (float(stats["loss/0"]), float(stats["loss/1"])) == (pytest.approx(first), pytest.approx(second))
    assert recipe.needs == {"advantage", "old_logp", "reward", "group", "source", "ref_logp"} - {"advantage"}


def test_two_terms_keep_the_contract():
    check_columns(mixed(), mixed_batch())
    check_invariances(mixed(), mixed_batch())


def test_a_term_without_rows_contributes_nothing():
    batch = mixed_batch().replace(source=torch.zeros(5))
    loss, gradient = value_and_gradient(mixed(), mixed().prepare(batch))
    without = mixed().replace(terms=(), rows=None)
    expected, expected_gradient = value_and_gradient(without, without.prepare(batch))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_sequence_term_without_rows_contributes_nothing():
    term = Term(ClippedSequenceRatio(), RowMean(), rows=FromSource(3))
    recipe = make("grpo").replace(terms=(term,))
    torch.testing.assert_close(recipe(mixed_batch())[0], make("grpo")(mixed_batch())[0])


def test_only_the_main_line_is_weighted():
    recipe = mixed().replace(weight=(Scaled(2.0), Scaled(3.0)))
    stats, plain = recipe(mixed_batch())[1], mixed()(mixed_batch())[1]
    torch.testing.assert_close(stats["loss/0"], 6 * plain["loss/0"])
    torch.testing.assert_close(stats["loss/1"], plain["loss/1"])


def test_rewards_apply_in_order():
    recipe = make("reinforce").replace(reward=(Plus(1.0), Plus(10.0)))
    assert recipe.prepare(batch_of([[3.0, 0.0]])).advantage[:, 0].tolist() == [24.0, 12.0]


def test_state_goes_in_and_comes_out():
    recipe = Recipe(PolicyGradient(), TokenMean(), advantage=Best())
    state = recipe.init()
    assert state == {"advantage": {"best": 0.0}}
    for best_before, best in ((0.0, 5.0), (5.0, 5.0), (5.0, 7.0)):
        batch = batch_of([[best, 1.0]])
        before = {key: dict(value) for key, value in state.items()}
        prepared, following = recipe.prepare(batch, state)
        assert prepared.advantage[1, 0] == 1.0 - best_before
        assert state == before, "prepare must not change the state that it was given"
        state = following
    assert state == {"advantage": {"best": 7.0}}
    assert recipe.prepare(batch_of([[2.0]])).advantage[0, 0] == 2.0  # without a state: from the start


def test_two_stateful_parts_of_a_stage_keep_apart():
    recipe = make("reinforce").replace(reward=(Best(), make("kimi_k15_md").reward))
    assert recipe.init() == {"reward.Best": {"best": 0.0}, "reward.LengthReward": {"step": 0}}
    _, state = recipe.prepare(batch_of([[2.0, 1.0]]), recipe.init())
    assert state == {"reward.Best": {"best": 2.0}, "reward.LengthReward": {"step": 1}}


def test_statistics_of_micro_batches_add_up():
    recipe = make("grpo")
    batch = batch_of([[1, 0, 0.5], [0, 1]])
    prepared = recipe.prepare(batch.replace(old_logp=batch.logp - 0.5 * (batch.entropy - 0.5)))
    whole = recipe.loss(prepared)[1]
    parts = [recipe.loss(prepared.select(torch.tensor(rows)))[1] for rows in ([0, 4], [1, 2, 3])]
    assert {"loss", "kl", "ratio/clip_fraction", "ratio/mean", "ratio/kl"} <= set(whole)
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)
    assert 0 < whole["ratio/clip_fraction"] < 1


def test_statistics_of_a_term_are_about_its_rows():
    recipe, batch = mixed(), mixed_batch()
    prepared = recipe.prepare(batch)
    own, expert = prepared.select(batch.source == 0), prepared.select(batch.source == 1)
    stats = recipe.loss(prepared.replace(old_logp=batch.old_logp - 0.1 * batch.trajectory.unsqueeze(1)))[1]
    own = own.replace(old_logp=own.old_logp - 0.1 * own.trajectory.unsqueeze(1))
    for name, column in recipe.surrogate.stats(own).items():
        expected = own.masked_mean(column) if column.ndim == 2 else column.mean()
        assert float(stats[name]) == pytest.approx(float(expected)), name
    kl = recipe.terms[0].regularizer[0].stats(expert)["kl"]
    assert float(stats["kl"]) == pytest.approx(float(expert.masked_mean(kl)))
    assert float(stats["kl"]) != pytest.approx(float(batch.masked_mean(KL(0.5).stats(batch)["kl"])))


def test_a_mini_batch_has_its_own_denominators_and_the_batchs_advantages():
    recipe, batch = make("grpo", regularizer=None), batch_of([[1, 0, 0], [0, 1]])
    prepared = recipe.prepare(batch)
    mini = recipe.denominators(prepared.select(torch.tensor([3, 4])))
    torch.testing.assert_close(mini.advantage, prepared.advantage[3:])
    torch.testing.assert_close(recipe.loss(mini)[0], recipe(batch.select(torch.tensor([3, 4])))[0])


def test_surrogate_and_aggregate_must_be_of_one_level():
    with pytest.raises(UsageError, match=r"ClippedSequenceRatio gives one loss per sequence, but TokenMean aggregates per token. "
                                         r"Use aggregate=RowMean\(\)"):  # fmt: skip
        make("gspo", aggregate=TokenMean())
    with pytest.raises(UsageError, match=r"ClippedRatio gives one loss per token, but RowMean aggregates per sequence"):
        make("grpo", aggregate="gspo")


def test_a_weight_by_token_does_not_fit_a_sequence_loss():
    batch = batch_of([[1, 0]], lengths=[2, 2])
    recipe = make("gspo")
    assert recipe.replace(weight=Scaled(2.0))(batch)[0] == pytest.approx(2 * float(recipe(batch)[0]))
    with pytest.raises(
        UsageError, match=r"ClippedSequenceRatio gives one loss per sequence, but 'weight' differs within row 0"
    ):
        recipe(batch.replace(weight=[[1.0, 2.0], [1.0, 1.0]]))


def test_nothing_to_learn_from():
    with pytest.raises(UsageError, match="every row's reward failed"):
        make("grpo")(batch_of([[1, 0]]).replace(valid=[False, False]))


def test_an_absent_column_names_the_part_that_reads_it():
    with pytest.raises(UsageError, match=r"KL reads the column 'ref_logp'.*or drop the part with PART=None"):
        make("grpo")(batch_of([[1, 0]]).replace(ref_logp=None))
    with pytest.raises(UsageError, match=r"GroupBaseline reads the column 'group'.*group=torch.arange\(R\) // G"):
        make("grpo")(batch_of([[1, 0]]).replace(group=None))


def test_needs_are_the_union_less_what_the_recipe_makes_and_the_trainers_parts():
    assert make("grpo").needs == {"reward", "group", "old_logp", "ref_logp"}
    assert make("ppo_llm").needs == {"reward", "old_logp", "ref_logp", "old_value"}
    assert Recipe(PolicyGradient(), TokenMean()).needs == {"advantage"}


def test_a_callers_own_advantage_needs_no_reward():
    recipe = make("grpo", advantage=None, regularizer=None)
    batch = Batch(logp=torch.zeros(2, 2), old_logp=torch.zeros(2, 2), advantage=[1.0, -2.0])
    assert float(recipe(batch)[0]) == pytest.approx(0.5)
    assert recipe.needs == {"advantage", "old_logp"}


def test_keep_groups_asks_the_parts():
    @dataclass(frozen=True)
    class Coupled(ClippedRatio):
        couples_group: ClassVar[bool] = True

    assert not make("grpo").keep_groups
    assert make("grpo", surrogate=Coupled()).keep_groups


def test_parts_by_stage_and_by_class():
    recipe = make("grpo").replace(advantage=GroupBaseline(), weight=(Scaled(), Plus()))
    assert {"weight.Scaled", "weight.Plus", "surrogate", "advantage"} <= set(recipe.parts())
    assert set(mixed().parts()) >= {"terms[0].Likelihood", "terms[0].FromSource", "rows"}
