"""What a log of transitions is worth: the quality of its episodes, and how much of the space they cover.

    TQ(D)      (mean return of D's episodes - return of random actions) / (best return online - return of random actions)
    SACo(D)    distinct (state, action) of D / distinct (state, action) of a reference, the replay of an online run of equal size
    PSV(D)     mean of max(return - mean return, 0)^2 over D's episodes: how much better than most the best of them are

Continuous states and actions are cut into `bins` equal cells per dimension between the reference's least and greatest. Methods that
keep to the log's actions live off TQ; those that stitch, and off-policy ones, need SACo.

Source: Schweighofer et al. 2021 (arXiv:2111.04714); ml-jku/OfflineRL, offline_ds_evaluation/evaluator.py. PSV: Hong et al. 2023
(arXiv:2306.13085).
"""

import numpy as np

from upslope.errors import UsageError

BINS = 100


def trajectory_quality(returns: np.ndarray, random: float, best: float) -> float:
    """TQ of episodes' returns [E]: 0 as random actions, 1 as the best online. Raises UsageError where these are alike."""
    if not best > random:
        raise UsageError(f"TQ needs a best return above that of random actions; they are {best:g} and {random:g}.")
    if not len(returns):
        raise UsageError("TQ needs the return of at least one episode; there is none.")
    return (float(np.mean(returns)) - random) / (best - random)


def positive_sided_variance(returns: np.ndarray) -> float:
    """PSV of episodes' returns [E]: what drawing good episodes more often can gain; 0 where all are alike."""
    if not len(returns):
        raise UsageError("PSV needs the return of at least one episode; there is none.")
    above = returns.astype(np.float64) - float(np.mean(returns, dtype=np.float64))
    return float(np.mean(above.clip(min=0.0) ** 2))


def distinct(rows: np.ndarray) -> int:
    """How many different rows there are among [n, k]."""
    return len(np.unique(np.ascontiguousarray(rows), axis=0)) if len(rows) else 0


def cells(rows: np.ndarray, low: np.ndarray, high: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The cell of each number of rows [n, k] among `bins` equal ones of [low, high], [n, k] int32.

    Beyond the ends the cells go on, so that what lies outside of the reference is told apart, too. A dimension in which the
    reference never changes has one cell per value within it, and cells of width 1 / bins beside.
    """
    if bins < 1:
        raise UsageError(f"cells of {bins} bins: at least 1 is needed.")
    width = np.where(high > low, (high - low) / bins, 1.0 / bins)
    found = np.floor((rows.astype(np.float64) - low) / width)
    found[rows == high] = (np.broadcast_to(np.where(high > low, bins - 1, 0), rows.shape))[rows == high]
    return found.clip(-(2**31), 2**31 - 1).astype(np.int32)


def state_action_coverage(
    observation: np.ndarray,
    action: np.ndarray,
    reference_observation: np.ndarray,
    reference_action: np.ndarray,
    bins: int | None = BINS,
) -> float:
    """SACo of a log, observation [n, O] and action [n, A], against a reference [m, O], [m, A].

    bins None takes rows as they are, for finite states and actions. Sizes should be equal (n = m): more rows cover more.
    """
    rows, reference = _joined(observation, action), _joined(reference_observation, reference_action)
    if rows.shape[1] != reference.shape[1]:
        raise UsageError(
            f"SACo: the log has {rows.shape[1]} numbers of state and action, the reference {reference.shape[1]}. They are of "
            "different environments."
        )
    if not len(reference):
        raise UsageError("SACo needs a reference with at least one transition.")
    if bins is None:
        return distinct(rows) / distinct(reference)
    low, high = reference.min(0), reference.max(0)
    return distinct(cells(rows, low, high, bins)) / distinct(cells(reference, low, high, bins))


def _joined(observation: np.ndarray, action: np.ndarray) -> np.ndarray:
    if len(observation) != len(action):
        raise UsageError(f"SACo: {len(observation)} states and {len(action)} actions; they must be as many.")
    count = len(action)
    return np.concatenate([observation.reshape(count, -1), action.reshape(count, -1)], 1)
