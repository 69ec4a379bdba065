"""upslope certify RUN [--sigma S] [--episodes N] [--budgets B ...] [--attack]"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from upslope.cli.returns import policy_folder
from upslope.cli.train import Flag
from upslope.errors import UsageError

if TYPE_CHECKING:
    from upslope.control.certifying import Bounds, Smoothed

STEPS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)  # budgets over sigma, where none are given


def command(
    run: tyro.conf.Positional[str],
    *,
    sigma: float | None = None,
    episodes: int = 10_000,
    budgets: tuple[float, ...] = (),
    alpha: float = 0.05,
    thresholds: tuple[float, ...] = (),
    lowest: float | None = None,
    highest: float | None = None,
    attack: Flag = False,
    attack_episodes: int = 1000,
    seed: int = 0,
    out: Path | None = None,
    as_json: Annotated[Flag, tyro.conf.arg(name="json")] = False,
) -> None:
    """What a policy with noise on its observations earns at least, whatever an adversary adds to them within a budget.

    The budget is the l2 norm of all that is added over an episode, in the units of the observations; the adversary may adapt to
    everything but the noise to come. Bounds hold with confidence 1 - alpha, for the policy with its noise. Writes certificate.json
    and certificate.svg into the run's folder.

    Examples:
      upslope train policy_smoothing --task CartPole-v1 --set task_settings.max_episode_steps=200 --out runs/smooth
      upslope certify runs/smooth
      upslope certify runs/smooth --budgets 0 0.1 0.2 --attack

    Args:
        run: a run's folder (its newest checkpoint), or a checkpoint.
        sigma: standard deviation of the noise; the one that the run was trained with where not given.
        episodes: played without an adversary; the more, the tighter.
        budgets: 0 to twice sigma where not given.
        alpha: the chance of a bound that does not hold.
        thresholds: returns r, for P(return >= r), each at 1 - alpha; half, nine tenths and all of the highest where not given.
        lowest: a number that no return can be below, whatever the actions; 0 where not given and nothing below was seen.
        highest: of returns in whole numbers, a number up to which they count; the time limit above the lowest where not given.
        attack: also play under attacks within each budget, for the return that is left.
        attack_episodes: of each attack and budget.
        seed: of starts, noise and attacks.
        out: another folder for the two files.
        as_json: print certificate.json instead of the table.
    """
    from upslope.control.certifying import Bounds

    if attack and attack_episodes < 2:
        raise UsageError(f"certify: --attack-episodes is {attack_episodes}; at least 2 are needed.")
    bounds = Bounds(lowest, highest, thresholds or None, alpha)
    found, place = _found(run, sigma, budgets, episodes, attack_episodes if attack else 0, bounds, seed, quiet=as_json)
    written = _write(found, out or place)
    for line in [json.dumps(found)] if as_json else [*told(found), *written]:
        print(line)


def _found(
    run: str,
    sigma: float | None,
    budgets: tuple[float, ...],
    episodes: int,
    attack_episodes: int,
    bounds: "Bounds",
    seed: int,
    *,
    quiet: bool,
) -> tuple[dict[str, Any], Path]:
    """What certificate.json says, and the run's folder."""
    from upslope.runs.checkpoint import run_of

    folder = policy_folder(run)
    if folder is None:
        raise UsageError(
            f"certify: there is no policy for an environment in {run}. Give the folder of a run of ppo, sac or the like."
        )
    smoothed, notes = opened(folder, run, sigma, seed)
    given = tuple(dict.fromkeys(budgets or (round(step * smoothed.sigma, 10) for step in STEPS)))
    for budget in given:
        if not 0 <= budget < float("inf"):
            raise UsageError(f"certify: --budgets has {budget:g}; a budget is an l2 norm, at least 0.")
    found = measured(smoothed, episodes, given, bounds, attack_episodes, quiet=quiet)
    return {"run": run, **found, "notes": [*notes, *found["notes"]]}, run_of(folder) or folder


def opened(folder: Path, name: str, sigma: float | None, seed: int = 0) -> "tuple[Smoothed, list[str]]":
    """A saved policy with its noise and environment, and warnings. Raises UsageError where one of them is not known."""
    from upslope.config import read_config
    from upslope.control.certifying import Smoothed, trained_noise
    from upslope.policies.control import ControlPolicy
    from upslope.runs.checkpoint import run_of
    from upslope.tasks.of_run import with_task
    from upslope.threads import use_threads

    use_threads(1)
    place = run_of(folder)
    if place is None:
        raise UsageError(f"certify: {name} is no run's folder, or a checkpoint in one: nothing says what it plays.")
    values = with_task(read_config(place / "config.yaml"))
    if values.get("task") is None:
        raise UsageError(f"certify: {name} learned from a log alone, and nothing says what it plays.")
    trained = trained_noise(values)
    notes = []
    if sigma is None:
        if not trained:
            raise UsageError(
                f"certify: {name} was trained without noise on its observations. Train it with --set "
                "rollout.observation_noise=0.2, or give the noise that it is to play with: --sigma 0.2."
            )
        sigma = trained
    elif sigma != trained:
        notes.append(
            f"it was trained with noise {trained:g} and plays with {sigma:g}: its return is likely to be lower"
        )
    if not 0 < sigma < float("inf"):
        raise UsageError(f"certify: --sigma is {sigma:g}; it is a standard deviation, above 0.")
    deterministic = bool(values.get("eval", {}).get("deterministic", True))
    policy = ControlPolicy.load(folder)
    return Smoothed(policy, sigma, values["task"], values.get("task_settings", {}), deterministic, seed), notes


