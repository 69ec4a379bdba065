"""Which groups a curriculum keeps; what is made anew between iterations."""

import pytest
import torch

from upslope import UsageError
from upslope.parts.sampling import DynamicSampling, Uniform, Update
from upslope.testing import batch_of


def test_dynamic_sampling_keeps_the_groups_whose_rewards_differ():
    batch = batch_of([[1, 0, 1], [1, 1], [0, 0, 0], [0.5], [0.1, 0.1 + 1e-3]])
    assert DynamicSampling().keep(batch).tolist() == [True, False, False, True, True]
    assert Uniform().keep(batch).all()


def test_a_failed_reward_does_not_make_a_group_differ():
    batch = batch_of([[1, 0], [0, 0, 1]])
    valid = torch.tensor([True, False, True, True, True])
    reward = torch.where(valid, batch.reward, torch.nan)
    assert DynamicSampling().keep(batch.replace(valid=valid, reward=reward)).tolist() == [True, True]
    assert DynamicSampling().keep(batch_of([[1, 1, 0]]).replace(valid=torch.tensor([True, True, False]))).tolist() == [
        False
    ]


def test_the_reference_is_made_anew_after_every_iteration():
    asked = [Update(fresh_reference=3).before_step(step) for step in range(1, 9)]
    assert [step for step, names in enumerate(asked, 1) if "reset_reference" in names] == [4, 7]
    assert not any(Update().before_step(step) for step in range(1, 9))
    assert Update(fresh_optimizer=True, fresh_reference=1).before_step(2) == {"reset_optimizer", "reset_reference"}
    with pytest.raises(UsageError, match=r"Update.fresh_reference is -1; it must be at least 0"):
        Update(fresh_reference=-1)
