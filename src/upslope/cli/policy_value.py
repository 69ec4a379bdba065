"""`upslope eval RUN --data LOG`: what a policy would earn, by a log alone."""

import json
from pathlib import Path
from typing import Any

from upslope.cli.settings import numbers_of
from upslope.errors import UsageError

SETTINGS: dict[str, float | int | None] = {"discount": 0.99, "fqe_steps": 10_000, "ratio_clip": None}
NAMES = {
    "ips": "IPS", "wis": "WIS", "pdis": "PDIS", "wpdis": "WPDIS", "dr": "DR", "wdr": "WDR"
}  # fmt: skip
FEW = 10  # episodes: with fewer the weights are worth little


def print_estimates(folder: Path, name: str, data: str, seed: int, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Prints every estimate of the policy in `folder` by the log `data`. Raises UsageError naming what does not fit."""
    from upslope.actor_critic.log import open_log
    from upslope.diagnostics.fitted import FitSettings
    from upslope.diagnostics.policy_value import check_fits, estimates
    from upslope.policies.control import ControlPolicy
    from upslope.threads import use_threads

    deterministic, given = _deterministic(overrides)
    settings = numbers_of(given, SETTINGS, "eval --data")
    if settings["ratio_clip"] is not None and not 0 < settings["ratio_clip"] < float("inf"):
        raise UsageError(f"eval --data: ratio_clip is {settings['ratio_clip']:g}; ratios are cut at a bound above 0.")
    use_threads(1)
    policy = ControlPolicy.load(folder)
    continuous = policy.actions.kind == "continuous"
    log = open_log(data, policy.actions if continuous and policy.actions.bounded else None, strict=continuous)
    check_fits(policy, log, name, data)
    fit = FitSettings(steps=settings["fqe_steps"], discount=settings["discount"], seed=seed)
    found = estimates(policy, log, fit, clip=settings["ratio_clip"], deterministic=deterministic)
    if as_json:
        print(json.dumps({"model": name, "data": data, "transitions": len(log), **found}))
        return
    print(f"{name} by {data}: {len(log):,} transitions in {found['episodes']:,} episodes")
    print(f"returns are discounted by {found['discount']:g}; the log's own: {found['logged_discounted']:.4g}")
    for line in _lines(found):
        print(line)


def _lines(found: dict[str, Any]) -> list[str]:
    how = f"its {found['actions']} actions, without a time limit; it moved by {found['fqe_drift']:.2g} at the end of the fit"
    lines = [f"FQE    {found['fqe']:.4g}  ({how})"]
    if "why_not" in found:
        return [*lines, found["why_not"]]
    for key, name in NAMES.items():
        interval = f"  [{found[f'{key}_low']:.4g}, {found[f'{key}_high']:.4g}]" if f"{key}_low" in found else ""
        value = "beyond what a float holds" if found[key] is None else f"{found[key]:.4g}"
        lines.append(f"{name:<6} {value}{interval}")
    ess = found["ess"]
    lines.append(f"ESS    {ess:.3g} of {found['episodes']:,} episodes: what the weights are worth of the policy's own")
    if ess < FEW:
        lines.append(
            "       so few say little of this policy: weighted estimates are those of a few episodes. FQE reads every transition; "
            "--set ratio_clip=NUMBER trades variance for bias"
        )
    return lines


def _deterministic(overrides: tuple[str, ...]) -> tuple[bool, tuple[str, ...]]:
    """Whether the likeliest actions are asked for, and the other settings."""
    name = "eval.deterministic="
    chosen = [text for text in overrides if text.startswith(name)]
    if any(text.removeprefix(name) not in ("true", "false") for text in chosen):
        raise UsageError(f"eval: {chosen[-1]}; eval.deterministic is true or false.")
    others = tuple(text for text in overrides if text not in chosen)
    return bool(chosen) and chosen[-1].endswith("true"), others
