"""The gradient of a recipe on given rollouts, without taking a step: for checks and for `upslope probe`."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.config import OptimizerConfig
from upslope.learner import Learner
from upslope.parts.sampling import Update
from upslope.recipe import Recipe
from upslope.rollout import Rollouts
from upslope.update import Actors, Updater


class GradientRecorder:
    """Runs a recipe's update in one optimizer step whose gradient is kept and not applied. Remembers the parts' states.

    `actors` gives policy, reference and critic; its learners are left alone. `lr`: of the step that parts measure (CAPO), which
    is AdamW's first. `rows_trained`: rows of the last gradient.
    """

    def __init__(self, recipe: Recipe, actors: Actors, *, tokens_per_pass: int, lr: float) -> None:
        self.recipe = recipe.replace(update=Update())
        self.learner = _Recorder(actors.policy.parameters(), lr)
        recording = replace(actors, learner=self.learner, critic_learner=None)
        self.updater = Updater(self.recipe, recording, tokens_per_pass=tokens_per_pass, recompute_old_logp=False)
        self.states = self.recipe.init()
        self.rows_trained = 0.0

    def gradient(self, rollouts: Rollouts, batch: Batch, key: tuple[object, ...]) -> Tensor:
        """The gradient of the loss, flat, [number of parameters] float32; 0 where no row has one.

        Raises ArithmeticError where the loss or the gradient is not finite.
        """
        self.learner.gradient = torch.zeros_like(self.learner.gradient)
        result, self.states = self.updater.update(rollouts, batch, self.states, key)
        self.rows_trained = result.metrics["rows/trained"]
        if result.skipped:
            raise ArithmeticError(f"{self.recipe.name}: {result.skipped[0]}")
        return self.learner.gradient


class _Recorder(Learner):
    """Keeps the gradient and leaves the weights alone."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr, OptimizerConfig(grad_clip=float("inf")), 1)
        self.gradient = torch.zeros(sum(parameter.numel() for parameter in self.parameters))

    def _apply(self) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.gradient = torch.cat([grad.detach().flatten().float().cpu() for grad in grads])
