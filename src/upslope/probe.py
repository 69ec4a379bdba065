"""What methods would do on a task, without training: their gradient estimators on one frozen policy and one large batch.

The large batch is cut into K batches of the size of a training step. Each method's gradient on each of them gives the
variance of its estimator, its signal, and the angle to the gradient of the expected reward, all by estimators without
bias: a product of two expected gradients is the mean over pairs of different batches.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.collect import Collected, first_batch, seeded, with_columns
from upslope.config import OptimizerConfig
from upslope.gradient import GradientRecorder
from upslope.learner import Learner
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import SequenceSum
from upslope.parts.sampling import Update
from upslope.parts.surrogate import PolicyGradient
from upslope.policies.plans import score_in_passes
from upslope.recipe import Recipe
from upslope.rollout import Rollouts
from upslope.update import Actors, Updater

UPDATES = 4  # batches whose update is measured
MEASURED = frozenset({"logp", "entropy"})  # before and after an update
SKETCH = 1 << 22  # parameters beyond which gradients are sketched to this many numbers


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval by the jackknife over batches."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class ProbeResult:
    """What one method's update would be, from K batches of a frozen policy.

    snr             |E g|^2 / trace of the covariance of one batch's gradient g
    variance        that trace, divided by |E g|^2: 1 / snr, comparable between methods of different scale
    cosine          between E g and the gradient of the expected reward: below 1, the method pursues something else, too
    scale           the c for which c times the reward's gradient is nearest to E g
    alignment       mean cosine of one batch's gradient and the sum of the other batches'
    entropy         change of the policy's mean token entropy by one optimizer step, nats, on the rollouts' own states
    kl              mean KL(before || after) per token of that step, nats
    effective       effective sample size of the other rollouts after it, as a share, by the ratios of whole sequences
    contributing    share of rows that have a gradient
    seconds         time of a gradient, relative to the first method's
    """

    name: str
    snr: Interval
    variance: float
    cosine: Interval
    scale: float
    alignment: float
    entropy: float
    kl: float
    effective: float
    contributing: float
    seconds: float


def reward_gradient() -> Recipe:
    """The policy gradient with a leave-one-out baseline, token losses summed: unbiased for the expected reward."""
    advantage = GroupBaseline(baseline="leave_one_out", scale=None)
    return Recipe(PolicyGradient(), SequenceSum(), advantage=advantage, name="expected reward")


def moments(gradients: Tensor, reference: Tensor) -> dict[str, Any]:
    """Signal, noise and angle of an estimator, from gradients [K, D] and those of the reference on the same batches [K, D].

    Returns snr and cosine as Intervals, scale, variance (relative) and alignment, as ProbeResult has them. A cosine is NaN
    where the noise leaves no signal.
    """
    products = {"gg": gradients @ gradients.T, "gr": gradients @ reference.T, "rr": reference @ reference.T}
    products = {name: product.double() for name, product in products.items()}
    whole, left_out = (
        _ratios({name: part(product) for name, product in products.items()}, norms)
        for part, norms in (
            (_between, _mean_norm(products["gg"])),
            (_between_others, _mean_norm_of_others(products["gg"])),
        )
    )
    own, rows = products["gg"].diagonal(), products["gg"].sum(1)
    alignment = (rows - own) / (own * (rows.sum() - 2 * rows + own)).clamp(min=1e-60).sqrt()
    return {
        "snr": _jackknife(whole["snr"], left_out["snr"]),
        "cosine": _jackknife(whole["cosine"], left_out["cosine"]),
        "scale": float(whole["scale"]),
        "variance": float(1 / whole["snr"]),
        "alignment": float(alignment.mean()),
    }


def _ratios(pairs: dict[str, Tensor], norm: Tensor) -> dict[str, Tensor]:
    """snr, cosine and scale from the products of different batches and the mean squared norm of one batch's gradient."""
    return {
        "snr": pairs["gg"] / (norm - pairs["gg"]),
        "cosine": pairs["gr"] / pairs["gg"].sqrt() / pairs["rr"].sqrt(),
        "scale": pairs["gr"] / pairs["rr"],
    }


def _between(product: Tensor) -> Tensor:
    """Mean of the products of different batches, from the matrix of all of them [K, K]; a scalar."""
    count = len(product)
    return (product.sum() - product.trace()) / (count * (count - 1))


def _between_others(product: Tensor) -> Tensor:
    """The same without one batch, for each of them, [K]."""
    count, own = len(product), product.diagonal()
    left = product.sum() - product.trace() - product.sum(0) - product.sum(1) + 2 * own
    return left / ((count - 1) * (count - 2))


def _mean_norm(product: Tensor) -> Tensor:
    return product.diagonal().mean()


def _mean_norm_of_others(product: Tensor) -> Tensor:
    own = product.diagonal()
    return (own.sum() - own) / (len(product) - 1)


def _jackknife(whole: Tensor, left_out: Tensor) -> Interval:
    """`whole` with its interval, from the estimates without one batch each, [K]."""
    count, value = len(left_out), float(whole)
    error = float(((left_out - left_out.mean()) ** 2).sum() * (count - 1) / count) ** 0.5
    return Interval(value, value - 1.96 * error, value + 1.96 * error)


