"""The same loss on fresh, on stored, and on stored pairs in their order: what sampling anew is worth, with a known judge.

    lab = ExactLab(vocabulary=30, horizon=1, reward=...)           its rewards are the golden judge's
    online = follow(lab, "dpo", fresh(lab, 64, seed=0), steps=200)
    offline = follow(lab, "dpo", stored(online.draws, 64, seed=0), steps=200)
    again = follow(lab, "dpo", in_order(online.draws), steps=200)  the online run, step for step

S sequences of a tabular policy, so win rate, KL and pair accuracy are exact, without sampling. The golden judge prefers y to y'
with probability sigmoid(r(y) - r(y')); labels are that probability, or draws of it, which stored pairs keep. Another judge, such
as a reward model that was fitted to the offline pairs (`fitted_rewards`), may label the fresh pairs.

Source: the protocol of Tang et al. 2024 (arXiv:2405.08448), on a policy that can be enumerated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.exact.lab import ExactLab
from upslope.recipe import Recipe
from upslope.registry import make


@dataclass(frozen=True)
class Draw:
    """n pairs of sequences of one prompt each.

    first, second   sequences                                                               [n] int64
    weight          of each pair, mean 1; None: equal ones                                  [n]
    label           probability that the first is preferred; None until somebody judges     [n]
    """

    first: Tensor
    second: Tensor
    weight: Tensor | None = None
    label: Tensor | None = None


Source = Callable[[int, Tensor], Draw]
"""(step, from 0; logits theta of the current policy) -> the pairs of that step."""


def fresh(lab: ExactLab, pairs: int, seed: int, theta: Tensor | None = None) -> Source:
    """`pairs` pairs per step, both sequences drawn from the current policy, or always from `theta`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(step: int, current: Tensor) -> Draw:
        chance = lab.probability(current if theta is None else theta).detach().view(lab.prompts, -1)
        prompt = torch.randint(lab.prompts, (pairs,), generator=generator)
        both = torch.multinomial(chance[prompt], 2, replacement=True, generator=generator)
        both = both + prompt.unsqueeze(1) * chance.shape[1]
        return Draw(both[:, 0], both[:, 1])

    return draw


def stored(draws: Sequence[Draw], pairs: int, seed: int) -> Source:
    """`pairs` pairs per step of all those drawn before, with the labels they have, epoch after epoch, each shuffled."""
    first, second = (torch.cat([getattr(draw, name) for draw in draws]) for name in ("first", "second"))
    labels = [draw.label for draw in draws if draw.label is not None]
    label = torch.cat(labels) if len(labels) == len(draws) else None
    if pairs > len(first):
        raise UsageError(f"stored(pairs={pairs}): only {len(first)} are stored. Take fewer per step.")
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(first) // pairs
    order = torch.empty(0, dtype=torch.int64)

    def draw(step: int, current: Tensor) -> Draw:
        nonlocal order
        if step % per_epoch == 0:
            order = torch.randperm(len(first), generator=generator)
        rows = order[step % per_epoch * pairs :][:pairs]
        return Draw(first[rows], second[rows], label=None if label is None else label[rows])

    return draw


def in_order(draws: Sequence[Draw]) -> Source:
    """The pairs as they were drawn, with their labels, step for step, and again from the beginning."""
    return lambda step, current: draws[step % len(draws)]


def population(lab: ExactLab, theta: Tensor | None = None) -> Source:
    """Every ordered pair of a prompt once, weighted by its chance under the current policy, or under `theta`: infinite data."""
    size = len(lab.words) // lab.prompts
    pair = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    pair = pair[pair[:, 0] != pair[:, 1]]
    pairs = (pair + size * torch.arange(lab.prompts).view(-1, 1, 1)).flatten(0, 1)

    def draw(step: int, current: Tensor) -> Draw:
        chance = lab.probability(current if theta is None else theta).detach()
        weight = chance[pairs[:, 0]] * chance[pairs[:, 1]]
        return Draw(pairs[:, 0], pairs[:, 1], weight / weight.mean())

    return draw


def preference(lab: ExactLab, rewards: Tensor | None = None) -> Tensor:
    """P(row beats column) of the judge with these rewards [S] (default the golden ones), [S, S]."""
    reward = lab.rewards if rewards is None else rewards
    return (reward.unsqueeze(1) - reward).sigmoid()


def judged(draw: Draw, judge: Tensor, generator: torch.Generator | None = None) -> Draw:
    """The pairs with the probabilities of `judge` [S, S] as labels, or with draws of them by the generator."""
    label = judge[draw.first, draw.second]
    if generator is not None:
        label = (torch.rand(len(label), generator=generator, dtype=torch.float64) < label).to(label.dtype)
    return replace(draw, label=label)


