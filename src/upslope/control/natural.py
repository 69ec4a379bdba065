"""Natural gradients of a policy: products with its Fisher matrix, conjugate gradients, and the line search of TRPO.

Sources: Kakade 2001 ("A Natural Policy Gradient"); Schulman et al. 2015 (arXiv:1502.05477), appendix C; Pearlmutter 1994 for
the products.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from upslope.actor_critic.flat import flatten
from upslope.control.learning import Rows, StepUpdater
from upslope.control.playing import Played
from upslope.errors import UsageError
from upslope.learner import MicroBatch, StepResult
from upslope.parts.natural import NaturalGradient, TrustRegion
from upslope.policies.control import ControlPolicy, Critic
from upslope.recipe import Recipe, State
from upslope.update import UpdateResult

Divergence = Callable[[], Tensor]
EPS = 1e-8


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float) -> Tensor:
    """x [P] with F x = b, F symmetric and positive semi-definite, given by products with it; x = 0 to begin with.

    Ends after `iterations`, or where |F x - b|^2 is below `tolerance`. For b in the range of a singular F it is the solution of
    least norm. Source: Hestenes and Stiefel 1952.
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, left = residual.clone(), float(residual @ residual)
    for _ in range(iterations):
        if left < tolerance:
            break
        image = product(direction)
        curvature = float(direction @ image)
        if not curvature > 0:  # rounding, or nothing but F's null space is left
            break
        x += left / curvature * direction
        residual -= left / curvature * image
        before, left = left, float(residual @ residual)
        direction = residual + left / before * direction
    return x


def fisher_product(
    divergence: Divergence, parameters: list[nn.Parameter], damping: float = 0.0
) -> Callable[[Tensor], Tensor]:
    """v [P] -> (H + damping) v, H the Hessian of `divergence` at the parameters as they are.

    The divergence is differentiated once; each product differentiates that gradient's inner product with v.
    """
    gradient = _vector(torch.autograd.grad(divergence(), parameters, create_graph=True, materialize_grads=True))

    def product(v: Tensor) -> Tensor:
        found = torch.autograd.grad(gradient @ v, parameters, retain_graph=True, materialize_grads=True)
        return _vector(found) + damping * v

    return product


def _vector(pieces: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece in pieces])


def frozen(distribution: Any) -> Any:
    """A distribution that stays what it is when parameters move, which it may hold itself: its tensors, copied."""
    held = {field.name: getattr(distribution, field.name) for field in fields(distribution)}
    copied = {name: value.detach().clone() for name, value in held.items() if isinstance(value, Tensor)}
    return replace(distribution, **copied)


class NaturalLearner:
    """Steps along the natural gradient on all parameters as one vector `flat` [P]. It remembers nothing between steps."""

    def __init__(self, parameters: list[nn.Parameter], part: NaturalGradient) -> None:
        self.network = [parameter for parameter in parameters if parameter.requires_grad]
        self.flat, self.part = flatten(self.network), part

    def rate(self) -> float | None:
        """None: the length of a step is found when it is taken."""
        return None

    def direction(self, make: MicroBatch, divergence: Divergence) -> tuple[Tensor, Tensor, float]:
        """The gradient g [P] of the objective, x [P] with F x = g, and x F x. Raises ArithmeticError where g is not finite."""
        loss, _ = make()
        gradient = -_vector(torch.autograd.grad(loss, self.network, allow_unused=True, materialize_grads=True))
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            raise ArithmeticError(f"the loss is {float(loss.detach())}, the gradient's norm {norm}")
        product = fisher_product(divergence, self.network, self.part.damping)
        x = conjugate_gradient(product, gradient, self.part.iterations, self.part.tolerance)
        return gradient, x, float(x @ product(x))

    def learn(self, make: MicroBatch, divergence: Divergence) -> StepResult:
        """One step up the objective, whose negative `make` gives; `divergence` is the mean KL from the policy as it is now.

        Left out, with the reason, where gradient or direction is not finite.
        """
        result = StepResult()
        loss, stats = make()
        result.stats = {name: float(value.detach()) for name, value in stats.items()}
        try:
            gradient, x, curvature = self.direction(make, divergence)
        except ArithmeticError as error:
            result.skipped = str(error)
            return result
        result.grad_norm = float(gradient.norm())
        size = math.sqrt(2 * self.part.max_kl / (max(curvature, 0.0) + EPS))
        step = size * x
        if not bool(step.isfinite().all()):
            result.skipped = f"the natural gradient is not finite, x F x being {curvature:g}"
            return result
        foretold = float(gradient @ step)
        result.stats |= {"step/size": size, "step/foretold": foretold}
        result.stats |= self._move(step, float(loss.detach()), foretold, make, divergence)
        return result

    @torch.no_grad()
    def _move(
        self, step: Tensor, loss: float, foretold: float, make: MicroBatch, divergence: Divergence
    ) -> dict[str, float]:
        """Takes the step; what came of it."""
        self.flat += step
        return {"step/kl": float(divergence())}

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""


