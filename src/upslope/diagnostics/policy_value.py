"""What a policy would earn, by a log of others' episodes: every estimator of off_policy.py, and FQE.

The policy draws its actions. FQE and the model of DR are fitted to the log's transitions; the others weight the log's episodes by
the ratio of the policy's density to the behavior's, which the log must have (infos/behavior_logp).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from upslope.diagnostics.fitted import FitSettings, fitted_value
from upslope.diagnostics.off_policy import (
    cumulative_log_weights,
    doubly_robust,
    effective_sample_size,
    ips,
    per_decision,
    weighted_doubly_robust,
    weighted_per_decision,
    wis,
)
from upslope.errors import UsageError
from upslope.offline.densities import EDGE, policy_logp
from upslope.policies.control import ControlPolicy
from upslope.runs.statistics import bootstrap, mean

if TYPE_CHECKING:
    from upslope.actor_critic.log import Log

DRAWS = 16  # actions of the policy over which V = E Q(s, .) is a mean
BEYOND = 0.01  # share of a policy's actions on the bounds of the box that is put up with
ROWS = 8192  # transitions of a pass
STARTS = 1024  # first states, at least, over which FQE's estimate is followed while it is fitted


@dataclass(frozen=True)
class Act:
    """A policy in the units of a log: one-hot for discrete actions, [-1, 1] for those of a box."""

    policy: ControlPolicy
    generator: torch.Generator

    def draw(self, observation: Tensor) -> Tensor:
        """Drawn actions [n, A] of observations [n, O]."""
        action, _ = self.policy.act(observation.numpy(), self.generator)
        return self.coded(torch.from_numpy(np.asarray(action)))

    def likeliest(self, observation: Tensor) -> Tensor:
        """The modes [n, A]."""
        action, _ = self.policy.act(observation.numpy(), None, True)
        return self.coded(torch.from_numpy(np.asarray(action)))

    def coded(self, action: Tensor) -> Tensor:
        """Actions of the policy as FQE sees them, [n, A] float32."""
        spec = self.policy.actions
        if spec.kind == "discrete":
            return torch.nn.functional.one_hot(action.long().reshape(-1), spec.values[0]).float()
        low, high = spec.box
        taken = spec.to_environment(action.numpy(), self.policy.convention).reshape(len(action), -1)
        return torch.from_numpy(((taken - low) / (high - low) * 2 - 1).astype(np.float32))

    @torch.no_grad()
    def expected(self, q: Callable[[Tensor, Tensor], Tensor], observation: Tensor) -> Tensor:
        """V [n] = E over the policy of Q(s, .): exact for discrete actions, else the mean of 16 draws."""
        spec = self.policy.actions
        if spec.kind == "discrete":
            found = self.policy.distribution(observation)
            choices = range(spec.values[0])
            each = [torch.full((len(observation),), choice) for choice in choices]
            return torch.stack([found.log_prob(one).exp() * q(observation, self.coded(one)) for one in each]).sum(0)
        return torch.stack([q(observation, self.draw(observation)) for _ in range(DRAWS)]).mean(0)


def check_fits(policy: ControlPolicy, log: "Log", name: str, path: str) -> None:
    """Raises UsageError where a policy's observations or actions are not a log's, or the log has no rewards."""
    spec = policy.actions
    if spec.kind == "multi_discrete" or (spec.kind == "continuous" and not spec.bounded):
        raise UsageError(f"the actions of {name} are {spec.kind} without finite bounds or one choice, as a log's here.")
    if not log.rewarded:
        raise UsageError(f"the log {path} has no rewards, so nothing can be estimated from it.")
    sizes, there = (policy.observations.size, spec.size), (log.observation.shape[1], log.action.shape[1])
    if sizes != there:
        raise UsageError(
            f"{name} sees {sizes[0]} numbers and acts in {sizes[1]}, the log has {there[0]} and {there[1]}. They are of different "
            "environments."
        )
    if spec.kind == "discrete" and not np.isin(log.action[:, 0] - spec.start[0], np.arange(spec.values[0])).all():
        raise UsageError(f"the log {path} has actions that are not one of the {spec.values[0]} of {name}.")


def estimates(
    policy: ControlPolicy, log: "Log", fit: FitSettings, *, clip: float | None = None, deterministic: bool = False
) -> dict[str, Any]:
    """Estimates of the discounted return by name: fqe, fqe_drift, and where the log has log-probs ips, wis, pdis, wpdis, dr, wdr
    (ips, pdis and dr with _low and _high, 95% over episodes), and ess, of `episodes`.

    clip            a bound of each ratio
    deterministic   FQE alone, of the policy's likeliest actions
    `why_not` says why a log gives FQE alone. Raises UsageError where the fit diverges.
    """
    act = Act(policy, torch.Generator().manual_seed(fit.seed))
    choice = policy.actions.kind == "discrete"
    number = (log.action[:, 0] - policy.actions.start[0]).astype(np.int64) if choice else log.action
    seen, following = _tensor(log.observation), _tensor(log.next_observation)
    action = act.coded(torch.from_numpy(number)) if choice else _tensor(log.action)
    starts = seen[torch.from_numpy(log.first)]
    repeated = starts if deterministic else starts.repeat(-(-STARTS // len(starts)), 1)  # an action is drawn on each
    columns = (_tensor(log.reward), following, _tensor(log.terminated), repeated)
    fitted = fitted_value(seen, action, *columns, act.likeliest if deterministic else act.draw, fit)
    value = fitted.value if deterministic else float(act.expected(fitted.q, starts).double().mean())
    found: dict[str, Any] = {"fqe": value, "fqe_drift": fitted.drift, "discount": fit.discount}
    found |= {"actions": "likeliest" if deterministic else "drawn", "episodes": len(log.first)}
    found["logged_discounted"] = float(log.return_to_go(fit.discount)[log.first].mean())
    logp = None if deterministic else policy_logp(policy, log.observation, number)
    why = _why_not(log, logp, deterministic) or _why_not_covered(act, seen)
    if why:
        return {**found, "why_not": why}
    assert logp is not None
    assert log.logp is not None
    with torch.no_grad():
        runs = [slice(at, at + ROWS) for at in range(0, len(log), ROWS)]
        q = torch.cat([fitted.q(seen[run], action[run]) for run in runs])
        v = torch.cat([act.expected(fitted.q, seen[run]) for run in runs])
    return found | _weighted(log, logp - log.logp, q, v, fit.discount, clip)


def _why_not(log: "Log", logp: np.ndarray | None, deterministic: bool) -> str:
    """Why there are no importance weights; "" where there are."""
    if deterministic:
        return "the likeliest actions have no density: FQE alone"
    if log.logp is None:
        return (
            "the log has no log-probs of its actions (infos/behavior_logp), by which the other estimators weight episodes: FQE "
            "alone. `upslope data make` writes them for what it plays"
        )
    if logp is None:
        return "the policy has no density (it is deterministic): FQE alone"
    unknown = int((~np.isfinite(log.logp) | np.isnan(logp)).sum())
    if unknown:
        return (
            f"{unknown:,} of {len(log):,} actions lie on the bounds of the box, where a policy that is cut to it has no density: "
            "FQE alone. Policies that are squashed (sac) have one everywhere"
        )
    return ""


def _why_not_covered(act: Act, seen: Tensor) -> str:
    """Why the log cannot have what the policy does; "" where it may. A log without actions on the bounds says nothing of them."""
    if act.policy.actions.kind == "discrete" or act.policy.settings.distribution == "squashed":
        return ""
    drawn = act.draw(seen[torch.linspace(0, len(seen) - 1, STARTS).long()])
    share = float((drawn.abs() >= EDGE).any(1).float().mean())
    if share <= BEYOND:
        return ""
    return (
        f"{share:.0%} of the policy's actions are cut to the bounds of the box, where the log has none: FQE alone. Policies "
        "that are squashed (sac) are never cut"
    )


def _weighted(
    log: "Log", log_ratio: np.ndarray, q: Tensor, v: Tensor, discount: float, clip: float | None
) -> dict[str, float | None]:
    """All estimators that weight episodes; None for a mean whose weights no float holds."""
    starts = [*log.first.tolist(), len(log)]
    lengths = np.diff(starts)
    row, step = np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(n) for n in lengths])

    def padded(column: Tensor) -> Tensor:
        made = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.float64)
        made[torch.from_numpy(row), torch.from_numpy(step)] = column.double()
        return made

    ratio, reward = padded(torch.from_numpy(log_ratio)), padded(_tensor(log.reward))
    mask = padded(torch.ones(len(log))).bool()
    q, v = padded(q), padded(v)
    terms = {
        "ips": ips(ratio, reward, discount, mask, clip),
        "pdis": per_decision(ratio, reward, discount, mask, clip),
        "dr": doubly_robust(ratio, reward, discount, q, v, mask, clip),
    }
    found: dict[str, float | None] = {
        "wis": wis(ratio, reward, discount, mask, clip),
        "wpdis": weighted_per_decision(ratio, reward, discount, mask, clip),
        "wdr": weighted_doubly_robust(ratio, reward, discount, q, v, mask, clip),
        "ess": effective_sample_size(cumulative_log_weights(ratio, mask, clip)[:, -1]),
    }
    for name, term in terms.items():
        if not torch.isfinite(term).all():
            found[name] = None
            continue
        interval = bootstrap(term.numpy()[:, None], mean)
        found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def _tensor(column: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(column, dtype=np.float32))
