"""The network of a policy that acts in an environment, as settings."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from upslope.errors import UsageError
from upslope.recipe import Part

Activation = Literal["tanh", "relu", "silu", "gelu", "elu"]
POINTS = ("deterministic", "softplus")
"""Distributions that are one action, without a density."""


@dataclass(frozen=True)
class MLP(Part):
    """Fully connected layers and a distribution over actions, with a critic of the same layers beside it.

    hidden         width of each hidden layer
    layer_norm     after each hidden layer, before its activation
    weight_init    "orthogonal", biases 0, with gain `hidden_gain`, and for the last layers `policy_gain` and `value_gain`; or
                   "torch", the uniform one of torch.nn.Linear
    shared         the critic reads the policy's last hidden layer instead of having layers of its own
    distribution   of continuous actions; discrete ones are categorical. "squashed": tanh of a normal, actions in [-1, 1] that
                   are mapped onto the environment's box. "gaussian": actions are cut to the box on their way, and only there.
                   "bounded": a normal with mean tanh(...) and a log-std within its bounds, and "deterministic": tanh(...)
                   itself, both of actions in [-1, 1] as well. "softplus": log(1 + exp(... + 1)) itself, an amount above 0
    components     of a mixture of that distribution; 1: none
    log_std        "free": a parameter for each entry of the action, first `log_std_init`; "state": a further output of the
                   network, kept within log_std_low and log_std_high: "cut" there, or by a "tanh" onto them (log_std_bound)
    normalize      observations less their running mean, over their running std, cut to +- normalize_clip. The moments change
                   between updates only, belong to the policy, and stay as they are in evaluation
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    layer_norm: bool = False
    weight_init: Literal["orthogonal", "torch"] = "orthogonal"
    hidden_gain: float = 2**0.5
    policy_gain: float = 0.01
    value_gain: float = 1.0
    shared: bool = False
    distribution: Literal["gaussian", "squashed", "bounded", "deterministic", "softplus"] = "gaussian"
    components: int = 1
    log_std: Literal["free", "state"] = "free"
    log_std_init: float = 0.0
    log_std_low: float = -20.0
    log_std_high: float = 2.0
    log_std_bound: Literal["cut", "tanh"] = "cut"
    normalize: bool = False
    normalize_clip: float = 10.0
    formula: ClassVar[str] = "MLP {hidden} {activation}"

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise UsageError(
                f"MLP.hidden is {list(self.hidden)}; it needs a width of at least 1 per layer, e.g. [64, 64]."
            )
        if self.components < 1:
            raise UsageError(f"MLP.components is {self.components}; it must be at least 1, which is no mixture.")
        if self.components > 1 and self.distribution in POINTS:
            raise UsageError(
                f"MLP.components={self.components} is of mixtures; {self.distribution} has no density. Set it to 1."
            )
        if not self.log_std_low < self.log_std_high:
            raise UsageError(f"MLP.log_std_low={self.log_std_low:g} must be below log_std_high={self.log_std_high:g}.")
        if not self.normalize_clip > 0:
            raise UsageError(
                f"MLP.normalize_clip is {self.normalize_clip:g}; it must be above 0, .inf for no clipping."
            )

    def build(self, observations: Any, actions: Any) -> Any:
        """The policy of this network, of an `ObservationSpec` and an `ActionSpec`."""
        from upslope.policies.control import ControlPolicy

        return ControlPolicy(observations, actions, self)

    def critic(self, policy: Any) -> Any:
        """The critic beside a policy that `build` made."""
        from upslope.policies.control import Critic

        return Critic(policy)