class TrustRegionLearner(NaturalLearner):
    """The same, with the backtracking line search of TRPO."""

    part: TrustRegion

    @torch.no_grad()
    def _move(
        self, step: Tensor, loss: float, foretold: float, make: MicroBatch, divergence: Divergence
    ) -> dict[str, float]:
        """Takes the longest of the steps tried that keeps to the trust region and is no worse, or none."""
        start, part = self.flat.clone(), self.part
        for tries in range(part.tries):
            share = part.backtrack**tries
            torch.add(start, step, alpha=share, out=self.flat)
            gain, kl = loss - float(make()[0]), float(divergence())
            if kl <= part.max_kl and gain >= part.improvement * share * foretold and gain >= 0:
                return {"step/kl": kl, "step/gain": gain, "step/tries": tries + 1.0, "step/taken": 1.0}
        self.flat.copy_(start)
        return {"step/kl": 0.0, "step/gain": 0.0, "step/tries": float(part.tries), "step/taken": 0.0}


class NaturalUpdater(StepUpdater):
    """One natural step of the policy on all that was played; the critic's epochs are its own."""

    learner: NaturalLearner

    def __init__(self, recipe: Recipe, policy: ControlPolicy, critic: Critic | None, total_steps: int) -> None:
        super().__init__(recipe, policy, critic, total_steps)
        name = type(recipe.optimizer).__name__
        if self.joint:
            raise UsageError(f"{name} moves the policy alone: set update.value_coefficient to null, and critic_epochs.")
        if self.rule.epochs != 1 or self.rule.minibatches != 1:
            raise UsageError(
                f"{name} takes one step on all that was played: set update.epochs and update.minibatches to 1. The critic's are "
                "critic_epochs and critic_minibatches."
            )

    def _learner(self, parameters: list[nn.Parameter], total: int) -> NaturalLearner:
        part = self.recipe.optimizer
        assert isinstance(part, NaturalGradient)
        learner: NaturalLearner = part.learner()(parameters, part)
        return learner

    def _policy_epochs(
        self, played: Played, rows: Rows, states: State, key: tuple[object, ...], result: UpdateResult
    ) -> tuple[dict[str, float], State]:
        with torch.no_grad():
            old: Any = frozen(self.policy.distribution(rows.observation))
            batch, states = self.recipe.minibatch(rows.batch.extended(self._columns(rows)), states)
        mask = rows.batch.mask

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            return self.recipe.loss(batch.extended(self._columns(rows)))

        def divergence() -> Tensor:
            found = self._like(rows.batch, old.kl(self.policy.distribution(rows.observation)))
            return found.sum() / mask.sum()

        step = self.learner.learn(loss, divergence)
        if step.skipped:
            result.skipped.append(step.skipped)
        stats = {**step.stats, "grad_norm": step.grad_norm}
        if self.critic_learner is not None and self.rule.critic_epochs is None:
            stats |= self._critic_step(rows, result)
        return stats, states