def fitted_rewards(lab: ExactLab, draws: Sequence[Draw], centering: float = 0.01, steps: int = 300) -> Tensor:
    """Rewards [S] of a reward model with a number for every sequence, fitted to judged pairs by `reward_model_bt`.

    Of sequences in no pair it knows nothing, 0; `centering` bounds the others where every label is sure.
    """
    recipe = make("reward_model_bt", centering=centering)
    first, second, label = (torch.cat([getattr(draw, name) for draw in draws]) for name in ("first", "second", "label"))
    rows, labels = torch.stack([first, second], 1).flatten(), torch.stack([label, 1 - label], 1).flatten()
    group = torch.arange(len(first)).repeat_interleave(2)
    rewards = torch.zeros(len(lab.words), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([rewards], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        column = rewards[rows].unsqueeze(1)
        batch = Batch(logp=torch.zeros_like(column).detach(), value=column, label=labels, group=group)
        recipe(batch)[0].backward()
        optimizer.step()
    return rewards.detach()


def win_rate(lab: ExactLab, theta: Tensor, ref: Tensor) -> float:
    """Chance that the golden judge prefers a sequence of the policy to one of the reference for the same prompt."""
    ours, theirs = (lab.probability(logits).view(lab.prompts, -1) for logits in (theta, ref))
    beats = preference(lab).view(lab.prompts, ours.shape[1], lab.prompts, -1)
    same = torch.stack([beats[prompt, :, prompt] for prompt in range(lab.prompts)])
    return float(torch.einsum("pi,pij,pj->", ours, same, theirs) / lab.prompts)


def pair_accuracy(lab: ExactLab, theta: Tensor, ref: Tensor, draws: Sequence[Draw]) -> float:
    """Share of the pairs whose golden order the implicit reward, logp - ref_logp, gives; ties of either count one half."""
    gained = (lab.logp(theta) - lab.logp(ref)).sum(1).detach()
    first, second = (torch.cat([getattr(draw, name) for draw in draws]) for name in ("first", "second"))
    distinct = first != second
    first, second = first[distinct], second[distinct]
    agree = (gained[first] - gained[second]).sign() * (lab.rewards[first] - lab.rewards[second]).sign()
    return float(((agree + 1) / 2).mean())


@dataclass(frozen=True)
class Point:
    """A policy on its way, exactly: optimizer steps, KL from the reference (nats), golden win rate against it, golden reward."""

    step: int
    kl: float
    win_rate: float
    reward: float


@dataclass(frozen=True)
class Trajectory:
    """Where a loss led on its pairs: points along the way, the last logits [N, V], and the pairs of every step."""

    points: list[Point]
    theta: Tensor
    draws: list[Draw]

    def at_kl(self, kl: float) -> float | None:
        """The best win rate reached within `kl` nats of the reference; None where no later point is."""
        within = [point.win_rate for point in self.points[1:] if point.kl <= kl]
        return max(within) if within else None


def pair_batch(lab: ExactLab, theta: Tensor, ref: Tensor, draw: Draw) -> Batch:
    """Judged pairs as a batch: two rows per pair, its first sequence with its label and its second with 1 - label."""
    assert draw.label is not None
    rows, label = torch.stack([draw.first, draw.second], 1).flatten(), draw.label
    weight = None if draw.weight is None else draw.weight.repeat_interleave(2).unsqueeze(1).expand(-1, lab.horizon)
    return Batch(
        logp=lab.logp(theta)[rows],
        old_logp=lab.logp(theta).detach()[rows],
        ref_logp=lab.logp(ref).detach()[rows],
        mask=lab.mask[rows],
        label=torch.stack([label, 1 - label], 1).flatten(),
        reward=lab.rewards[rows],
        group=torch.arange(len(draw.first)).repeat_interleave(2),
        trajectory=torch.arange(len(rows)),
        prompt=lab.prompt[rows],
        weight=weight,
    )


def follow(
    lab: ExactLab,
    recipe: str | Recipe,
    source: Source,
    *,
    steps: int,
    lr: float = 0.05,
    ref: Tensor | None = None,
    judge: Tensor | None = None,
    hard: int | None = None,
    every: int = 10,
) -> Trajectory:
    """Adam on a pair loss from the reference on, on the pairs that `source` gives.

    recipe    a method that reads `label` (dpo, ipo, cdpo, simpo ...), or a Recipe
    ref       the reference and the first policy, logits [N, V]; default lab.theta
    judge     who labels pairs that have no label yet, P(row beats column) [S, S]; default the golden one
    hard      labels are draws of the judge, with this seed, rather than its probabilities
    every     optimizer steps between points
    """
    recipe = make(recipe) if isinstance(recipe, str) else recipe.check()
    ref = lab.checked(lab.theta if ref is None else ref)
    theta = ref.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=lr)
    generator = None if hard is None else torch.Generator().manual_seed(hard)
    judge = preference(lab) if judge is None else judge
    points, draws = [_point(lab, theta, ref, 0)], []
    for step in range(steps):
        draw = source(step, theta.detach())
        draw = judged(draw, judge, generator) if draw.label is None else draw
        optimizer.zero_grad()
        recipe(pair_batch(lab, theta, ref, draw))[0].backward()
        optimizer.step()
        draws.append(draw)
        if (step + 1) % every == 0 or step + 1 == steps:
            points.append(_point(lab, theta, ref, step + 1))
    return Trajectory(points, theta.detach(), draws)


@torch.no_grad()
def _point(lab: ExactLab, theta: Tensor, ref: Tensor, step: int) -> Point:
    return Point(step, float(lab.kl(theta, ref)), win_rate(lab, theta, ref), float(lab.expected_reward(theta)))
