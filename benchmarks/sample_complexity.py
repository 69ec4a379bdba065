"""Sample complexity: python benchmarks/sample_complexity.py [--trajectories 50000] [--seeds 40] [--out docs/results]

How fast policy gradients with momentum close in on the best policy, in trajectories, one or two for each step: on a table of
logits whose expected reward and gradient are exact. A few minutes.
"""

import argparse
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from arms import write_figure
from readings import READINGS
from torch import nn

from upslope.exact import ExactLab
from upslope.parts.momentum import GradientMomentum, HessianMomentum, LookAhead
from upslope.registry import make

RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TUNING_SEEDS, TUNING_TRAJECTORIES, POINTS, FIRST = 8, 5000, 25, 500


def arms() -> dict[str, GradientMomentum]:
    """The recipes' own optimizer parts, and two without transport."""
    own = {name: make(name).optimizer for name in ("n_pg_igt", "harpg", "n_harpg")}
    without = {
        "policy gradient": GradientMomentum(lr_decay=0.5, eta=1.0, eta_decay=0.0, normalized=False),
        "momentum": GradientMomentum(lr_decay=1.0, eta=1.0, eta_decay=0.8),
    }
    return {**without, **own}


THEORY = {"policy gradient": "-1/3", "momentum": "-", "n_pg_igt": "-0.4", "harpg": "-0.5", "n_harpg": "-0.5"}