def probe(
    recipes: Sequence[tuple[str, Recipe]],
    actors: Actors,
    batches: Sequence[Collected],
    *,
    lr: float,
    optimizer: OptimizerConfig,
    tokens_per_pass: int,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[ProbeResult]:
    """Measures every recipe on the same K batches of rollouts; the policy is as it was afterwards.

    `actors` gives the policy and, for recipes that read them, reference and critic. `lr` and `optimizer` are those of the
    step whose effect is measured: AdamW's first.
    """
    sketch = _sketch(actors.policy, seed)
    options: dict[str, Any] = {"tokens_per_pass": tokens_per_pass}
    recording = {**options, "lr": lr}
    say("expected reward")
    reference, _ = _gradients(reward_gradient(), actors, batches, sketch, recording, seed)
    results: list[ProbeResult] = []
    first = 0.0
    for name, recipe in recipes:
        say(name)
        started = time.perf_counter()
        gradients, contributing = _gradients(recipe, actors, batches, sketch, recording, seed)
        seconds = time.perf_counter() - started
        first = first or seconds
        effect = _effect(recipe, actors, batches, Learner(actors.policy.parameters(), lr, optimizer, 1), options, seed)
        measured: dict[str, Any] = {**moments(gradients, reference), **effect}
        results.append(ProbeResult(name, contributing=contributing, seconds=seconds / first, **measured))
    return results


def _gradients(
    recipe: Recipe,
    actors: Actors,
    batches: Sequence[Collected],
    sketch: Callable[[Tensor], Tensor],
    options: dict,
    seed: int,
) -> tuple[Tensor, float]:
    """The ascent direction of every batch [K, D], and the share of rows with a gradient."""
    recorder = GradientRecorder(recipe, actors, **options)
    found, used, rows = [], 0.0, 0
    for index, part in enumerate(batches):
        rollouts, batch = _kept(recipe, part)
        rows += len(part.rollouts)
        if batch is None:
            found.append(sketch(torch.zeros_like(recorder.learner.gradient)))
            continue
        found.append(sketch(-recorder.gradient(rollouts, batch, (seed, "probe", index))))
        used += recorder.rows_trained
    return torch.stack(found), used / rows


def _kept(recipe: Recipe, part: Collected) -> tuple[Rollouts, Batch | None]:
    """The rollouts of groups that the recipe's curriculum keeps, and their batch."""
    outcomes = with_columns(part.outcomes, recipe.needs)
    batch = first_batch(part.rollouts, outcomes, part.examples, recipe.needs)
    if batch is None or recipe.curriculum is None:
        return part.rollouts, batch
    kept = recipe.curriculum.keep(batch)[batch.group].nonzero().squeeze(1)  # type: ignore[attr-defined]
    if not len(kept):
        return part.rollouts, None
    rows = kept.tolist()
    rollouts = part.rollouts.select(kept)
    outcomes, examples = [outcomes[row] for row in rows], [part.examples[row] for row in rows]
    return rollouts, first_batch(rollouts, outcomes, examples, recipe.needs)


def _effect(
    recipe: Recipe, actors: Actors, batches: Sequence[Collected], learner: Learner, options: dict, seed: int
) -> dict[str, float]:
    """Entropy change, KL and effective sample size after one optimizer step, means over the first batches' steps."""
    once = recipe.replace(update=Update())
    before = [parameter.detach().clone() for parameter in learner.masters]
    start = learner.state_dict()
    changes: list[tuple[float, float, float]] = []
    for index, part in enumerate(batches[:UPDATES]):
        rollouts, batch = _kept(recipe, part)
        others = batches[(index + 1) % len(batches)].rollouts
        old = score_in_passes(actors.policy, others, MEASURED, **options)
        if batch is not None:
            stepping = replace(actors, learner=learner, critic_learner=None)
            updater = Updater(once, stepping, recompute_old_logp=False, **options)
            updater.update(rollouts, batch, once.init(), (seed, "probe", index))
        changes.append(change(old, score_in_passes(actors.policy, others, MEASURED, **options), others.mask))
        _restore(learner, before, start)
    entropy, kl, effective = (sum(column) / len(changes) for column in zip(*changes, strict=True))
    return {"entropy": entropy, "kl": kl, "effective": effective}


@torch.no_grad()
def _restore(learner: Learner, weights: Sequence[Tensor], start: dict[str, Any]) -> None:
    learner.optimizer.state.clear()
    learner.taken = start["taken"]
    for master, parameter, saved in zip(learner.masters, learner.parameters, weights, strict=True):
        master.copy_(saved)
        if master is not parameter:
            parameter.copy_(saved)


def change(old: dict[str, Tensor], new: dict[str, Tensor], mask: Tensor) -> tuple[float, float, float]:
    """Mean change of entropy per token, mean KL per token (k3), effective sample size of the sequences as a share."""
    tokens = mask.sum()
    moved = (new["logp"] - old["logp"]) * mask
    entropy = ((new["entropy"] - old["entropy"]) * mask).sum() / tokens
    kl = ((moved.exp() - 1 - moved) * mask).sum() / tokens
    ratio = moved.sum(1).double().clamp(-50, 50).exp()
    return float(entropy), float(kl), float(ratio.mean() ** 2 / (ratio**2).mean())


def _sketch(policy: Any, seed: int) -> Callable[[Tensor], Tensor]:
    """The identity for small models; for large ones a count sketch, which keeps inner products on average (Charikar 2002)."""
    size = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    if size <= SKETCH:
        return lambda gradient: gradient
    generator = seeded(seed, "sketch")
    bucket = torch.randint(SKETCH, (size,), generator=generator)
    sign = torch.randint(2, (size,), generator=generator, dtype=torch.int8) * 2 - 1
    return lambda gradient: torch.zeros(SKETCH).index_add_(0, bucket, gradient * sign)
