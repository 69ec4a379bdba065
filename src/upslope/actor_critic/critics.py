"""Parts of the critic: the ensemble, what it regresses on, how its members become one value, and penalties."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from upslope.actor_critic.losses import bootstrap, conservative_gap, diversity, expectile, lowest, squared_error
from upslope.actor_critic.minibatch import Minibatch
from upslope.actor_critic.networks import EnsembleNetwork
from upslope.actor_critic.temperature import adam, multiplier
from upslope.errors import UsageError, check_within
from upslope.recipe import Part, State

LARGEST = math.log(1e6)  # of the multiplier of a penalty, as its logarithm
Activation = Literal["relu", "tanh", "silu", "gelu"]


@dataclass(frozen=True)
class Critics(Part):
    """An ensemble Q_1 ... Q_E of networks over (s, a)."""

    members: int = 2
    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    layer_norm: bool = False
    dropout: float = 0.0
    formula: ClassVar[str] = "{members} networks Q_j(s, a) with hidden layers {hidden}"

    def __post_init__(self) -> None:
        if self.members < 1 or not self.hidden or min(self.hidden) < 1:
            raise UsageError(
                f"critic.members={self.members} and critic.hidden={list(self.hidden)}: at least 1 network is needed, with a width "
                "of at least 1 per layer, e.g. critic.members=2 critic.hidden=[64,64]."
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"critic.dropout is {self.dropout}; it must be in [0, 1).")

    def build(self, inputs: int) -> EnsembleNetwork:
        """The networks, with `inputs` numbers in."""
        return EnsembleNetwork(
            inputs,
            self.members,
            self.hidden,
            activation=self.activation,
            layer_norm=self.layer_norm,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class Lowest(Part):
    """The smallest member's value; of `of` members drawn anew without replacement for every update, where that is given."""

    of: int | None = None

    def __post_init__(self) -> None:
        if self.of is not None and self.of < 1:
            raise UsageError(f"ensemble.of is {self.of}; at least 1 member is needed.")

    def __call__(self, q: Tensor) -> Tensor:
        return lowest(q)

    def choose(self, members: int, generator: torch.Generator) -> Sequence[int] | None:
        """Which of the members are asked; None: all."""
        if self.of is None or self.of == members:
            return None
        return torch.randperm(members, generator=generator)[: self.of].tolist()

    def describe(self) -> str:
        return "min_j" if self.of is None else f"min over {self.of} random j of"


@dataclass(frozen=True)
class Mean(Part):
    """The members' mean."""

    formula: ClassVar[str] = "mean_j"

    def __call__(self, q: Tensor) -> Tensor:
        return q.mean(0)

    def choose(self, members: int, generator: torch.Generator) -> Sequence[int] | None:
        """None: all."""
        return None


@dataclass(frozen=True)
class SoftTarget(Part):
    """y = r + discount (1 - d) (ensemble of Q'(s', a') - alpha log pi(a'|s')), a' ~ pi(.|s');  [B].

    `entropy` False leaves the last summand out.
    """

    discount: float = 0.99
    entropy: bool = True

    def __post_init__(self) -> None:
        check_within(self, 0, 1, "discount")

    def __call__(self, m: Minibatch) -> Tensor:
        action, logp = self.next_action(m)
        value = m.target_value(m.next_observation, action)
        if self.entropy:
            value = torch.sub(value, logp, alpha=m.alpha)
        return bootstrap(m.reward, m.terminated, value, self.discount)

    def next_action(self, m: Minibatch) -> tuple[Tensor, Tensor]:
        """a' [B, A] and the log-prob [B] that is its entropy's."""
        return m.next_sample()

    def describe(self) -> str:
        entropy = " - alpha log pi(a'|s')" if self.entropy else ""
        return f"r + {self.discount:g} (1 - d) ( {{ensemble}} Q'_j(s', a'){entropy} ),  a' ~ pi(.|s')"