class Table:
    """A lab's sequences as counts: `chosen` [S, N, V] of tokens after prefixes, `visited` [S, N] of prefixes."""

    def __init__(self, lab: ExactLab) -> None:
        rows, (prefixes, vocabulary) = len(lab.words), lab.theta.shape
        self.shape = prefixes, vocabulary
        self.chosen = np.zeros((rows, prefixes, vocabulary))
        for row, t in lab.mask.nonzero().tolist():
            self.chosen[row, int(lab.prefix[row, t]), int(lab.sequences[row, t])] += 1
        self.visited, self.reward = self.chosen.sum(2), lab.rewards.numpy()
        self.flat = self.chosen.reshape(rows, -1).T

    def policy(self, theta: np.ndarray) -> np.ndarray:
        """[B, N, V] probabilities of the logits."""
        raised = np.exp(theta - theta.max(-1, keepdims=True))
        return raised / raised.sum(-1, keepdims=True)

    def probability(self, policy: np.ndarray) -> np.ndarray:
        """[B, S]"""
        return np.exp(np.log(policy.reshape(len(policy), -1) + 1e-300) @ self.flat)

    def draw(self, policy: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """One sequence each, [B]."""
        total = self.probability(policy).cumsum(1)
        return np.minimum((total < uniform[:, None] * total[:, -1:]).sum(1), len(self.reward) - 1)

    def score(self, policy: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Gradients of the sequences' log-probs, [B, N, V]."""
        return self.chosen[drawn] - self.visited[drawn][..., None] * policy

    def exact(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected reward [B] and its gradient [B, N, V]."""
        policy = self.policy(theta)
        earned = self.probability(policy) * self.reward
        gradient = np.einsum("bs,snv->bnv", earned, self.chosen) - (earned @ self.visited)[..., None] * policy
        return earned.sum(1), gradient

    def product(self, policy: np.ndarray, drawn: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """B delta of one sequence each: R (score <score, delta> + Hessian of its log-prob times delta), [B, N, V]."""
        score = self.score(policy, drawn)
        along = (score * delta).sum((1, 2), keepdims=True)
        bent = policy * (delta - (policy * delta).sum(-1, keepdims=True))
        return self.reward[drawn][:, None, None] * (score * along - self.visited[drawn][..., None] * bent)


def run(
    table: Table, part: GradientMomentum, rates: np.ndarray, trajectories: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs from uniform policies with learning rates [B]: trajectories [K] at which was looked, gaps [K, B], errors [K, B].

    The steps are MomentumLearner's, for all runs at once; `check` compares them.
    """
    cost = 2 if isinstance(part, HessianMomentum) else 1
    looks = np.unique(np.geomspace(10, trajectories, POINTS).astype(int) // cost)
    theta = np.zeros((len(rates), *table.shape))
    before, d = theta, np.zeros_like(theta)
    found = []
    for t in range(int(looks[-1]) + 1):
        if t in looks:
            value, gradient = table.exact(theta)
            found.append((t * cost, table.reward.max() - value, ((d - gradient) ** 2).sum((1, 2))))
        uniform = generator.random((3, len(rates)))
        theta, before, d = step(table, part, rates, t, theta, before, d, uniform)
    at, gaps, errors = zip(*found, strict=True)
    return np.array(at), np.array(gaps), np.array(errors)


def step(
    table: Table,
    part: GradientMomentum,
    rates: np.ndarray,
    t: int,
    theta: np.ndarray,
    before: np.ndarray,
    d: np.ndarray,
    uniform: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """theta_{t+1}, theta_t and d_t; `uniform` [3, B]: which sequence, which at the place between, and where that is."""
    eta, delta, past = part.eta_at(t), theta - before, d
    place = theta + min((1 - eta) / eta, part.look_ahead) * delta if isinstance(part, LookAhead) else theta
    policy = table.policy(place)
    drawn = table.draw(policy, uniform[0])
    gradient = table.reward[drawn][:, None, None] * table.score(policy, drawn)
    if isinstance(part, HessianMomentum) and t and eta < 1:
        share = uniform[2][:, None, None]
        between = table.policy(share * theta + (1 - share) * before)
        past = d + table.product(between, table.draw(between, uniform[1]), delta)
    d = (1 - eta) * past + eta * gradient if t else gradient
    norm = np.sqrt((d**2).sum((1, 2), keepdims=True)) + 1e-12 if part.normalized else 1.0
    return theta + (rates * part.lr_at(t) / part.lr)[:, None, None] * d / norm, theta, d


def check(lab: ExactLab, table: Table, part: GradientMomentum) -> None:
    """Thirty steps of the library's learner, by automatic differentiation, are those above. AssertionError where not."""
    generator = np.random.default_rng(0)
    part = replace(part, lr=0.3)
    parameter = nn.Parameter(torch.zeros_like(lab.theta))
    learner = part.learner()([parameter], part)
    theta = np.zeros((1, *table.shape))
    before, d = theta, np.zeros_like(theta)

    def closures(row: int):
        def scores():
            return lab.logp(parameter).sum(1)[row : row + 1]

        def weighted(w):
            phi = lab.rewards[row] * scores()
            return -(phi if w is None else phi * w).sum(), {}

        return weighted, scores

    for t in range(30):
        uniform = generator.random((3, 1))
        place = learner.place()
        policy = table.policy(place.view(1, *table.shape).numpy())
        gradient, _ = learner.gradient(closures(int(table.draw(policy, uniform[0])[0]))[0], place)
        change = None
        if isinstance(part, HessianMomentum) and t:
            share = float(uniform[2, 0])
            second = share * learner.flat + (1 - share) * learner.before
            policy = table.policy(second.view(1, *table.shape).numpy())
            change = learner.change(*closures(int(table.draw(policy, uniform[1])[0])), second)
        learner.step(gradient, change)
        theta, before, d = step(table, part, np.array([part.lr]), t, theta, before, d, uniform)
        np.testing.assert_allclose(theta[0], parameter.detach().numpy(), rtol=1e-9, atol=1e-10)


def slope(at: np.ndarray, gaps: np.ndarray, over: Callable[..., np.ndarray]) -> str:
    """Of log(mean or median gap) over log(trajectories) from FIRST on, with its 95 % bootstrap interval over runs."""
    late = at >= FIRST
    generator = np.random.default_rng(1)

    def fit(columns: np.ndarray) -> float:
        return float(np.polyfit(np.log(at[late]), np.log(over(gaps[late][:, columns], axis=1)), 1)[0])

    count = gaps.shape[1]
    drawn = [fit(generator.integers(count, size=count)) for _ in range(1000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{fit(np.arange(count)):.2f} [{low:.2f}, {high:.2f}]"


def tuned(table: Table, part: GradientMomentum) -> float:
    """The rate with the least mean gap, on runs of its own."""
    rates = np.repeat(RATES, TUNING_SEEDS)
    _, gaps, _ = run(table, part, rates, TUNING_TRAJECTORIES, np.random.default_rng(12345))
    return RATES[int(gaps[-1].reshape(len(RATES), -1).mean(1).argmin())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    started = time.process_time()
    lab = ExactLab(vocabulary=3, horizon=3)
    table = Table(lab)
    lines, courses = [], {}
    for name, part in arms().items():
        check(lab, table, part)
        rate = tuned(table, part)
        at, gaps, error = run(table, part, np.full(given.seeds, rate), given.trajectories, np.random.default_rng(0))
        courses[name] = [list(zip(np.log10(at), np.log10(gaps[:, seed]), strict=True)) for seed in range(given.seeds)]
        lines.append(
            f"| `{name}` | {rate:g} | {gaps[-1].mean():.4f} | {np.median(gaps[-1]):.6f} | {slope(at, gaps, np.mean)} | "
            f"{slope(at, gaps, np.median)} | {THEORY[name]} | "
            f"{np.median(error[len(error) // 4]):.2g} | {np.median(error[-1]):.2g} |"
        )
        print(lines[-1], flush=True)
    write(given, lines, courses)
    print(f"{time.process_time() - started:.0f} s")


def write(given: argparse.Namespace, lines: list[str], courses: dict) -> None:
    """sample_complexity.md and its figure."""
    setup = f"""A policy of one softmax table for each prefix, 3 tokens and 3 positions (27 sequences, 39 parameters), rewards
    uniform in [0, 1), all seeded; uniform to begin with. One trajectory for each step, two where Hessian products are made
    (one at the place between), no baseline, {given.seeds} runs of {given.trajectories} trajectories. Schedules are the
    recipes'; the learning rate of each arm is the best of {", ".join(f"{rate:g}" for rate in RATES)} on
    {TUNING_SEEDS} runs of {TUNING_TRAJECTORIES} trajectories that are not among those below. The script takes its steps for all
    runs at once, and first checks that 30 of them are the library's."""
    text = [
        "# Sample complexity",
        "",
        "How fast policy gradients with momentum close in on the best policy: the gap J* - J(theta) over trajectories.",
        "",
        *textwrap.wrap(" ".join(setup.split()), 128),
        "",
        "| arm | rate | mean gap at the end | median gap | slope of the mean | slope of the median | theory | error early | error "
        "at the end |",
        "|---|---|---|---|---|---|---|---|---|",
        *lines,
        "",
        f"Slope: of log(gap) over log(trajectories) from {FIRST} trajectories on, with its 95 % bootstrap interval over runs.",
        "Theory: what the sample complexities of the paper (arXiv:2302.01734) come to, eps^-2.5 for N-PG-IGT, eps^-2 for",
        "(N-)HARPG, eps^-3 for the plain gradient; bounds from above, for policies whose Fisher matrix is not degenerate, which a",
        "softmax's is. Error: the median over runs of |d - grad J|^2, a quarter along the looks and at the last.",
        "",
        "![Gap over trajectories](sample_complexity.svg)",
    ]
    if "sample_complexity" in READINGS:
        text += ["", "## Reading", "", READINGS["sample_complexity"]]
    (given.out / "sample_complexity.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    write_figure(
        courses,
        given.out / "sample_complexity.svg",
        x="trajectories, log10",
        y="gap to the best policy, log10",
        title="Sample complexity on a table of logits",
    )


if __name__ == "__main__":
    main()
