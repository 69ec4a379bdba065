"""Momentum policy gradients: who plays at look-ahead or interpolated parameters, and Hessian products without a matrix."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upslope.actor_critic.flat import flatten
from upslope.batch import Batch
from upslope.collect import seeded
from upslope.control.learning import Rows, StepUpdater
from upslope.control.playing import Experience, Played, Player
from upslope.errors import UsageError
from upslope.learner import StepResult
from upslope.parts.momentum import GradientMomentum, HessianMomentum, LookAhead
from upslope.policies.control import ControlPolicy, Critic
from upslope.recipe import Recipe, State, Stats
from upslope.update import UpdateResult

Scores = Callable[[], Tensor]
Weighted = Callable[[Tensor | None], tuple[Tensor, Stats]]
EPS = 1e-12


@dataclass(frozen=True)
class PlayedTwice(Played):
    """What was seen and done at the parameters kept, and the experience of the same step at others."""

    other: Experience


class MomentumLearner:
    """theta <- theta + lr d / |d|, d the moving average of gradients, on all parameters as one vector `flat` [P].

    before   theta_{t-1} [P];  d   the average [P];  taken   t
    """

    def __init__(self, parameters: list[nn.Parameter], part: GradientMomentum) -> None:
        self.network = [parameter for parameter in parameters if parameter.requires_grad]
        self.flat, self.part = flatten(self.network), part
        self.before, self.d, self.taken = self.flat.clone(), torch.zeros_like(self.flat), 0

    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.part.lr_at(self.taken)

    def eta(self) -> float:
        """The next gradient's share."""
        return self.part.eta_at(self.taken)

    def place(self) -> Tensor:
        """Where the next gradient is taken, and its episodes are played, [P]."""
        return self.flat.clone()

    def second_place(self, generator: torch.Generator) -> Tensor | None:
        """Where a second batch of episodes is played, [P]; None: there is none."""
        return None

    @contextmanager
    def at(self, place: Tensor) -> Iterator[None]:
        """The parameters are these, inside; then what they were."""
        kept = self.flat.clone()
        self.flat.copy_(place)
        try:
            yield
        finally:
            self.flat.copy_(kept)

    def gradient(self, weighted: Weighted, place: Tensor) -> tuple[Tensor, Stats]:
        """That of the objective, whose negative `weighted(None)` is, at a place: [P]; and the loss's statistics."""
        with self.at(place):
            loss, stats = weighted(None)
            found = torch.autograd.grad(loss, self.network, allow_unused=True, materialize_grads=True)
        return -_vector(found), stats

    def step(self, gradient: Tensor, change: Tensor | None = None) -> StepResult:
        """One step with the gradient g_t [P] and, where there is one, the estimated change v_t [P] of the average's.

        Left out, with the reason, where they are not finite; then t does not advance either.
        """
        result = StepResult(grad_norm=float(gradient.norm()))
        eta, rate = self.eta(), self.rate()
        past = self.d if change is None else self.d + change
        d = (1 - eta) * past + eta * gradient if self.taken else gradient.clone()
        norm = float(d.norm())
        if not math.isfinite(norm):
            result.skipped = f"the gradient's norm is {result.grad_norm}, that of its average {norm}"
            return result
        self.before = self.flat.clone()
        self.flat.add_(d, alpha=rate / (norm + EPS) if self.part.normalized else rate)
        self.d, self.taken, result.lr = d, self.taken + 1, rate
        result.stats = {"momentum/norm": norm, "momentum/eta": eta}
        return result

    def state_dict(self) -> dict[str, Any]:
        """The parameters before, the average and the number of steps."""
        return {"before": self.before, "d": self.d, "taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` returned."""
        self.before.copy_(state["before"])
        self.d, self.taken = state["d"].clone(), int(state["taken"])


class LookAheadLearner(MomentumLearner):
    """Gradients at theta_t + (1 - eta) / eta (theta_t - theta_{t-1})."""

    part: LookAhead

    def place(self) -> Tensor:
        eta = self.eta()
        return self.flat + min((1 - eta) / eta, self.part.look_ahead) * (self.flat - self.before)


class HessianLearner(MomentumLearner):
    """The average moves with the parameters, by Hessian products at a place between this step's and the last's."""

    part: HessianMomentum

    def second_place(self, generator: torch.Generator) -> Tensor | None:
        """None where the average has nothing of the past."""
        share = float(torch.rand((), generator=generator))
        if not self.taken or self.eta() == 1.0:
            return None
        return share * self.flat + (1 - share) * self.before

    def change(self, weighted: Weighted, scores: Scores, place: Tensor) -> Tensor:
        """v [P] = B (theta_t - theta_{t-1}) at a place: -(grad of L_w + grad <grad L, delta>), L the loss of the episodes.

        scores      sum of the log-probs of each episode's actions, [R]
        weighted    w [R] -> the loss with each episode's share multiplied by its w; None: as it is
        w           <grad scores, delta> of each episode, constant
        """
        delta = self.flat - self.before
        with self.at(place):
            along = self._along(scores, delta)
            loss, _ = weighted(None)
            gradient = torch.autograd.grad(
                loss, self.network, create_graph=True, allow_unused=True, materialize_grads=True
            )
            total = weighted(along)[0] + _vector(gradient) @ delta
            found = torch.autograd.grad(total, self.network, allow_unused=True, materialize_grads=True)
        return -_vector(found)

    def _along(self, scores: Scores, delta: Tensor) -> Tensor:
        """The derivative of each episode's score along delta, [R]: that of <grad (w . scores), delta> by w."""
        each = scores()
        w = torch.zeros_like(each, requires_grad=True)
        pulled = torch.autograd.grad(
            each, self.network, w, create_graph=True, allow_unused=True, materialize_grads=True
        )
        (found,) = torch.autograd.grad(_vector(pulled) @ delta, w)
        return found


def _vector(pieces: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece in pieces])


