"""The actor: a ControlPolicy on observations that are standardized already, with what the losses ask of it."""

from typing import Any

import torch
from torch import Tensor

from upslope.parts.network import MLP
from upslope.policies.control import ControlPolicy

ACTOR = MLP(hidden=(256, 256), activation="relu", weight_init="torch", distribution="squashed", log_std="state")
"""The network of most methods here: two layers of 256, tanh of a Gaussian whose mean and deviation depend on s."""
DETERMINISTIC = MLP(hidden=(256, 256), activation="relu", weight_init="torch", distribution="deterministic")
BOUNDED = MLP(hidden=(256, 256), activation="relu", weight_init="torch", distribution="bounded", log_std_low=-5.0)


class Head:
    """What the losses ask of a policy: actions [B, A] in [-1, 1] with log-probs [B], for observations as the network sees them."""

    def __init__(self, policy: ControlPolicy) -> None:
        self.policy = policy

    def distribution(self, observation: Tensor) -> Any:
        """pi(.|s) of observations [B, O]."""
        return self.policy.distribution_at(self.policy.body(observation))

    def sample(self, observation: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Reparametrised action and its log-prob; a normal with a bounded mean is cut to [-1, 1] after its log-prob."""
        found = self.distribution(observation)
        action, logp = found.draw_with_log_prob(found.noise(generator))
        return (action.clamp(-1.0, 1.0) if self.policy.settings.distribution == "bounded" else action), logp

    def mode(self, observation: Tensor) -> Tensor:
        """The action where nothing is explored."""
        mode: Tensor = self.distribution(observation).mode()
        return mode

    def logp(self, observation: Tensor, action: Tensor) -> Tensor:
        """log pi(a|s) of given actions; one on the bound counts as the nearest float inside."""
        logp: Tensor = self.distribution(observation).log_prob(action)
        return logp
