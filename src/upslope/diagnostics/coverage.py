"""How well the data covers what a policy does: what an offline method can know, in numbers.

Of the completions of one prompt, K of them (or any finite set): policies and data distributions are probabilities [..., K].

    concentrability   max over y of policy(y) / behavior(y); infinite where the data lacks what the policy does
    covered mass      probability under the policy of what the data has at all
    chi-square        E_policy[policy / behavior] - 1
    in a ball         max over all policies with KL(policy || ref) <= radius of their concentrability

An offline contrastive loss (DPO, IPO) is only as good as the concentrability of every policy (radius infinite: 1 / min behavior),
since its pairs leave the policy free elsewhere: `blind_directions` says where. Online KL-regularized learning, and HyPO, keep the
policy within a ball around the reference, and need the data to cover that ball only.

Source: Song et al. 2024 (arXiv:2406.01462), the coverage conditions of its theory, for a reference as the data's distribution
and for any other; the maximum over the ball is solved here.
"""

import torch
from torch import Tensor

from upslope.errors import UsageError

BISECTIONS = 80  # of an interval of width 1, to the precision of float64


def _ratio(policy: Tensor, behavior: Tensor) -> Tensor:
    """policy / behavior, 0 where the policy has no mass."""
    return torch.where(policy > 0, policy / behavior, torch.zeros_like(policy))


def concentrability(policy: Tensor, behavior: Tensor) -> Tensor:
    """max_y policy(y) / behavior(y), [...]: 1 at least, reached where they are equal."""
    return _ratio(policy, behavior).amax(-1)


def chi_square(policy: Tensor, behavior: Tensor) -> Tensor:
    """E_policy[policy / behavior] - 1, [...]: the variance of the importance weights of data drawn from `behavior`."""
    return (policy * _ratio(policy, behavior)).sum(-1) - 1


def covered_mass(policy: Tensor, behavior: Tensor) -> Tensor:
    """Probability under the policy of what the data has, [...]."""
    return (policy * (behavior > 0)).sum(-1)


def largest_probability(ref: Tensor, radius: float) -> Tensor:
    """For every y the largest policy(y) of a policy with KL(policy || ref) <= radius, [..., K].

    That policy has p at y and is in proportion to the reference elsewhere, so that its KL is that of two coins,
    p log(p / q) + (1 - p) log((1 - p) / (1 - q)), q = ref(y).
    """
    if not radius >= 0:
        raise UsageError(f"the radius of a KL ball is {radius:g}; it must be at least 0 nats.")
    low, high = ref.double(), torch.ones_like(ref, dtype=torch.float64)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        rest = 1 - middle
        kl = torch.special.xlogy(middle, middle / ref) + torch.special.xlogy(rest, rest / (1 - ref))
        low, high = torch.where(kl <= radius, middle, low), torch.where(kl <= radius, high, middle)
    alone = -ref.double().log() <= radius  # all of the mass at y
    return torch.where(ref > 0, torch.where(alone, 1.0, low), 0.0)


def concentrability_in_ball(behavior: Tensor, ref: Tensor, radius: float) -> Tensor:
    """The largest concentrability of a policy with KL(policy || ref) <= radius nats, [...].

    radius 0 is that of the reference itself, an infinite one that of any policy.
    """
    return concentrability(largest_probability(ref, radius), behavior)


def blind_directions(first: Tensor, second: Tensor, completions: int) -> Tensor:
    """Component of each completion in the graph of pairs, [completions] int64: pairs are its edges, [P] and [P].

    A loss of differences of scores (DPO, IPO, SimPO) does not change where all logits of a component rise or fall together, so
    with more than one it says nothing of how much mass each has: the policy may lose the data's completions altogether, and its
    KL from the reference is not bounded.
    """
    component = torch.arange(completions)
    for _ in range(completions):
        lowest = torch.minimum(component[first], component[second])
        following = component.scatter_reduce(0, first, lowest, "amin").scatter_reduce(0, second, lowest, "amin")
        if torch.equal(following, component):
            break
        component = following
    return torch.unique(component, return_inverse=True)[1]
