"""What a policy draws actions from: small distributions on tensors, drawn with a `torch.Generator` or from given noise.

Leading axes [...] are rows. Log-probs, entropies and divergences are those of the whole action: sums over its entries.
All are in nats.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from upslope.errors import UsageError

LOG_TWO, LOG_TWO_PI = math.log(2.0), math.log(2 * math.pi)
LARGEST = (
    1 - 6e-8
)  # of a float32 below 1: tanh rounds to 1 itself from 9 on, and the logarithm of 1 - tanh^2 would be -inf


class Distribution(Protocol):
    """What every distribution here can do; `noise` is what one draw needs, `draw` makes an action of it."""

    def log_prob(self, action: Tensor) -> Tensor: ...
    def entropy(self) -> Tensor: ...
    def mode(self) -> Tensor: ...
    def noise(self, generator: torch.Generator | None, count: tuple[int, ...] = ()) -> Tensor: ...
    def draw(self, noise: Tensor) -> Tensor: ...
    def kl(self, other: Any) -> Tensor: ...


def sample(distribution: Distribution, generator: torch.Generator | None = None) -> Tensor:
    """One action per row."""
    return distribution.draw(distribution.noise(generator))


@dataclass(frozen=True)
class Categorical:
    """One of K, with probabilities softmax(logits [..., K]). Actions [...] int64. Drawn by the Gumbel maximum."""

    logits: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """[...]"""
        return self.logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """[...]; 0 log 0 is 0."""
        logp = self.logits.log_softmax(-1)
        return -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)

    def mode(self) -> Tensor:
        """The likeliest, [...]."""
        return self.logits.argmax(-1)

    def noise(self, generator: torch.Generator | None, count: tuple[int, ...] = ()) -> Tensor:
        """Gumbel noise, [*count, ..., K]."""
        shape = (*count, *self.logits.shape)
        return -torch.empty(shape, dtype=self.logits.dtype).exponential_(generator=generator).log()

    def draw(self, noise: Tensor) -> Tensor:
        """[...]"""
        return (self.logits + noise).argmax(-1)

    def kl(self, other: "Categorical") -> Tensor:
        """KL(self || other), [...]."""
        logp = self.logits.log_softmax(-1)
        gap = logp - other.logits.log_softmax(-1)
        return torch.where(logp == -torch.inf, 0.0, logp.exp() * gap).sum(-1)


@dataclass(frozen=True)
class MultiCategorical:
    """Several choices at once, independent: `logits` [..., sum of counts], in runs of `counts`. Actions [..., A] int64."""

    logits: Tensor
    counts: tuple[int, ...]

    def parts(self) -> list[Categorical]:
        """A distribution for each choice."""
        return [Categorical(logits) for logits in self.logits.split(list(self.counts), -1)]

    def log_prob(self, action: Tensor) -> Tensor:
        """[...]"""
        return torch.stack([part.log_prob(action[..., i]) for i, part in enumerate(self.parts())]).sum(0)

    def entropy(self) -> Tensor:
        """[...]"""
        return torch.stack([part.entropy() for part in self.parts()]).sum(0)

    def mode(self) -> Tensor:
        """[..., A]"""
        return torch.stack([part.mode() for part in self.parts()], -1)

    def noise(self, generator: torch.Generator | None, count: tuple[int, ...] = ()) -> Tensor:
        """Gumbel noise, [*count, ..., sum of counts]."""
        return Categorical(self.logits).noise(generator, count)

    def draw(self, noise: Tensor) -> Tensor:
        """[..., A]"""
        runs = noise.split(list(self.counts), -1)
        return torch.stack([part.draw(run) for part, run in zip(self.parts(), runs, strict=True)], -1)

    def kl(self, other: "MultiCategorical") -> Tensor:
        """KL(self || other), [...]."""
        return torch.stack([a.kl(b) for a, b in zip(self.parts(), other.parts(), strict=True)]).sum(0)


@dataclass(frozen=True)
class Gaussian:
    """Independent normals: `mean` [..., A], `log_std` [..., A] or [A]. Actions [..., A]."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """[...]"""
        z = (action - self.mean) * (-self.log_std).exp()
        return -0.5 * (z * z).sum(-1) - (self.log_std + 0.5 * LOG_TWO_PI).sum(-1)

    def entropy(self) -> Tensor:
        """[...]"""
        per_row = (self.log_std + 0.5 * (1 + LOG_TWO_PI)).sum(-1)
        return per_row.expand(self.mean.shape[:-1])

    def mode(self) -> Tensor:
        """The mean, [..., A]."""
        return self.mean

    def noise(self, generator: torch.Generator | None, count: tuple[int, ...] = ()) -> Tensor:
        """Standard normal, [*count, ..., A]."""
        return torch.randn((*count, *self.mean.shape), generator=generator, dtype=self.mean.dtype)

    def draw(self, noise: Tensor) -> Tensor:
        """mean + std noise, with gradient to both, [..., A]."""
        return torch.addcmul(self.mean, noise, self.log_std.exp())

    def draw_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action [..., A] and its log-prob [...], both with gradient to mean and log_std."""
        density = -0.5 * (noise * noise).sum(-1) - (self.log_std + 0.5 * LOG_TWO_PI).sum(-1)
        return self.draw(noise), density

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other), [...]."""
        ratio = (2 * (self.log_std - other.log_std)).exp()
        gap = ((self.mean - other.mean) * (-other.log_std).exp()) ** 2
        return (0.5 * (ratio + gap - 1) + other.log_std - self.log_std).sum(-1)


@dataclass(frozen=True)
class SquashedGaussian:
    """a = tanh(u), u normal: actions in (-1, 1), [..., A].

        log p(a) = log N(u) - sum over entries of log(1 - tanh(u)^2),   log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))

    which is exact and finite for every u. `log_prob` of an action has to find u = atanh(a): an action within rounding of +-1
    is taken for the nearest that is not. Where the draw is at hand, `draw_with_log_prob` loses nothing.
    Source: Haarnoja et al. 2018 (arXiv:1812.05905), appendix C.
    """

    mean: Tensor
    log_std: Tensor
    NODES: ClassVar[int] = 64

    @property
    def base(self) -> Gaussian:
        """The distribution of u."""
        return Gaussian(self.mean, self.log_std)

    def log_prob(self, action: Tensor) -> Tensor:
        """[...]"""
        u = torch.atanh(action.clamp(-LARGEST, LARGEST))
        return self.base.log_prob(u) - log_slope(u).sum(-1)

    def draw_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action [..., A] and its log-prob [...], both with gradient to mean and log_std."""
        u, density = self.base.draw_with_log_prob(noise)
        return u.tanh(), density - log_slope(u).sum(-1)

    def entropy(self) -> Tensor:
        """[...]: that of u plus the expected log-slope, by Gauss-Hermite quadrature (1e-5 nats for a std up to 1.5)."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.NODES)
        x = self.mean.new_tensor(nodes).view(-1, *[1] * self.mean.ndim)
        w = self.mean.new_tensor(weights / weights.sum()).view(-1, *[1] * self.mean.ndim)
        return self.base.entropy() + (w * log_slope(self.mean + x * self.log_std.exp())).sum(0).sum(-1)

    def mode(self) -> Tensor:
        """tanh of the mean (the median of each entry), [..., A]: what an evaluation without noise plays."""
        return self.mean.tanh()

    def noise(self, generator: torch.Generator | None, count: tuple[int, ...] = ()) -> Tensor:
        """Standard normal, [*count, ..., A]."""
        return self.base.noise(generator, count)

    def draw(self, noise: Tensor) -> Tensor:
        """[..., A]"""
        return self.base.draw(noise).tanh()

    def kl(self, other: "SquashedGaussian") -> Tensor:
        """KL(self || other), [...]: that of the normals, since both are squashed alike."""
        return self.base.kl(other.base)


@dataclass(frozen=True)
class Point:
    """One action and no other, [..., A]. It has no density: log-probs are 0, so that what adds an entropy adds none."""

    action: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """0, [...], whatever the action."""
        return self.entropy()

    def entropy(self) -> Tensor:
        """0, [...]."""
        return self.action.new_zeros(self.action.shape[:-1])

    def mode(self) -> Tensor:
        """The action, [..., A]."""
        return self.action

    def noise(self, generator: torch.Generator | None, count: tuple[int, ...] = ()) -> Tensor:
        """None is needed: [*count, ..., 0]."""
        return self.action.new_zeros((*count, *self.action.shape[:-1], 0))

    def draw(self, noise: Tensor) -> Tensor:
        """The action, [..., A]."""
        return self.action

    def draw_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action [..., A], and zeros [...]."""
        return self.action, self.entropy()

    def kl(self, other: "Point") -> Tensor:
        """Raises UsageError: between two points it is 0 or infinite."""
        raise UsageError("deterministic policies have no KL divergence. Leave the part that reads it out.")


