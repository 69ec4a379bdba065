"""`upslope diagnose data LOG`: returns, ends, TQ and SACo of a log, and what a run's policy would earn by it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.cli.settings import numbers_of
from upslope.errors import UsageError

if TYPE_CHECKING:
    from upslope.actor_critic.log import Log

SETTINGS: dict[str, float | int | None] = {
    "random_return": None,
    "best_return": None,
    "bins": 100,
    "discount": 0.99,
    "fqe_steps": 10_000,
}


def examine(
    path: str, reference: str | None, policy: str | None, seed: int, overrides: tuple[str, ...]
) -> dict[str, Any]:
    """The facts of a log, by name; those that nothing is known of are left out. Raises UsageError naming what is wrong."""
    from upslope.actor_critic.log import open_log
    from upslope.diagnostics.logged import positive_sided_variance

    settings = numbers_of(overrides, SETTINGS, "diagnose data")
    log = open_log(path, None, strict=False)
    returns, last = log.returns(), np.flatnonzero(log.last)
    lengths = np.diff(last, prepend=-1)
    found: dict[str, Any] = {"log": path, "task": log.task, "transitions": len(log), "episodes": len(returns)}
    found |= {"observation_size": int(log.observation.shape[1]), "action_size": int(log.action.shape[1])}
    found |= {f"return_{name}": float(np.quantile(returns, q)) for name, q in QUANTILES.items()}
    found |= {"return_mean": float(returns.mean()), "length_mean": float(lengths.mean())}
    found["return_psv"] = positive_sided_variance(returns)
    found["terminated"] = int((log.terminated > 0).sum())
    found["notes"] = list(log.notes)
    _quality(found, log, settings)
    if reference is not None:
        _coverage(found, log, open_log(reference, None, strict=False), reference, settings["bins"], seed)
    if policy is not None:
        _estimate(found, log, policy, settings, seed)
    return found


QUANTILES = {"least": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "most": 1.0}


def _quality(found: dict[str, Any], log: "Log", settings: dict[str, Any]) -> None:
    from upslope.diagnostics.logged import trajectory_quality

    known = log.references or (None, None)
    low, high = (
        own if own is not None else there
        for own, there in zip((settings["random_return"], settings["best_return"]), known, strict=True)
    )
    if low is not None and high is not None:
        found |= {"random_return": low, "best_return": high}
        found["tq"] = trajectory_quality(log.returns(), low, high)


def _coverage(found: dict[str, Any], log: "Log", other: "Log", name: str, bins: int, seed: int) -> None:
    """SACo of as many transitions of either, drawn where one has more."""
    from upslope.diagnostics.logged import state_action_coverage

    count = min(len(log), len(other))
    generator = np.random.default_rng(seed)
    mine, theirs = (
        np.arange(count) if len(one) == count else np.sort(generator.choice(len(one), count, replace=False))
        for one in (log, other)
    )
    found |= {"reference": name, "reference_transitions": len(other), "compared": count}
    found["saco"] = state_action_coverage(
        log.observation[mine], log.action[mine], other.observation[theirs], other.action[theirs], bins
    )


def _estimate(found: dict[str, Any], log: "Log", name: str, settings: dict[str, Any], seed: int) -> None:
    from upslope.cli.returns import policy_folder
    from upslope.diagnostics.fitted import FitSettings
    from upslope.diagnostics.policy_value import check_fits, estimates
    from upslope.policies.control import ControlPolicy
    from upslope.threads import use_threads

    folder = policy_folder(name)
    if folder is None:
        raise UsageError(f"diagnose data: {name} is no run or checkpoint of a policy that acts in an environment.")
    use_threads(1)
    policy = ControlPolicy.load(folder)
    check_fits(policy, log, name, found["log"])
    fit = FitSettings(steps=settings["fqe_steps"], discount=settings["discount"], seed=seed)
    value = estimates(policy, log, fit, deterministic=True)
    found |= {"policy": name, **{key: value[key] for key in ("discount", "fqe", "fqe_drift", "logged_discounted")}}


def tell(found: dict[str, Any], as_json: bool) -> None:
    """Prints what `examine` found."""
    if as_json:
        print(json.dumps(found))
        return
    of = f" of {found['task']}" if found["task"] else ""
    print(f"{found['log']}: {found['transitions']:,} transitions in {found['episodes']:,} episodes{of}")
    print(f"observations of {found['observation_size']} numbers, actions of {found['action_size']}")
    for note in found["notes"]:
        print(note)
    quantiles = ", ".join(f"{found[f'return_{name}']:.4g}" for name in QUANTILES)
    print(f"return  mean {found['return_mean']:.4g}; least, quarter, median, three quarters, most: {quantiles}")
    print(
        f"PSV     {found['return_psv']:.4g}  (mean square of what returns are above the mean: what selection=harness_tw lives off)"
    )
    ended = found["terminated"]
    print(f"length  mean {found['length_mean']:.4g}; {ended} episodes ended, {found['episodes'] - ended} were cut")
    if "tq" in found:
        print(
            f"TQ      {found['tq']:.3f}  (0: random actions, {found['random_return']:.4g}; 1: the best, {found['best_return']:.4g})"
        )
    else:
        print("TQ      unknown: give --set random_return=NUMBER --set best_return=NUMBER")
    if "saco" in found:
        print(
            f"SACo    {found['saco']:.3f}  (cells seen, over those of {found['reference']}; {found['compared']:,} transitions each)"
        )
    if "fqe" in found:
        what = f"discounted by {found['discount']:g}, from the log's first states, without a time limit"
        print(f"FQE     {found['fqe']:.4g}  ({Path(found['policy'])}: {what})")
        drift = f"it moved by {found['fqe_drift']:.2g} over the last tenth of the fit"
        print(f"        {drift}; the log's own return, discounted: {found['logged_discounted']:.4g}")
