"""Which groups a curriculum keeps."""

import torch

from upslope.parts.sampling import DynamicSampling, Uniform
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
