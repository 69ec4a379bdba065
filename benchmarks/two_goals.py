"""Two goals: does a mixture whose best component learns go for both of two goals that are as good, a component each?

Claim: PMOE (arXiv:2104.09122) has distinguishable components, where SAC's one Gaussian goes for one goal.

    python benchmarks/two_goals.py            # some minutes of one core; goes on where it was stopped
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import parse, write_figure

import upslope
from upslope.environments.two_goals import TwoGoals
from upslope.policies.control import ControlPolicy
from upslope.policies.distributions import Mixture
from upslope.runs.statistics import bootstrap, interquartile_mean

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", {}),
    "sac, 4 components": ("sac", {"policy.components": 4}),
    "pmoe, 4 components": ("pmoe", {}),
}
STEPS, EPISODES = 6, 100
SMALL = {
    "policy.hidden": [64, 64],
    "critic.hidden": [64, 64],
    "batch_size": 128,
    "rollout.steps": 500,
    "warmup": 500,
    "temperature.initial": 0.05,
    "temperature.lr": 1e-3,
    "update.actor_lr": 1e-3,
    "update.critic_lr": 1e-3,
}
Choose = Callable[[torch.Tensor], torch.Tensor]


def goals_of(choose: Choose, episodes: int) -> tuple[Counter[int], float]:
    """How often each goal (-1: none) was reached from the very middle, and the mean return."""
    environment, found, total = TwoGoals(spread=0.0), Counter[int](), 0.0
    for _ in range(episodes):
        seen, _ = environment.reset(seed=0)
        for _ in range(50):
            with torch.no_grad():
                action = choose(torch.from_numpy(seen).unsqueeze(0))[0].numpy()
            seen, reward, ended, _, info = environment.step(action)
            total += reward
            if ended:
                break
        found[info["goal"]] += 1
    return found, total / episodes


def bits(found: Counter[int]) -> float:
    """Entropy of the goals that were reached, in bits: 1 where both as often, 0 where one alone."""
    counts = np.array([found[0], found[1]], dtype=float)
    share = counts[counts > 0] / max(counts.sum(), 1.0)
    return float(-(share * np.log2(share)).sum()) if len(share) else 0.0


def drawn(policy: ControlPolicy, seed: int) -> Choose:
    """Actions as the policy draws them."""
    generator = torch.Generator().manual_seed(seed)

    def choose(seen: torch.Tensor) -> torch.Tensor:
        found = policy.distribution(seen)
        return found.draw(found.noise(generator))

    return choose


def alone(policy: ControlPolicy, component: int) -> Choose:
    """The mode of one component, which acts throughout."""
    return lambda seen: Mixture.of(policy.distribution(seen)).components.mode()[..., component, :]


def measured(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One arm's figures for a seed, kept in a file."""
    file = folder / f"{arm}-{seed}.json".replace(" ", "_").replace(",", "")
    if not file.exists():
        started = time.process_time()
        method, settings = ARMS[arm]
        points: list[tuple[float, float]] = []
        options: dict[str, Any] = {"threads": 1, "eval": {"episodes": 0}, "sinks": [], "self_checks": False}

        def seen(step: int, row: dict[str, Any]) -> None:
            points.append((500 * step, bits(goals_of(drawn(trainer.parts.policy, step), 20)[0])))

        with upslope.Trainer(
            method, task="upslope/TwoGoals-v0", steps=STEPS, seed=seed, on_row=seen, **options, **SMALL, **settings
        ) as trainer:
            trainer.train()
            if trainer.step < STEPS:
                sys.exit("stopped; what is finished is kept")
            policy = trainer.parts.policy
        found, total = goals_of(drawn(policy, 1000 + seed), EPISODES)
        likeliest = goals_of(lambda x: policy.distribution(x).mode(), 1)
        each = [next(iter(goals_of(alone(policy, k), 1)[0])) for k in range(policy.settings.components)]
        with torch.no_grad():
            weights = Mixture.of(policy.distribution(torch.zeros(1, 4))).logits.softmax(-1)[0].tolist()
        result = {
            "bits": bits(found),
            "reached": (found[0] + found[1]) / EPISODES,
            "return": total,
            "return of the likeliest": likeliest[1],
            "component": each,
            "weight": weights,
            "points": points,
        }
        file.write_text(json.dumps({**result, "seconds": time.process_time() - started}))
        print(f"{file.stem} {time.process_time() - started:.1f} s", file=sys.stderr, flush=True)
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row for each arm: interquartile means over seeds with intervals."""
    names = ("bits", "reached", "return", "return of the likeliest")
    heads = [
        "",
        "entropy over goals, bits",
        "reached one",
        "return",
        "return of the likeliest action",
        "components by goal",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for arm, found in runs.items():
        intervals = [bootstrap(np.array([run[name] for run in found]), interquartile_mean) for name in names]
        cells = [f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in intervals]
        components = ", ".join("".join({0: "A", 1: "B", -1: "-"}[goal] for goal in run["component"]) for run in found)
        lines.append("| " + " | ".join([arm, *cells, components]) + " |")
    return lines


READING = """\
- **Not reproduced**: SAC goes for one goal, as claimed, and so does PMOE: nearly all of its episodes end at one, and all four
  components go there when they act alone. A likely reason: once the critics find one goal better by little, the best of the four
  actions is on that side in nearly every state, and no other component gets a gradient.
- SAC with the same mixture, whose entropy and gradient are the whole mixture's, has not learned to reach a goal in 3,000 actions;
  PMOE has, in all five seeds. Its actions are noisier than SAC's: the return of drawn actions is lower, that of the likeliest not.
- Also seen: with alpha first 1, sac had not learned to reach a goal in 3,000 actions with the first two seeds. In one seed of
  5,000 actions PMOE still went for one goal, and SAC reached none any more.
- Longer runs over several seeds and other numbers of components were not tried."""


def main() -> None:
    arguments = parse(__doc__ or "", "two_goals")
    runs = {arm: [measured(arm, seed, arguments.runs) for seed in range(1, arguments.seeds + 1)] for arm in ARMS}
    question = (__doc__ or "").partition(": ")[2].partition("\n\n    python")[0]
    lines = [
        "# Two goals",
        "",
        *(question[0].upper() + question[1:]).splitlines(),
        "",
        f"`upslope/TwoGoals-v0`, {STEPS * 500:,} actions, two layers of 64, batches of 128, rates 1e-3, alpha first 0.05;",
        f"{arguments.seeds} seeds, interquartile means with 95 % bootstrap intervals. {EPISODES} episodes start from the very",
        "middle, at rest, and draw their actions. Entropy is over the two goals, of the episodes that reached one: 1 bit is both",
        "alike. The last column has a word per seed, with a letter for each component: the goal, A or B, that its mode reaches",
        "where it acts alone (- none). `python benchmarks/two_goals.py`",
        "",
        *table(runs),
        "",
        "![Entropy over goals over actions](two_goals.svg)",
        "",
        "## Reading",
        "",
        READING,
    ]
    (arguments.out / "two_goals.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_figure(
        {arm: [run["points"] for run in found] for arm, found in runs.items()},
        arguments.out / "two_goals.svg",
        x="actions",
        y="entropy over goals, bits",
        title="TwoGoals-v0, 20 episodes each",
    )


if __name__ == "__main__":
    main()