class MomentumUpdater(StepUpdater):
    """One step of momentum for what was played; who plays has the parameters that the learner says."""

    learner: MomentumLearner

    def __init__(self, recipe: Recipe, policy: ControlPolicy, critic: Critic | None, total_steps: int) -> None:
        super().__init__(recipe, policy, critic, total_steps)
        name = type(recipe.optimizer).__name__
        if self.joint:
            raise UsageError(f"{name} moves the policy alone: set update.value_coefficient to null, and critic_epochs.")
        if self.rule.epochs != 1 or self.rule.minibatches != 1 or self.rule.transitions:
            raise UsageError(
                f"{name} takes one step with all episodes that were played: set update.epochs and update.minibatches to 1, and "
                "update.transitions to false."
            )

    def _learner(self, parameters: list[nn.Parameter], total: int) -> MomentumLearner:
        part = self.recipe.optimizer
        assert isinstance(part, GradientMomentum)
        learner: MomentumLearner = part.learner()(parameters, part)
        return learner

    def play(self, player: Player, key: tuple[object, ...]) -> Experience:
        """Played at the learner's place; where it has a second one, there too."""
        with self.learner.at(self.learner.place()):
            found = player.play(seeded(*key, "actions"))
        second = self.learner.second_place(seeded(*key, "between"))
        if second is None:
            return found
        with self.learner.at(second):
            other = player.play(seeded(*key, "further actions"))
        played = PlayedTwice(found.played.observation, found.played.action, other)
        return Experience(played, found.batch, found.steps + other.steps, found.episodes + other.episodes)

    def _policy_epochs(
        self, played: Played, rows: Rows, states: State, key: tuple[object, ...], result: UpdateResult
    ) -> tuple[dict[str, float], State]:
        learner, place = self.learner, self.learner.place()
        before = states
        batch, states = self._minibatch(rows, states, place)
        gradient, stats = learner.gradient(self._weighted(rows, batch), place)
        change = None
        if isinstance(played, PlayedTwice) and isinstance(learner, HessianLearner):
            second = learner.second_place(seeded(*key, "between"))
            assert second is not None
            prepared, _ = self.recipe.credit(played.other.batch, before)
            further = self._rows(prepared, played.other.played)
            batch, _ = self._minibatch(further, before, second)

            def scores() -> Tensor:
                return self._columns(further)["logp"].sum(1)

            change = learner.change(self._weighted(further, batch), scores, second)
        step = learner.step(gradient, change)
        if step.skipped:
            result.skipped.append(step.skipped)
        found = {**{name: float(value) for name, value in stats.items()}, **step.stats, "grad_norm": step.grad_norm}
        if self.critic_learner is not None and self.rule.critic_epochs is None:
            found |= self._critic_step(rows, result)
        return found, states

    @torch.no_grad()
    def _minibatch(self, rows: Rows, states: State, place: Tensor) -> tuple[Batch, State]:
        with self.learner.at(place):
            return self.recipe.minibatch(rows.batch.extended(self._columns(rows)), states)

    def _weighted(self, rows: Rows, batch: Batch) -> Weighted:
        """The loss of the rows under the parameters as they are; with w [R], each row's share of it times its w."""

        def loss(w: Tensor | None) -> tuple[Tensor, Stats]:
            columns = self._columns(rows)
            if w is not None:
                for name in batch:
                    if name.startswith(("scale_", "penalty_scale_")):
                        scale = getattr(batch, name)
                        columns[name] = scale * (w.unsqueeze(1) if scale.ndim == 2 else w)
            return self.recipe.loss(batch.extended(columns))

        return loss
