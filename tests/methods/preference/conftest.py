"""The pair that the cards' numbers are of, and a bandit on which preferences are those of known rewards."""

from itertools import product

import pytest
import torch

from upslope import Batch

REFERENCE, REWARD = (torch.tensor(row, dtype=torch.float64) for row in ([0.5, 0.3, 0.2], [0.0, 1.0, 2.0]))


@pytest.fixture
def card():
    """logp -4 over 4 tokens against -6 over 6, ref_logp -5 against -5.5: the difference of log-ratios is 1.5."""
    length = torch.tensor([[4.0], [6.0]]).double()
    mask = torch.arange(6) < length
    total, reference = torch.tensor([[-4.0], [-6.0]]).double(), torch.tensor([[-5.0], [-5.5]]).double()
    return Batch(
        logp=total / length * mask,
        ref_logp=reference / length * mask,
        mask=mask,
        label=[1.0, 0.0],
        reward=[1.0, 0.0],
        group=[0, 0],
        prompt=[0, 0],
        trajectory=[0, 1],
    )


@pytest.fixture
def bandit():
    """Every ordered pair of 3 arms once, its soft label the Bradley-Terry probability: (rows of a batch, arms, ref, reward)."""
    arms = torch.tensor([arm for pair in product(range(3), repeat=2) if pair[0] != pair[1] for arm in pair])
    other = arms.view(-1, 2).flip(1).flatten()
    label = (REWARD[arms] - REWARD[other]).sigmoid()
    rows = {
        "ref_logp": REFERENCE[arms, None].log(),
        "label": label,
        "reward": REWARD[arms],
        "group": torch.arange(len(arms)) // 2,
        "trajectory": torch.arange(len(arms)),
    }

    def batch(theta):
        return Batch(logp=theta.log_softmax(0)[arms, None], **rows)

    return batch, arms, REFERENCE, REWARD
