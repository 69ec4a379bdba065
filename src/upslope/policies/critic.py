"""A value network for language: the policy's backbone with a scalar head, on the same packed prefix trees."""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from upslope.policies import loading
from upslope.policies.language import LanguagePolicy
from upslope.policies.lora import has_adapters
from upslope.policies.network import Network
from upslope.policies.reward_model import RewardModel
from upslope.rollout import Rollouts


class LanguageCritic:
    """V(s_t): the value of the state before each response token, read where the policy predicts that token.

    network   a copy of the policy's (or a reward model's) model without its output layer
    head      from its hidden state [H] to a value, in float32
    """

    def __init__(self, network: Network, head: nn.Linear) -> None:
        self.network = network
        self.head = head

    @classmethod
    def from_policy(cls, policy: LanguagePolicy) -> "LanguageCritic":
        """A critic that starts from the policy's weights and shares none; its values are 0 at the start.

        Of a policy with adapters, only the adapters and the head are trained.
        """
        twin = copy.deepcopy(policy.model)
        base = twin.get_base_model() if has_adapters(twin) else twin
        size = base.get_output_embeddings().weight.shape[1]
        base.set_output_embeddings(nn.Identity())
        head = nn.Linear(size, 1, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return cls(policy.network.twin(twin), head)

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel) -> "LanguageCritic":
        """A critic that starts from a reward model's weights, its score included, and shares none; all of it is trained.

        Adapters are merged into the weights.
        """
        twin = copy.deepcopy(reward_model.model)
        twin = (twin.merge_and_unload() if has_adapters(twin) else twin).requires_grad_(True)
        score = twin.score
        head = nn.Linear(score.in_features, 1, device=reward_model.device, dtype=torch.float32)
        with torch.no_grad():
            head.weight.copy_(score.weight)
            head.bias.copy_(torch.zeros(1) if score.bias is None else score.bias)
        twin.score = nn.Identity()
        return cls(reward_model.network.twin(twin), head)

    def score(self, rollouts: Rollouts, rows: Tensor | None = None) -> dict[str, Tensor]:
        """{"value": [r, T]} for the given rows (all, where None): float32, 0 where masked, with gradient.

        Raises:
            UsageError: an empty prompt, or a row longer than the context.
        """
        scored = self.network.prepare(rollouts, rows)
        if scored is None:
            shape = (len(rollouts) if rows is None else len(rows), rollouts.tokens.shape[1])
            return {"value": torch.zeros(shape, device=rollouts.tokens.device)}
        hidden, _ = self.network.forward(scored, logits=False)
        value = self.head(hidden.float()).squeeze(-1)
        return {"value": scored.column(value[scored.state]).to(rollouts.tokens.device)}

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained parameters, backbone or adapters first, head last."""
        return iter(self._trained().values())

    def state_dict(self) -> dict[str, Tensor]:
        """The trained parameters by name, not copied."""
        return {name: parameter.detach() for name, parameter in self._trained().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            UsageError: names or shapes differ from this critic's.
        """
        trained = self._trained()
        loading.copy_parameters(state, trained, set(trained))

    def _trained(self) -> dict[str, nn.Parameter]:
        backbone = {f"backbone.{name}": p for name, p in self.network.model.named_parameters() if p.requires_grad}
        return backbone | {f"head.{name}": p for name, p in self.head.named_parameters()}
