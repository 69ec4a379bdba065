"""Beside policy and critic an action-value network that says which component of a mixture has the best action."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from upslope.batch import Batch
from upslope.collect import seeded
from upslope.control.learning import Rows, StepLearner, StepUpdater
from upslope.control.playing import Played
from upslope.errors import UsageError
from upslope.learner import MicroBatch, StepResult
from upslope.parts.routing import best_component
from upslope.parts.steps import Optimizer
from upslope.policies.control import Body, ControlPolicy
from upslope.policies.distributions import Distribution, Mixture
from upslope.recipe import State
from upslope.update import UpdateResult


class ActionValue(nn.Module):
    """Q(s, a), hidden layers as the policy's: observations as its network sees them [..., D], actions [..., A], to [...]."""

    def __init__(self, policy: ControlPolicy) -> None:
        super().__init__()
        self.body = Body(policy.observations.size + policy.actions.size, policy.settings)
        self.head = nn.Linear(self.body.width, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(torch.cat([observation, action], -1)))
        return found.squeeze(-1)


class RankingLearner(StepLearner):
    """A StepLearner that keeps the action-value network with its own optimizer beside it, in its state, too."""

    def __init__(self, parameters: list[nn.Parameter], part: Optimizer, total: int, policy: ControlPolicy) -> None:
        super().__init__(parameters, part.lr, part, total)
        self.ranking = ActionValue(policy)
        self.ranking_learner = StepLearner(list(self.ranking.parameters()), part.lr, part, total)

    def rank(self, make: MicroBatch) -> StepResult:
        """One step of the action-value network."""
        return self.ranking_learner.learn(make)

    def state_dict(self) -> dict[str, Any]:
        ranking = {name: value.clone() for name, value in self.ranking.state_dict().items()}
        return {**super().state_dict(), "ranking": ranking, "ranking_learner": self.ranking_learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.ranking.load_state_dict(state["ranking"])
        self.ranking_learner.load_state_dict(state["ranking_learner"])


class RankingUpdater(StepUpdater):
    """A StepUpdater that makes component_weight [R, T, K] and best_component [R, T], and after each of its steps takes one of
    half the mean of (Q(s, a) - returns)^2.
    """

    learner: RankingLearner

    def _learner(self, parameters: list[nn.Parameter], total: int) -> RankingLearner:
        optimizer = self.recipe.optimizer
        assert isinstance(optimizer, Optimizer)
        if self.policy.actions.kind != "continuous":
            raise UsageError(
                f"'{self.recipe.name}' has a mixture of Gaussians for continuous actions; these are {self.policy.actions.kind}. "
                "Take ppo."
            )
        return RankingLearner(parameters, optimizer, total, self.policy)

    def update(
        self, played: Played, batch: Batch, states: State, key: tuple[object, ...]
    ) -> tuple[UpdateResult, State]:
        self._generator = seeded(*key, "components")
        return super().update(played, batch, states, key)

    def _further(self, found: Distribution, seen: Tensor, mini: Rows) -> dict[str, Tensor]:
        mixture = Mixture.of(found)
        with torch.no_grad():
            action, _ = mixture.draw_each(self._generator)
            each = seen.unsqueeze(-2).expand(*seen.shape[:-1], action.shape[-2], seen.shape[-1])
            best = best_component(self.learner.ranking(each, action))
        columns = {"component_weight": mixture.logits.softmax(-1), "best_component": best}
        return {name: column.unsqueeze(1) for name, column in columns.items()} if self.rule.transitions else columns

    def _step(self, mini: Rows, states: State, result: UpdateResult, *rest: Any) -> tuple[dict[str, float], State]:
        stats, after = super()._step(mini, states, result, *rest)
        batch = mini.batch

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            value = self.learner.ranking(self.policy.normalized(mini.observation), mini.action)
            error = (self._like(batch, value) - batch.returns)[batch.mask].square().mean() / 2
            return error, {"ranking/loss": error.detach()}

        step = self.learner.rank(loss)
        if step.skipped:
            result.skipped.append(f"ranking: {step.skipped}")
        return {**stats, **step.stats}, after