@dataclass(frozen=True)
class SmoothedTarget(Part):
    """y = r + discount (1 - d) ensemble of Q'(s', a'), a' = clip(pi'(s') + clip(noise N(0, 1), -clip, clip), -1, 1);  [B]."""

    discount: float = 0.99
    noise: float = 0.2
    clip: float = 0.5
    reads_target_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_within(self, 0, 1, "discount")
        check_within(self, 0, float("inf"), "noise", "clip")

    def __call__(self, m: Minibatch) -> Tensor:
        action = self.action(m)
        return bootstrap(m.reward, m.terminated, m.target_value(m.next_observation, action), self.discount)

    def action(self, m: Minibatch) -> Tensor:
        """a' [B, A]."""
        m.discount = self.discount
        mode: Tensor = m.networks.target_policy.mode(m.next_observation)
        if self.noise == 0:
            m.target_action = mode
            return mode
        noise = torch.randn(mode.shape, generator=m.generator).mul_(self.noise).clamp_(-self.clip, self.clip)
        m.target_action = noise.add_(mode).clamp_(-1.0, 1.0)
        return m.target_action

    def describe(self) -> str:
        return (
            f"r + {self.discount:g} (1 - d) {{ensemble}} Q'_j(s', a'),  a' = clip(pi'(s') + clip({self.noise:g} N(0, 1), "
            f"{self.clip:g}), 1)"
        )


@dataclass(frozen=True)
class PenalizedTarget(SmoothedTarget):
    """As SmoothedTarget, less `coefficient` times the sum over A of (a' - the logged next action)^2 inside the bracket."""

    coefficient: float = 0.01
    needs: ClassVar[frozenset[str]] = frozenset({"next_action"})

    def __call__(self, m: Minibatch) -> Tensor:
        action = self.action(m)
        apart = (action - m.column("next_action")).square().sum(-1)
        value = torch.sub(m.target_value(m.next_observation, action), apart, alpha=self.coefficient)
        return bootstrap(m.reward, m.terminated, value, self.discount)

    def describe(self) -> str:
        return super().describe() + f", Q' less {self.coefficient:g} sum (a' - logged a')^2"


@dataclass(frozen=True)
class ValueTarget(Part):
    """y = r + discount (1 - d) V(s');  [B]."""

    discount: float = 0.99
    reads_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_within(self, 0, 1, "discount")

    def __call__(self, m: Minibatch) -> Tensor:
        return bootstrap(m.reward, m.terminated, m.value(m.next_observation), self.discount)

    def describe(self) -> str:
        return f"r + {self.discount:g} (1 - d) V(s')"


@dataclass(frozen=True)
class SquaredError(Part):
    """factor * sum (or mean) over critics of mean_B (Q_j(s, a) - y)^2."""

    factor: float = 1.0
    across: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise UsageError(f"SquaredError.factor is {self.factor:g}; it must be above 0 and finite.")

    def __call__(self, q: Tensor, target: Tensor) -> Tensor:
        return squared_error(q, target, factor=self.factor, across=self.across)

    def describe(self) -> str:
        factor = "" if self.factor == 1 else f"{self.factor:g} "
        return f"{factor}{self.across} over j of mean (Q_j(s, a) - y)^2"


@dataclass(frozen=True)
class Expectile(Part):
    """V's loss: mean |tau - 1[u < 0]| u^2 with u = ensemble of Q'(s, a) - V(s). `hidden` are the layers of V's network."""

    tau: float = 0.7
    hidden: tuple[int, ...] = (256, 256)
    reads_critic: ClassVar[bool] = True
    formula: ClassVar[str] = "mean |{tau:g} - 1[u < 0]| u^2,  u = {{ensemble}} Q'_j(s, a) - V(s)"

    def __post_init__(self) -> None:
        if not 0 < self.tau < 1:
            raise UsageError(f"value.tau is {self.tau}; it must be between 0 and 1, and 0.5 is the mean.")

    def build(self, inputs: int) -> EnsembleNetwork:
        """V's network."""
        return EnsembleNetwork(inputs, 1, self.hidden)

    def __call__(self, m: Minibatch) -> Tensor:
        with torch.no_grad():
            q = m.target_value(m.observation, m.action)
        return expectile(q - m.value(m.observation), self.tau)


