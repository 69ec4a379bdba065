"""Policy smoothing on CartPole: python benchmarks/certificate.py [--sigmas 0.2 0.5] [--runs DIR] [--out docs/results]

For every sigma: PPO on noisy observations, `upslope certify` from 10,000 episodes, and 1,000 episodes under each of eight attacks
at each budget. Whether a mean return or a probability under attack lies below what is certified is counted, not judged by eye.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from scipy.stats import beta

from upslope.report.certificate import draw_certificate

LIMIT, EPISODES, ATTACKED, STEPS = 200, 10_000, 1000, 120
BUDGETS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
TRAINING = (
    f"task_settings.max_episode_steps={LIMIT}", "rollout.environments=32", "rollout.steps=32", "lr=2e-3", "gamma=0.98", "lam=0.9",
    "eval.every=40", "eval.episodes=50", "self_checks=false", "sinks=[]",
)  # fmt: skip


def upslope(*words: str) -> None:
    """Runs a command; raises where it fails."""
    subprocess.run([sys.executable, "-m", "upslope", *words], check=True)


def measure(sigma: float, runs: Path) -> dict[str, Any]:
    """The certificate of a run with this noise, with the attacks; trained and measured where that was not done before."""
    folder = runs / f"smoothing-{sigma:g}"
    if not (folder / "certificate.json").is_file():
        settings = [word for one in (*TRAINING, f"rollout.observation_noise={sigma}") for word in ("--set", one)]
        resume = ("--resume",) if (folder / "config.yaml").is_file() else ()
        upslope(
            "train",
            "policy_smoothing",
            "--task",
            "CartPole-v1",
            "--steps",
            str(STEPS),
            "--out",
            str(folder),
            *settings,
            *resume,
        )
        budgets = [f"{step * sigma:g}" for step in BUDGETS]
        sizes = ("--episodes", str(EPISODES), "--attack-episodes", str(ATTACKED))
        upslope("certify", str(folder), *sizes, "--attack", "--budgets", *budgets)
    found: dict[str, Any] = json.loads((folder / "certificate.json").read_text())
    return found


def below(found: dict[str, Any]) -> tuple[int, int, int, int]:
    """Means under attack below the certificate, of how many; frequencies whose upper bound at 99.9 % is below it, of how many."""
    means = probabilities = counted = compared = 0
    for row in found["rows"]:
        for attack in row.get("attacks", {}).values():
            counted += 1
            means += attack["mean"] < row["mean_return"]
            for r, certified in row["probability"].items():
                n = attack["episodes"]
                k = round(attack["probability"][r] * n)
                compared += 1
                probabilities += (beta.ppf(0.999, k + 1, n - k) if k < n else 1.0) < certified
    return means, counted, probabilities, compared


def table(found: dict[str, Any]) -> list[str]:
    """A Markdown table: a row per budget."""
    thresholds = list(found["rows"][0]["probability"])
    names = list(next(row["attacks"] for row in found["rows"] if row.get("attacks")))
    head = [
        "budget",
        "certified return",
        *names,
        *(f"certified P(R >= {r})" for r in thresholds),
        f"least P(R >= {thresholds[-1]})",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found["rows"]:
        attacks = row.get("attacks", {})
        cells = [f"{row['budget']:g}", f"**{row['mean_return']:.1f}**"]
        cells += [f"{a['mean']:.1f} [{a['low']:.1f}, {a['high']:.1f}]" for a in attacks.values()] or [""] * len(names)
        cells += [f"{p:.3f}" for p in row["probability"].values()]
        least = [a["probability"][thresholds[-1]] for a in attacks.values()]
        lines.append("| " + " | ".join([*cells, f"{min(least):.3f}" if least else ""]) + " |")
    return lines


def page(found: list[dict[str, Any]]) -> str:
    """docs/results/certificate.md."""
    counts = np.array([below(one) for one in found]).sum(0)
    spent = max(
        a["spent"] / row["budget"] for one in found for row in one["rows"] for a in row.get("attacks", {}).values()
    )
    parts = [TITLE.format(episodes=EPISODES, attacked=ATTACKED, limit=LIMIT, actions=STEPS * 1024)]
    for one in found:
        parts += [f"\n## Noise {one['sigma']:g}\n"]
        parts += [
            f"Without an adversary {one['clean_return']:.1f} +- {one['clean_error']:.1f} of {LIMIT}.\n",
            *table(one),
        ]
        parts += [f"\n![certified return and return under attack over the budget](certificate_{one['sigma']:g}.svg)"]
    episodes = counts[1] * ATTACKED
    parts += [
        READING.format(
            episodes=episodes, spent=spent, low=counts[0], means=counts[1], lower=counts[2], shares=counts[3]
        )
    ]
    return "\n".join(parts)


TITLE = """# Policy smoothing: certificate and attacks

PPO learns CartPole-v1 (at most {limit} steps) from {actions:,} actions, with fresh Gaussian noise on each number of every
observation. `upslope certify` bounds what it earns when an adversary adds to the observations, from {episodes:,} episodes without
one, at 95 % confidence. Then attacks are played, {attacked:,} episodes each: mean return with its bootstrap interval.

`python benchmarks/certificate.py`; the budget is the l2 norm of all that is added over an episode. The attacks know the policy and
the noise's distribution: `random` directions; along the policy's gradient `uniform`ly, `early` in ten steps, all at `once` when the
policy is sure of its choice, evenly toward the `left` and the `right` action; `learned`, linear in the state, from returns and
noise of 10,000 episodes; `timed`, the worst of 18 such in 100 episodes of its own."""
READING = """
## Reading

Of {means} mean returns under attack ({episodes:,} episodes, none of which spent more than {spent:.6f} of its budget), {low} lie
below the certified one. What is certified is the expected return and, for each threshold, the probability of reaching it; a single
episode may earn less than the certified mean, as it may without an adversary. Of {shares} frequencies of reaching a threshold under
attack, {lower} are below the certified probability by more than chance (an upper bound at 99.9 %).

One training run for each noise. The bound says something at every budget here. Attacks that push one way at many steps hurt most:
`learned`, and `timed`, which chose fifty strikes from the beginning on at every budget. None comes near the bound, which holds for
any attack. Noise is not free: more of it is a policy that earns less to begin with.
"""


def main() -> None:
    """Measures what is missing and writes the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--runs", type=Path, default=Path("runs/certificate"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    found = [measure(sigma, given.runs) for sigma in given.sigmas]
    for one in found:
        picture = ET.tostring(draw_certificate(one), encoding="unicode")
        (given.out / f"certificate_{one['sigma']:g}.svg").write_text(picture + "\n")
    (given.out / "certificate.md").write_text(page(found))
    print(f"written: {given.out / 'certificate.md'}")


if __name__ == "__main__":
    main()
