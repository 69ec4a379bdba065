"""How far the actions in some data are from what the policy would have done in its states: sampling error.

    error = mean over the data of log pi_MLE(a|s) - log pi(a|s),   pi_MLE the policy of greatest likelihood on the data

0 where the data has each action exactly as often as the policy takes it; on samples of the policy itself it is above 0, by about
half the number of free parameters over the number of samples. With a distribution over actions per state (`tabular`) it is the
mean, over the states of the data, of KL(frequencies || pi). Source: Zhong et al. 2022 (arXiv:2111.14552), section 6; Corrado and
Hanna 2023 (arXiv:2311.08290), section 5.
"""

import copy

import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.policies.control import ControlPolicy


def tabular_sampling_error(state: Tensor, action: Tensor, logp: Tensor) -> float:
    """Exactly, of states [M] and actions [M] (any integers, or rows [M, ...]), with log pi(a|s) [M].

    pi_MLE(a|s) is the share of a among the actions in s. Raises UsageError without data, or for lengths that differ.
    """
    if not len(state) == len(action) == len(logp) or not len(state):
        raise UsageError(
            f"{len(state)} states, {len(action)} actions and {len(logp)} log-probs were given; as many of each are needed."
        )
    count = len(state)
    places, visits = _numbered(state.reshape(count, -1))
    pairs, times = _numbered(torch.cat([places.unsqueeze(1), action.reshape(count, -1)], 1))
    frequency = times[pairs].double() / visits[places].double()
    return float((frequency.log() - logp.double()).mean())


def _numbered(rows: Tensor) -> tuple[Tensor, Tensor]:
    """A number for each row [M], the same for equal ones, and how often each number is there."""
    _, number, count = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    return number, count


def sampling_error(policy: ControlPolicy, observation: Tensor, action: Tensor, *, steps: int = 200) -> float:
    """Of observations [M, D] and actions [M] or [M, A], where a network stands for the table.

    pi_MLE is the policy with its last layer (and a free log-std) refitted, from the policy's on, by at most `steps` iterations of
    L-BFGS in float64; the hidden layers stay as they are. So the likelihood has one maximum for discrete actions, and the error is
    never below 0. Raises UsageError without data.
    """
    if not len(action) or len(action) != len(observation):
        raise UsageError(
            f"{len(observation)} observations and {len(action)} actions were given; as many of each are needed, and at least one."
        )
    refit = copy.deepcopy(policy).double()
    with torch.no_grad():
        features = refit.body(policy.normalized(observation).double())
    action = action if action.dtype == torch.int64 else action.double()
    free = [*refit.head.parameters(), *([] if refit.log_std is None else [refit.log_std])]
    search = torch.optim.LBFGS(free, max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def loss() -> Tensor:
        search.zero_grad()
        found = -refit.distribution_at(features).log_prob(action).mean()
        found.backward()
        return found

    before = float(search.step(loss).detach())
    with torch.no_grad():
        after = float(-refit.distribution_at(features).log_prob(action).mean())
    return max(before - after, 0.0)