@dataclass(frozen=True)
class ConservativeGap(Part):
    """coefficient * mean over B of sum_j clip( T logsumexp over sampled a of (Q_j(s, a) / T - log density) - Q_j(s, a_logged) ).

    `samples` actions each from the uniform density on [-1, 1]^A, from pi(.|s) and from pi(.|s') (evaluated at s, its density at
    s'); actions and densities have no gradient. `lowest` and `highest` clip the gap.

    `target_gap` makes the Lagrange form: alpha' coefficient sum_j (mean gap_j - target_gap), where alpha' = exp(x), first e and at
    most 1e6, grows while gaps are above it: an Adam step on x per update, down -1/2 of that term.
    """

    coefficient: float = 10.0
    samples: int = 10
    temperature: float = 1.0
    lowest: float = -math.inf
    highest: float = math.inf
    target_gap: float | None = None
    target_lr: float = 3e-4
    reads_log: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_within(self, 0, float("inf"), "coefficient", "target_lr")
        check_within(self, 1, float("inf"), "samples")
        if not 0 < self.temperature < float("inf") or not self.lowest < self.highest:
            raise UsageError(
                f"{type(self).__name__}.temperature={self.temperature:g} must be above 0, and lowest={self.lowest:g} below "
                f"highest={self.highest:g}."
            )

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether alpha' is there to be learned."""
        return self.target_gap is not None

    def init(self) -> State:
        return multiplier(math.e)

    def __call__(self, m: Minibatch, state: State | None = None) -> Any:
        """The penalty; with the next state where `target_gap` is given."""
        gap = conservative_gap(self.sampled(m), m.logged_q(), self.temperature).clamp(self.lowest, self.highest)
        if self.target_gap is None:
            return self.coefficient * gap.sum() / gap.shape[1]
        assert state is not None
        above = self.coefficient * (gap.mean(1) - self.target_gap).sum()
        alpha = math.exp(min(state["x"], LARGEST))
        slope = -0.5 * alpha * float(above.detach()) if state["x"] < LARGEST else 0.0
        return alpha * above, adam(state, slope, self.target_lr)

    def describe(self) -> str:
        gap = f"{self.temperature:g} logsumexp_a Q_j(s, a) - Q_j(s, a_logged)"
        dual = ("", "") if self.target_gap is None else ("alpha' ", f" - {self.target_gap:g}")
        return f"{dual[0]}{self.coefficient:g} sum over j of mean [ {gap}{dual[1]} ],  a: 3 x {self.samples} samples"

    def sampled(self, m: Minibatch) -> Tensor:
        """Q_j(s, a) - log density(a), [E, B, 3 n]."""
        rows, count, size = len(m), self.samples, m.action.shape[-1]

        def repeated(column: Tensor) -> Tensor:
            return column.unsqueeze(1).expand(rows, count, column.shape[-1]).reshape(rows * count, -1)

        with torch.no_grad():
            uniform = torch.rand(rows * count, size, generator=m.generator) * 2.0 - 1.0
            at = repeated(m.observation)
            following, following_logp = m.networks.policy.sample(repeated(m.next_observation), m.generator)
            current, current_logp = m.networks.policy.sample(at, m.generator)
            density = torch.stack([torch.full_like(current_logp, size * math.log(0.5)), following_logp, current_logp])
        q = m.q(at.repeat(3, 1), torch.cat([uniform, following, current]))
        q, floor = q.view(-1, 3, rows, count), self.floor(m)
        if floor is not None:
            q = torch.maximum(q, floor.unsqueeze(-1))
        weighted = q - density.view(3, rows, count)
        return weighted.permute(0, 2, 1, 3).reshape(len(q), rows, 3 * count)

    def floor(self, m: Minibatch) -> Tensor | None:
        """The least value that counts for uniform actions, those of pi(.|s') and of pi(.|s), [3, B]; None: none."""
        return None


@dataclass(frozen=True)
class Diversity(Part):
    """eta * mean_B sum over i != j of <g_i, g_j> / (E - 1), g_j = dQ_j/da scaled to length 1."""

    eta: float = 1.0
    reads_action_gradient: ClassVar[bool] = True
    formula: ClassVar[str] = "{eta:g} mean sum over i != j of cos(dQ_i/da, dQ_j/da) / (E - 1)"

    def __post_init__(self) -> None:
        check_within(self, 0, float("inf"), "eta")

    def __call__(self, m: Minibatch) -> Tensor:
        return self.eta * diversity(m.action_gradient())


def reads(part: Any, what: str) -> bool:
    """Whether a part declares that it reads something of the networks, such as `reads_target_policy`."""
    return bool(getattr(part, what, False))
