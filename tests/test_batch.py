"""Batch: what it refuses, in which words, and what it computes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upslope import Batch, Part, UsageError
from upslope.testing import batch_of

NAN, INF = float("nan"), float("inf")


def batch(**columns):
    given = {"logp": torch.zeros(2, 3), "mask": [[1, 1, 0], [1, 0, 0]], "reward": [1.0, 0.0], "group": [4, 4]}
    return Batch(**(given | columns))


class Reader(Part):
    pass


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"logp": None}, r"a Batch needs the column 'logp' \[R, T\]"),
        ({"logp": [0.0, 1.0]}, r"column 'logp' has shape \[2\]; it must be \[R, T\]"),
        ({"logp": [[0.0], [1.0, 2.0]]}, r"column 'logp' is not a rectangular array of numbers.*Pad rows and use mask"),
        ({"reward": ["good", "bad"]}, r"column 'reward' is not a rectangular array of numbers"),
        (
            {"reward": [1.0, 2.0, 3.0]},
            r"'reward' has shape \[3\], but logp is \[2, 3\]: 'reward' must be \[R\] = \[2\]",
        ),
        ({"reward": torch.zeros(2, 3)}, r"'reward' has shape \[2, 3\].* must be \[R\] = \[2\]"),
        ({"old_logp": torch.zeros(2, 4)}, r"'old_logp' has shape \[2, 4\].* must be \[R, T\] = \[2, 3\]"),
        ({"mask": [[1, 1, 0]]}, r"'mask' has shape \[1, 3\].* must be \[R, T\] = \[2, 3\]"),
        ({"my_own": torch.zeros(3)}, r"'my_own' has shape \[3\]"),
        ({"hidden": torch.zeros(2, 4, 5)}, r"'hidden' has shape \[2, 4, 5\]"),
        ({"mask": [[0, 0, 0], [0, 0, 0]]}, r"'mask' has no trained token in any row.*Mark response tokens True"),
        ({"logp": [[0, NAN, 0], [0, 0, 0]]}, r"'logp' is nan at row 0, position 1; 1 entries are not finite"),
        ({"old_logp": [[0, 0, 0], [-INF, 0, 0]]}, r"'old_logp' is -inf at row 1, position 0"),
        ({"reward": [NAN, INF]}, r"'reward' is nan at row 0; 2 entries are not finite.*valid=False"),
        ({"reward": [NAN, INF], "valid": [False, True]}, r"'reward' is inf at row 1; 1 entries"),
        ({"advantage": [1.0, NAN]}, r"'advantage' is nan at row 1, position 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refuses(columns, message):
    with pytest.raises(UsageError, match=f"(?s){message}"):
        batch(**columns)


def test_padding_may_hold_anything_and_reaches_no_gradient():
    logp = torch.tensor([[0.5, 1.0, NAN], [2.0, INF, -INF]], requires_grad=True)
    made = batch(logp=logp, old_logp=[[0, 0, NAN], [0, NAN, NAN]])
    assert made.logp.tolist() == [[0.5, 1.0, 0.0], [2.0, 0.0, 0.0]]
    (made.logp - made.old_logp).exp().sum().backward()
    assert logp.grad[:, 2].tolist() == [0, 0]
    assert logp.grad.isfinite().all()


def test_a_failed_reward_may_be_nan():
    made = batch(reward=[NAN, 2.0], valid=[False, True])
    assert made.reward.tolist() == [0.0, 2.0]
    assert made.group_mean(made.reward)[0].tolist() == [2.0]


def test_columns_get_their_kind():
    made = batch(reward=[1, 0], truncated=[0, 1], tokens=[[1.0, 2, 3]] * 2, advantage=[1, -1])
    assert (made.reward.dtype, made.truncated.dtype, made.tokens.dtype) == (torch.float32, torch.bool, torch.int64)
    assert made.advantage.tolist() == [[1, 1, 0], [-1, 0, 0]]
    assert made.group.tolist() == [0, 0]
    assert batch(group=[9, -3]).group.tolist() == [1, 0]


def test_some_columns_keep_what_stands_beyond_the_mask():
    made = batch(token_reward=[[0, 0, 5], [0, 1, 0]], log_distribution=torch.full((2, 3, 4), -INF))
    assert made.token_reward.tolist() == [[0, 0, 5], [0, 1, 0]]
    assert made.log_distribution.isneginf().all()


def test_an_absent_column_names_part_meaning_and_remedy():
    with pytest.raises(UsageError) as error:
        _ = batch().read_by(Reader()).old_logp
    for text in ("Reader reads the column 'old_logp'", "log-prob under the policy before the update", "it has: group, logp",
                 "Pass Batch(old_logp=...) with shape [R, T], pass logp.detach() on-policy."):  # fmt: skip
        assert text in str(error.value)
    with pytest.raises(UsageError, match=r"Pass Batch\(mine=...\) with shape \[R\] or \[R, T\]"):
        _ = batch().mine


def test_the_part_is_named_after_replace_select_and_only():
    reader = batch().read_by(Reader())
    for made in (reader.replace(reward=[3, 3]), reader.select(torch.tensor([0])), reader.only(frozenset({"reward"}))):
        with pytest.raises(UsageError, match="Reader reads the column 'value'"):
            _ = made.value


def test_does_not_change():
    made = batch()
    with pytest.raises(UsageError, match=r"batch = batch.replace\(reward=...\)"):
        made.reward = torch.zeros(2)
    assert made.replace(reward=[5, 5]).reward.tolist() == [5, 5]
    assert made.reward.tolist() == [1, 0]
    assert "reward" not in made.replace(reward=None)


@pytest.mark.parametrize("column", ["reward", "mask"])
def test_replace_without_gradient_keeps_that_of_logp(column):
    made = batch(logp=torch.ones(2, 3, requires_grad=True))
    with torch.no_grad():
        changed = made.replace(**{column: getattr(made, column)})
    assert changed.logp.requires_grad


@pytest.mark.parametrize(
    "change",
    [{"reward": [1.0]}, {"old_logp": [[NAN, 0, 0]] * 2}, {"advantage": torch.zeros(3)}, {"logp": torch.zeros(3, 3)}],
    ids=lambda change: next(iter(change)),
)
def test_replace_checks_as_construction_does(change):
    with pytest.raises(UsageError, match=f"column '{next(iter(change))}'|column 'mask'"):
        batch().replace(**change)


def test_replacing_the_mask_masks_all_columns_anew():
    made = batch(old_logp=torch.ones(2, 3)).replace(mask=[[0, 1, 0], [1, 0, 0]])
    assert made.old_logp.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_select_only_and_narrow():
    made = batch(hidden=torch.ones(2, 3, 4))
    assert made.select(torch.tensor([1, 0, 1])).reward.tolist() == [0, 1, 0]
    assert len(made.select(torch.tensor([True, False]))) == 1
    assert set(made.only(frozenset({"reward"}))) == {"logp", "mask", "reward"}
    narrow = made.narrow(2)
    assert (narrow.logp.shape, narrow.hidden.shape, narrow.reward.shape) == ((2, 2), (2, 2, 4), (2,))
    with pytest.raises(UsageError, match="would cut off trained tokens"):
        made.narrow(1)


def test_defaults():
    made = Batch(logp=torch.zeros(2, 3))
    assert made.mask.all()
    assert made.valid.all()
    assert made.weight.tolist() == [[1] * 3] * 2
    assert "weight" not in made
    assert (made.length.tolist(), made.trained.tolist(), len(made)) == ([3, 3], [True, True], 2)


@given(st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_group_mean_over_the_valid_rows_of_ragged_groups(groups, data):
    made = batch_of(groups)
    valid = data.draw(st.lists(st.booleans(), min_size=len(made), max_size=len(made)))
    reward = np.where(valid, made.reward.numpy(), np.nan)
    mean, count = made.replace(valid=valid, reward=reward).group_mean(torch.tensor(reward))
    for group in range(len(groups)):
        kept = reward[(made.group.numpy() == group) & valid]
        assert count[group] == len(kept)
        assert float(mean[group]) == pytest.approx(kept.mean() if len(kept) else 0)


def test_masked_statistics_are_numpys():
    made = batch_of([[1, 0, 0]], lengths=[3, 1, 2])
    values = made.entropy[made.mask].numpy()
    assert float(made.masked_mean(made.entropy)) == pytest.approx(values.mean())
    assert float(made.masked_std(made.entropy, 0.5)) == pytest.approx(np.sqrt(values.var(ddof=1) + 0.5))
    outside = torch.where(made.mask, made.entropy, torch.nan)
    assert float(made.masked_std(outside)) == pytest.approx(values.std(ddof=1))


def test_reward_within_names_row_prompt_and_remedy():
    made = batch(reward=[0.5, 2.0], prompt=[3, 7])
    assert made.reward_within(0, 2, part=Reader()).tolist() == [0.5, 2.0]
    with pytest.raises(
        UsageError, match=r"Reader needs rewards in \[0, 1\], but row 1 \(prompt 7\) has reward 2; 1 of 2 rows"
    ):
        made.reward_within(0, 1, part=Reader())
    with pytest.raises(UsageError, match=r"outside\. Rescale in the task's verifier\.$"):
        made.reward_within(0, 1, part=Reader())
    adjustable = SimpleNamespace(reward_range=(0, 1))
    with pytest.raises(UsageError, match=r"verifier, or train with reward_range=\(<lowest>, <highest>\)\.$"):
        made.reward_within(0, 1, part=adjustable)
    assert made.replace(valid=[True, False]).reward_within(0, 1, part=Reader()).tolist() == [0.5, 2.0]


def test_per_row():
    made = batch(advantage=[2.0, -1.0], mask=[[1, 1, 0], [0, 0, 0]])
    assert made.per_row("advantage").tolist() == [2.0, 0.0]
    with pytest.raises(
        UsageError, match=r"Reader gives one loss per sequence, but 'advantage' differs within row 0 \(prompt 0\)"
    ):
        made.replace(advantage=[[1.0, 2, 3], [0, 0, 0]]).read_by(Reader()).per_row("advantage")
