"""Bandits: python benchmarks/bandits.py [--seeds 5] [--runs runs/bandits] [--out docs/results]

What samples of one's own, and what pushing bad ones down, are worth; on policies that are tables of logits, so that rewards, win
rates and KL are exact. Losses are those of the library's recipes. Takes some minutes, and goes on where it was stopped.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from arms import Values, table, write_figure
from readings import READINGS

from upslope import make
from upslope.diagnostics.bandit import LEARNERS, PeakBandit, learn
from upslope.diagnostics.online_offline import (
    Trajectory,
    fitted_rewards,
    follow,
    fresh,
    judged,
    pair_accuracy,
    preference,
    stored,
)
from upslope.exact import ExactLab

STEPS, LR = 150, 0.1
BANDITS = {
    "ten arms in a row, peak far from the reference": PeakBandit(70, length=10),
    "ten arms in a row, peak at the reference": PeakBandit(20, length=10),
    "one arm, peak far from the reference": PeakBandit(70),
    "one arm, peak at the reference": PeakBandit(20),
}
FAR = next(iter(BANDITS))
AXES = {
    "new samples every step": (1, 1),
    "every 10 steps": (10, 1),
    "every 50 steps": (50, 1),
    "the reference's only": (STEPS, 1),
    "every 50 steps, each used 10 times": (50, 10),
}
ALONG = ("best_of_n", "reinforce", "rloo", "dpo")
CURVES = {
    "rloo": ("rloo", 1), "dpo": ("dpo", 1), "reinforce": ("reinforce", 1), "best_of_n": ("best_of_n", 1),
    "rloo, reference's samples": ("rloo", STEPS), "dpo, reference's samples": ("dpo", STEPS),
    "best_of_n, reference's samples": ("best_of_n", STEPS),
}  # fmt: skip

BETAS, BUDGETS, SHOWN_BETA = (0.05, 0.1, 0.3, 1.0), (0.5, 1.0, 2.0), 0.1
PAIRS, FEW, MANY, PAIR_STEPS = 64, 128, 2000, 300
ARMS = ("online", "online, fitted judge", "online's pairs, shuffled", f"offline, {FEW} pairs", f"offline, {MANY} pairs")


class Kept:
    """Results by name in one JSON file: what is there is not computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, compute: Callable[[], dict]) -> dict:
        if name not in self.found:
            print(name, flush=True)
            self.found[name] = compute()
            self.path.write_text(json.dumps(self.found))
        return self.found[name]


def learned(kept: Kept, bandit: PeakBandit, name: str, seed: int, refresh: int | None = None, reuse: int = 1) -> dict:
    """Reward and KL of a learner after every step."""
    refresh = refresh or LEARNERS[name].refresh

    def compute() -> dict:
        found = learn(bandit, name, steps=STEPS, seed=seed, lr=LR, refresh=refresh, reuse=reuse)
        return {"reward": found.reward.tolist(), "kl": found.kl.tolist()}

    return kept(f"{asdict(bandit)} {name} seed {seed} refresh {refresh} reuse {reuse}", compute)


def figures(found: dict) -> list[float]:
    return [found["reward"][50], found["reward"][STEPS], found["kl"][STEPS]]


def bandit_section(kept: Kept, seeds: int) -> list[str]:
    lines = [
        "## Who moves to where the reward is",
        "",
        f"100 arms, 100 samples per gradient step, {STEPS} steps, Adam at {LR} on the logits for every method; {seeds} seeds,",
        "interquartile mean [95 % interval], differences paired by seed. The reference has its median at arm 20 and heavy tails.",
        "",
        "| method | loss | lowers anything |",
        "|---|---|---|",
        *(f"| `{name}` | {one.what} | {'yes' if one.lowers else 'no'} |" for name, one in LEARNERS.items()),
    ]
    for title, bandit in BANDITS.items():
        values = {n: {seed: figures(learned(kept, bandit, n, seed)) for seed in range(seeds)} for n in LEARNERS}
        lines += ["", f"### {title.capitalize()}", ""]
        lines += table(list(LEARNERS), values, ("reward after 50 steps", f"reward after {STEPS}", f"KL after {STEPS}"))
    lines += ["", "![Reward over gradient steps, peak far from the reference](bandits.svg)", ""]
    lines += ["## Fresh, stale and reused samples", "", f"{FAR.capitalize()}; the same number of gradient steps."]
    for name in ALONG:
        values = {
            label: {seed: figures(learned(kept, BANDITS[FAR], name, seed, *axis)) for seed in range(seeds)}
            for label, axis in AXES.items()
        }
        columns = (f"reward after {STEPS}", "reward after 50 steps", f"KL after {STEPS}")
        ordered: Values = {
            label: {s: [v[1], v[0], v[2]] for s, v in by_seed.items()} for label, by_seed in values.items()
        }
        lines += ["", f"### {name}", "", *table(list(AXES), ordered, columns)]
    return lines


