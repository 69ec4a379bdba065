"""Stored transitions in the order of their episodes, although several copies were played at once and some were lost."""

import numpy as np

from upslope.actor_critic.replay import Layout


def by_episodes(rows: np.ndarray, layout: Layout, copies: int) -> np.ndarray:
    """Rows [n, width] as they were stored, step by step of so many copies -> the same rows, an episode after the other.

    An episode whose next step is not there (the last ones; those that were given up when an environment failed) is marked as cut.
    """
    places = layout.columns()
    ends = places["truncated"][0]
    ended = (rows[:, places["terminated"][0]] > 0) | (rows[:, ends] > 0)
    here, following = (
        np.ascontiguousarray(rows[:, slice(*places[name])]) for name in ("observation", "next_observation")
    )
    order, last = _in_step(len(rows), copies)
    if len(rows) % copies or (copies > 1 and _breaks(order, last, here, following, ended).any()):
        order, last = _chained(here, following, ended)
    cut = last | _breaks(order, last, here, following, ended)
    found = rows[order]
    found[:, ends] = np.where(cut & ~ended[order], 1.0, found[:, ends])
    return found


def _in_step(count: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """(order, last of a copy): one copy after the other, where every step stored a row of each."""
    order = np.arange(count // copies * copies).reshape(-1, copies).T.reshape(-1)
    last = np.zeros(len(order), dtype=bool)
    if len(order):
        last[len(order) // copies - 1 :: len(order) // copies] = True
    return order, last


def _breaks(
    order: np.ndarray, last: np.ndarray, here: np.ndarray, following: np.ndarray, ended: np.ndarray
) -> np.ndarray:
    """Where the next row begins elsewhere although the episode goes on, bool as `order`."""
    found = ~(ended[order] | last)
    found[:-1] &= (following[order[:-1]] != here[order[1:]]).any(1)
    return found


def _chained(here: np.ndarray, following: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order [n], last of a chain [n]): each row goes to the chain whose last successor it begins at, or begins one.

    For copies that do not store a row at every step, such as vector environments that spend steps on resets.
    """
    chains: list[list[int]] = []
    waiting: dict[bytes, list[int]] = {}
    for row, (at, after, over) in enumerate(zip(here, following, ended.tolist(), strict=True)):
        candidates = waiting.get(at.tobytes())
        if candidates:
            chain = candidates.pop(0)
            if not candidates:
                del waiting[at.tobytes()]
        else:
            chain = len(chains)
            chains.append([])
        chains[chain].append(row)
        if not over:
            waiting.setdefault(after.tobytes(), []).append(chain)
    order = np.array([row for chain in chains for row in chain], dtype=np.int64)
    last = np.zeros(len(order), dtype=bool)
    last[np.cumsum([len(chain) for chain in chains]) - 1] = True
    return order, last