def measured(
    smoothed: "Smoothed",
    episodes: int,
    budgets: tuple[float, ...],
    bounds: "Bounds",
    attack_episodes: int,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Facts and a row per budget, as certificate.json has them."""
    from upslope.control.certifying import adversaries, attacked, certified

    certificate, thresholds, first, notes = certified(smoothed, episodes, bounds)
    fixed = adversaries(smoothed, episodes, first) if attack_episodes and any(budgets) else {}
    rows = []
    for budget in budgets:
        row: dict[str, Any] = {
            "budget": budget,
            "mean_return": certificate.expected_return(budget),
            "probability": {f"{r:g}": certificate.probability(r, budget) for r in thresholds},
        }
        if attack_episodes and budget:
            say = (lambda line: None) if quiet else (lambda line: print(f"  {line}", flush=True))
            found = attacked(smoothed, budget, attack_episodes, first, fixed, say)
            for one in found.values():
                returns = one.pop("returns")
                one["probability"] = {f"{r:g}": float((returns >= r).mean()) for r in thresholds}
            row["attacks"] = found
        rows.append(row)
    clean = certificate.clean
    vacuous = [
        row["budget"] for row in rows if row["mean_return"] - certificate.lowest < 0.01 * (clean - certificate.lowest)
    ]
    if vacuous:
        listed = ", ".join(f"{budget:g}" for budget in vacuous)
        notes.append(
            f"the bound says nothing at budget {listed}: more episodes, more noise in training, or smaller budgets"
        )
    return {
        "task": smoothed.task,
        "sigma": smoothed.sigma,
        "episodes": episodes,
        "alpha": certificate.alpha,
        "deterministic": smoothed.deterministic,
        "clean_return": clean,
        "clean_error": certificate.error,
        "lowest": certificate.lowest,
        "band": certificate.band,
        "thresholds": len(certificate.values),
        "rows": rows,
        "notes": notes,
    }


def told(found: dict[str, Any]) -> list[str]:
    """The facts, the table and what its columns mean, as lines."""
    how = "its likeliest actions" if found["deterministic"] else "drawn actions"
    rows, confidence = found["rows"], 1 - found["alpha"]
    struck = [row["attacks"] for row in rows if row.get("attacks")]
    names = list(struck[0]) if struck else []
    played = struck[0][names[0]]["episodes"] if struck else 0
    head = ["budget", "certified return", *(f"P(return >= {r})" for r in rows[0]["probability"]), *names]
    cells = [head]
    for row in rows:
        cell = [f"{row['budget']:g}", f"{row['mean_return']:.2f}", *(f"{p:.4f}" for p in row["probability"].values())]
        cells.append(cell + [f"{row['attacks'][name]['mean']:.2f}" if row.get("attacks") else "" for name in names])
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    table = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    band = "by Clopper-Pearson at each whole number" if found["band"] == "clopper-pearson" else "by the DKW band"
    clean = f"mean return {found['clean_return']:.2f} +- {found['clean_error']:.2f}"
    lines = [
        f"{found['run']} in {found['task']} with noise {found['sigma']:g} on its observations, {how}",
        f"{clean} over {found['episodes']} episodes without an adversary",
        *(f"note: {note}" for note in found["notes"]),
        "",
        *table,
        "",
        "budget: l2 norm of all that an adversary adds to the observations of an episode, in their units",
        f"certified: the expected return, {band}, and each probability: at least this with confidence {confidence:.0%}",
    ]
    if names:
        lines.append(
            f"{', '.join(names)}: the mean return of {played} episodes under that attack; others may be stronger"
        )
    return lines


def _write(found: dict[str, Any], place: Path) -> list[str]:
    from upslope.report.certificate import write_certificate
    from upslope.runs.files import write_atomic

    place.mkdir(parents=True, exist_ok=True)
    write_atomic(place / "certificate.json", json.dumps(found, indent=2) + "\n")
    write_certificate(found, place / "certificate.svg")
    return ["", f"written: {place / 'certificate.json'}, {place / 'certificate.svg'}"]
