"""Policies that act in an environment, and critics: fully connected networks, saved as safetensors and JSON."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from upslope.errors import UsageError
from upslope.parts.assignment import PairScores
from upslope.parts.network import MLP, POINTS
from upslope.policies.acting import numpy_sampler
from upslope.policies.distributions import (
    Categorical,
    Distribution,
    Gaussian,
    Mixture,
    MultiCategorical,
    Point,
    SquashedGaussian,
)
from upslope.policies.moments import Moments
from upslope.settings import converted
from upslope.tasks.spaces import ActionSpec, ObservationSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "elu": functional.elu,
}
FORMAT = "upslope control policy 1"
NETWORKS: dict[str, type[MLP]] = {"MLP": MLP, "PairScores": PairScores}


class Body(nn.Module):
    """The hidden layers: [..., D] to [..., H]."""

    def __init__(self, size: int, settings: MLP) -> None:
        super().__init__()
        widths = [size, *settings.hidden]
        self.layers = nn.ModuleList(
            _linear(wide, narrow, settings, settings.hidden_gain) for wide, narrow in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in settings.hidden if settings.layer_norm)
        self.activation, self.settings = ACTIVATIONS[settings.activation], settings
        self.width = widths[-1]
        # Reading a module's attributes costs about as much as a small product, so what `forward` needs is kept in a list.
        pairs = ((layer.weight, layer.bias) for layer in self.layers)
        self._steps: list[Any] = list(itertools.zip_longest(pairs, self.norms))

    def forward(self, x: Tensor) -> Tensor:
        activation = self.activation
        for (weight, bias), norm in self._steps:
            x = functional.linear(x, weight, bias)
            x = activation(x if norm is None else norm(x))
        return x


def _linear(wide: int, narrow: int, settings: MLP, gain: float) -> nn.Linear:
    layer = nn.Linear(wide, narrow)
    if settings.weight_init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return layer


class ControlPolicy(nn.Module):
    """pi(action | observation). Observations [..., D] float32 as an environment gives them; normalised here, if at all.

    observations, actions   what they are; `convention`: how an environment is to take the actions ("clip" or "scale")
    settings                the network's
    moments                 of the observations, where `settings.normalize`; changed by `observe` alone
    """

    def __init__(self, observations: ObservationSpec, actions: ActionSpec, settings: MLP) -> None:
        super().__init__()
        self.observations, self.actions, self.settings = observations, actions, settings
        continuous = actions.kind == "continuous"
        if not continuous and settings.components > 1:
            raise UsageError("MLP.components is of mixtures for continuous actions; these are discrete. Set it to 1.")
        size = actions.size if continuous else sum(actions.values)
        single = settings.distribution in POINTS
        states = settings.log_std == "state" and not single
        self._outputs = size if not continuous else settings.components * size * (2 if states else 1)
        if settings.components > 1:
            self._outputs += settings.components
        self.body = Body(observations.size, settings)
        self.head = _linear(self.body.width, self._outputs, settings, settings.policy_gain)
        shape = (settings.components, size) if settings.components > 1 else (size,)
        self.log_std = (
            nn.Parameter(torch.full(shape, settings.log_std_init)) if continuous and not states and not single else None
        )
        self.moments = Moments(observations.size) if settings.normalize else None
        self._shift, self._scale = torch.zeros(observations.size), torch.ones(observations.size)
        self._spread_apart()

    @property
    def convention(self) -> Literal["clip", "scale"]:
        """How an environment is to take continuous actions."""
        return "clip" if self.settings.distribution in ("gaussian", "softplus") else "scale"

    @torch.no_grad()
    def _spread_apart(self) -> None:
        """Components of a mixture that start alike would stay alike: their means start between -1 and 1."""
        count, size = self.settings.components, self.actions.size
        if count > 1:
            means = torch.linspace(-1, 1, count).repeat_interleave(size)
            self.head.bias[count : count + count * size] += means

    def normalized(self, observation: Tensor) -> Tensor:
        """[..., D] as the network sees it."""
        if self.moments is None:
            return observation
        clip = self.settings.normalize_clip
        return ((observation - self._shift) * self._scale).clamp(-clip, clip)

    def observe(self, observation: Tensor) -> None:
        """Takes observations [M, D] into the moments by which all later ones are normalised."""
        if self.moments is not None:
            self.moments.update(observation)
            self._set_scale()

    def scaling(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What is taken off observations and what they are multiplied by, each [D]; None where they are not normalised."""
        return None if self.moments is None else (self._shift.numpy(), self._scale.numpy())

    def set_moments(self, moments: Moments) -> None:
        """Normalises by a copy of these from now on."""
        if self.moments is not None:
            self.moments.load_state_dict(moments.state_dict())
            self._set_scale()

    def shift_and_scale(self) -> tuple[Tensor, Tensor]:
        """[D] each: the network sees (observation - shift) * scale, cut; 0 and 1 where nothing is normalised."""
        return self._shift, self._scale

    def _set_scale(self) -> None:
        if self.moments is not None:
            self._shift = self.moments.mean.float()
            self._scale = (self.moments.variance + 1e-8).rsqrt().float()

    def features(self, observation: Tensor) -> Tensor:
        """The last hidden layer [..., H]."""
        hidden: Tensor = self.body(self.normalized(observation))
        return hidden

    def distribution(self, observation: Tensor) -> Distribution:
        """What actions are drawn from, for observations [..., D]."""
        return self.distribution_at(self.features(observation))

    def distribution_at(self, features: Tensor) -> Distribution:
        """The same, from the last hidden layer [..., H]."""
        return self.distribution_of(functional.linear(features, self.head.weight, self.head.bias))

    def distribution_of(self, out: Tensor) -> Distribution:
        """The same, from the network's outputs [..., K]."""
        kind, settings = self.actions.kind, self.settings
        if kind == "discrete":
            return Categorical(out)
        if kind == "multi_discrete":
            return MultiCategorical(out, self.actions.values)
        count, size = settings.components, self.actions.size
        if count > 1:
            weights, out = out.tensor_split([count], -1)
            out = out.unflatten(-1, (-1, size))
            out = torch.cat(out.tensor_split([count], -2), -1) if settings.log_std == "state" else out
        if settings.distribution == "deterministic":
            return Point(out.tanh())
        if settings.distribution == "softplus":
            return Point(functional.softplus(out + 1))
        if self.log_std is None:
            mean, log_std = out.tensor_split([size], -1)
            low, high = settings.log_std_low, settings.log_std_high
            smooth = settings.log_std_bound == "tanh"
            log_std = low + 0.5 * (high - low) * (log_std.tanh() + 1) if smooth else log_std.clamp(low, high)
        else:
            mean, log_std = out, self.log_std
        if settings.distribution == "bounded":
            mean, log_std = mean.tanh(), log_std.clamp(settings.log_std_low, settings.log_std_high)
        one = SquashedGaussian(mean, log_std) if settings.distribution == "squashed" else Gaussian(mean, log_std)
        return Mixture(weights, one) if count > 1 else one

    @torch.no_grad()
    def act(
        self, observation: np.ndarray, generator: torch.Generator | None = None, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions for observations [N, D], as `Environments.step` takes them, and their log-probs [N].

        `deterministic`: the mode instead of a draw.
        """
        found = self.distribution(torch.from_numpy(np.asarray(observation, dtype=np.float32)))
        action = found.mode() if deterministic else found.draw(found.noise(generator))
        return action.numpy(), found.log_prob(action).numpy()

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """(action, state) for one observation as the environment gives it, or several [N, *shape]: the signature of
        Stable-Baselines3's `predict`. `state` and `episode_start` are of recurrent policies, and handed back as they are.

        The action is as the environment takes it: in its shape, and of a box within the bounds. Raises UsageError for an
        observation of another shape, or with a number that is not finite.
        """
        rows, several = self.observations.rows(observation)
        if not np.isfinite(rows).all():
            row, column = (int(place) for place in np.argwhere(~np.isfinite(rows))[0])
            where = f" (observation {row})" if several else ""
            raise UsageError(f"{self.observations.names[column]} is {rows[row, column]}{where}. Give finite numbers.")
        action, _ = self.act(rows, None, deterministic)
        taken = self.actions.to_environment(action, self.convention)
        return (taken if several else taken[0]), state

    def sampler(self, generator: torch.Generator, steps: int) -> Callable[[np.ndarray], np.ndarray]:
        """A function from observations [N, D] to drawn actions, for `steps` calls, whose noise is drawn at once."""
        quick = numpy_sampler(self, generator, steps)
        return self.torch_sampler(generator, steps) if quick is None else quick

    def torch_sampler(self, generator: torch.Generator, steps: int) -> Callable[[np.ndarray], np.ndarray]:
        """The same for any network and distribution."""
        noise: Tensor | None = None
        taken = 0

        @torch.no_grad()
        def draw(observation: np.ndarray) -> np.ndarray:
            nonlocal noise, taken
            found = self.distribution(torch.from_numpy(observation))
            if noise is None:
                noise = found.noise(generator, (steps,))
            taken += 1
            return found.draw(noise[taken - 1]).numpy()

        return draw

    def save(self, folder: Path) -> None:
        """Writes model.safetensors and policy.json: weights, spaces, network, moments. No pickle."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().clone() for name, value in self.state_dict().items()}  # they may share memory
        if self.moments is not None:
            tensors |= {"moments.mean": self.moments.mean, "moments.squares": self.moments.squares}
        save_file(tensors, folder / "model.safetensors")
        about = {
            "format": FORMAT,
            "observations": self.observations.to_dict(),
            "actions": self.actions.to_dict(),
            "kind": type(self.settings).__name__,
            "network": asdict(self.settings),
            "seen": self.moments.count if self.moments is not None else 0.0,
        }
        (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "ControlPolicy":
        """The policy that `save` wrote. Raises UsageError where there is none, or one of another version."""
        from safetensors.torch import load_file

        place = Path(folder)
        try:
            about = json.loads((place / "policy.json").read_text())
            tensors = load_file(place / "model.safetensors")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"there is no policy in {place}: {error}. Give a run's folder or one of its checkpoints."
            ) from None
        if about.get("format") != FORMAT:
            raise UsageError(
                f"{place / 'policy.json'} is of format {about.get('format')!r}; this version reads {FORMAT!r}."
            )
        default = NETWORKS[about.get("kind", "MLP")]()
        given = {name: converted(default, name, value) for name, value in about["network"].items()}
        observations, actions = (
            kind.from_dict(about[name]) for kind, name in ((ObservationSpec, "observations"), (ActionSpec, "actions"))
        )
        policy: ControlPolicy = type(default)(**given).build(observations, actions)
        policy.load_state(tensors, about["seen"])
        return policy

    def load_state(self, tensors: Mapping[str, Tensor], seen: float) -> None:
        """Weights and moments by name, as `save` names them; `seen` is how many observations the moments are of."""
        self.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("moments.")})
        if self.moments is not None:
            mean, squares = tensors["moments.mean"], tensors["moments.squares"]
            self.moments.load_state_dict({"count": seen, "mean": mean, "squares": squares})
            self._set_scale()


class Critic(nn.Module):
    """V(observation): of its own hidden layers, or of the policy's, where they are shared."""

    def __init__(self, policy: ControlPolicy) -> None:
        super().__init__()
        settings = policy.settings
        self.shared = settings.shared
        self.body = None if settings.shared else Body(policy.observations.size, settings)
        self.head = _linear(policy.body.width, 1, settings, settings.value_gain)
        self._policy = (policy,)  # in a tuple, so that the policy's weights are not the critic's

    def forward(self, observation: Tensor) -> Tensor:
        """[..., D] to [...]"""
        policy = self._policy[0]
        seen = policy.normalized(observation)
        return self.at(policy.body(seen) if self.body is None else self.body(seen))

    def at(self, features: Tensor) -> Tensor:
        """From the last hidden layer [..., H] to [...]."""
        return functional.linear(features, self.head.weight, self.head.bias).squeeze(-1)