def protocol(seed: int) -> dict:
    """Every arm at every beta: points on the way, and the accuracy on held-out pairs of the reference."""
    draw = torch.Generator().manual_seed(1000 + seed)
    rewards = 2 * torch.randn(8**3, generator=draw, dtype=torch.float64)
    lab = ExactLab(vocabulary=8, horizon=3, seed=seed, spread=1.5, reward=rewards)
    golden = preference(lab)
    few, many = (
        [judged(fresh(lab, size, seed=seed + 50, theta=lab.theta)(0, lab.theta), golden, draw)] for size in (FEW, MANY)
    )
    held_out = [fresh(lab, 2000, seed=seed + 70, theta=lab.theta)(0, lab.theta)]
    fitted = preference(lab, fitted_rewards(lab, few))
    found: dict = {}
    for beta in BETAS:
        recipe = make("dpo", beta=beta)

        def run(source, judge=golden, recipe=recipe) -> Trajectory:
            return follow(lab, recipe, source, steps=PAIR_STEPS, judge=judge, hard=seed)

        online = run(fresh(lab, PAIRS, seed=seed))
        runs = {
            "online": online,
            "online, fitted judge": run(fresh(lab, PAIRS, seed=seed), fitted),
            "online's pairs, shuffled": run(stored(online.draws, PAIRS, seed=seed)),
            ARMS[3]: run(stored(few, PAIRS, seed=seed)),
            ARMS[4]: run(stored(many, PAIRS, seed=seed)),
        }
        for arm, one in runs.items():
            points = [(point.kl, point.win_rate) for point in one.points[1:]]
            accuracy = pair_accuracy(lab, one.theta, lab.theta, held_out)
            found.setdefault(arm, {})[str(beta)] = {"points": points, "pair_accuracy": accuracy}
    return found


def within(of_arm: dict, budget: float) -> float:
    """The best win rate at any beta and step with at most `budget` nats."""
    wins = [win for one in of_arm.values() for kl, win in one["points"] if kl <= budget]
    return max(wins, default=float("nan"))


def pair_section(kept: Kept, seeds: int) -> list[str]:
    found = [kept(f"protocol seed {seed}", lambda seed=seed: protocol(seed)) for seed in range(seeds)]
    frontier = {arm: {s: [within(one[arm], b) for b in BUDGETS[::-1]] for s, one in enumerate(found)} for arm in ARMS}

    def end(of_arm: dict) -> list[float]:
        one = of_arm[str(SHOWN_BETA)]
        kl, win = one["points"][-1]
        return [win, one["pair_accuracy"], kl]

    ends = {arm: {s: end(one[arm]) for s, one in enumerate(found)} for arm in ARMS}
    return [
        "## Online against offline",
        "",
        f"512 sequences of 3 tokens, random rewards; DPO, {PAIRS} pairs a step, {PAIR_STEPS} steps, labels drawn from the golden",
        f"judge. Offline: pairs of the reference's samples. Fitted judge: a reward per sequence, fitted to {FEW} of those pairs",
        "(`reward_model_bt`). Shuffled: the pairs that the online run drew, with their labels, in random order; in their own order",
        "they are the online run, bit for bit (tests/diagnostics/test_online_offline.py).",
        "",
        f"Best golden win rate against the reference within a KL budget, over beta in {', '.join(map(str, BETAS))} and all steps:",
        "",
        *table(ARMS, frontier, [f"within {budget:g} nats" for budget in BUDGETS[::-1]]),
        "",
        f"At the end, beta {SHOWN_BETA:g}, with the share of 2,000 held-out pairs of the reference's samples that the implicit",
        "reward orders rightly:",
        "",
        *table(ARMS, ends, ("win rate", "pair accuracy", "KL")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/bandits"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    kept = Kept(arguments.runs / "results.json")
    lines = ["# Bandits", "", (__doc__ or "").partition("\n\n")[2].strip(), ""]
    lines += bandit_section(kept, arguments.seeds)
    curves = {
        label: [
            list(enumerate(learned(kept, BANDITS[FAR], name, seed, refresh)["reward"]))[::10]
            for seed in range(arguments.seeds)
        ]
        for label, (name, refresh) in CURVES.items()
    }
    lines += ["", *pair_section(kept, arguments.seeds)]
    if "bandits" in READINGS:
        lines += ["", "## Reading", "", READINGS["bandits"]]
    (arguments.out / "bandits.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    title = FAR.capitalize()
    write_figure(curves, arguments.out / "bandits.svg", x="gradient step", y="expected reward", title=title)


if __name__ == "__main__":
    main()