def log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), elementwise, without cancellation."""
    return 2 * (LOG_TWO - u - softplus(-2 * u))


@dataclass(frozen=True)
class Mixture:
    """K Gaussians, squashed or not, with weights softmax(logits [..., K]); the components have an axis K: [..., K, A].

    Actions [..., A]. A draw picks a component, so it has gradient to that one alone and none to the weights.
    """

    logits: Tensor
    components: Gaussian | SquashedGaussian

    def log_prob(self, action: Tensor) -> Tensor:
        """[...]"""
        return torch.logsumexp(self.logits.log_softmax(-1) + self.components.log_prob(action.unsqueeze(-2)), -1)

    def entropy(self) -> Tensor:
        """Raises UsageError: it has no closed form."""
        raise UsageError(
            "the entropy of a mixture has no closed form. Set the entropy's coefficient to 0, or estimate it by -log_prob of draws."
        )

    @classmethod
    def of(cls, distribution: Any) -> "Mixture":
        """A mixture as it is; a Gaussian, squashed or not, as a mixture of one."""
        if isinstance(distribution, cls):
            return distribution
        mean = distribution.mean.unsqueeze(-2)
        return cls(mean.new_zeros(mean.shape[:-1]), type(distribution)(mean, distribution.log_std.unsqueeze(-2)))

    def draw_each(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """An action of every component [..., K, A] with its log-prob under that component alone [..., K], both with gradient."""
        return self.components.draw_with_log_prob(self.components.noise(generator))

    def draw_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action [..., A] and its log-prob under the whole mixture [...]."""
        gumbel, normal = noise.tensor_split([self.logits.shape[-1]], -1)
        chosen = Categorical(self.logits).draw(gumbel)
        squashed = isinstance(self.components, SquashedGaussian)
        base = self.components.base if isinstance(self.components, SquashedGaussian) else self.components
        u = self._of(chosen, base.draw(normal.unsqueeze(-2)))
        density = Mixture(self.logits, base).log_prob(u)
        return (u.tanh(), density - log_slope(u).sum(-1)) if squashed else (u, density)

    def mode(self) -> Tensor:
        """The mode of the likeliest component, [..., A]."""
        return self._of(self.logits.argmax(-1), self.components.mode())

    def noise(self, generator: torch.Generator | None, count: tuple[int, ...] = ()) -> Tensor:
        """Gumbel noise of the choice, then normal noise of the action: [*count, ..., K + A]."""
        size = self.components.mean.shape[-1]
        normal = torch.randn((*count, *self.logits.shape[:-1], size), generator=generator, dtype=self.logits.dtype)
        return torch.cat([Categorical(self.logits).noise(generator, count), normal], -1)

    def draw(self, noise: Tensor) -> Tensor:
        """[..., A]"""
        gumbel, normal = noise.tensor_split([self.logits.shape[-1]], -1)
        return self._of(Categorical(self.logits).draw(gumbel), self.components.draw(normal.unsqueeze(-2)))

    def kl(self, other: "Mixture") -> Tensor:
        """Raises UsageError: it has no closed form."""
        raise UsageError(
            "the KL divergence of mixtures has no closed form. Estimate it from log-probs of draws (ratio/kl)."
        )

    @staticmethod
    def _of(chosen: Tensor, each: Tensor) -> Tensor:
        index = chosen[..., None, None].expand(*chosen.shape, 1, each.shape[-1])
        return each.gather(-2, index).squeeze(-2)
