"""What each recipe's gradient estimator does, exactly: writes docs/results/exact_lab.md.  `python benchmarks/exact_lab.py`"""

import math
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import root
from torch import Tensor

from upslope import Recipe, make
from upslope.exact import Estimate, ExactLab
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean, SequenceMean, SequenceSum, TokenMean
from upslope.parts.kl import KL, KLInReward, kl_estimate
from upslope.parts.surrogate import ClippedSequenceRatio

OUTPUT = Path(__file__).parents[1] / "docs" / "results" / "exact_lab.md"
EQUAL = ExactLab(vocabulary=3, horizon=4)  # 81 sequences of 4 tokens, rewards uniform in [0, 1)
UNEQUAL = ExactLab(vocabulary=3, horizon=3, eos=0)  # 15 sequences of 1 to 3 tokens
METHODS = (
    "reinforce", "rloo", "rloo@trl", "rloo@verl", "dr_grpo", "kimi_k15_md", "grpo", "grpo@trl", "gspo", "gmpo", "cispo", "dapo",
    "reinforce_pp", "reinforce_pp_baseline", "ppo_llm",
)  # fmt: skip
UNBOUNDED = {"ratio_low": 0.0, "ratio_high": math.inf}
LEAVE_ONE_OUT = GroupBaseline(baseline="leave_one_out", scale=None)


def exactly(lab: ExactLab, recipe: str | Recipe, **settings: Any) -> Estimate:
    """`lab.estimate`, which must have enumerated every batch."""
    found = lab.estimate(recipe, **settings)
    assert found.exact, f"{recipe} with {settings} was sampled"
    return found


def section(title: str, text: str) -> list[str]:
    """Markdown lines of at most 120 characters."""
    return [f"## {title}", "", *paragraph(text)]


def paragraph(text: str) -> list[str]:
    return [*textwrap.wrap(" ".join(text.split()), 120), ""]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Markdown lines; floats with four significant digits, roundings below 1e-9 as 0."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "0" if abs(value) < 1e-9 else f"{value:.4g}"
        return str(value)

    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def bias_columns(found: Estimate) -> list[float]:
    return [found.scale, found.cosine, found.direction_bias, found.relative_variance]


def every_method() -> list[str]:
    lines = section(
        "Every method, on-policy, first step",
        """Scale c: the multiple of the true gradient nearest to the mean. Direction bias: |mean - c true| / |c true|,
        what no learning rate absorbs. Relative variance: trace of the covariance of one batch's gradient / |c
        true|^2. The reference is the policy itself, the critic exact. Left: 81 sequences of equal length, one group
        of 2. Right: 15 sequences of 1 to 3 tokens, one group of 4, which is the whole batch for those that take
        statistics over the batch. kimi_k15_md includes its length reward, so on the right it follows another
        objective than the rest.""",
    )
    rows = [
        [name, *bias_columns(exactly(EQUAL, name)), *bias_columns(exactly(UNEQUAL, name, group_size=4))]
        for name in METHODS
    ]
    header = ["scale", "cosine", "direction bias", "relative variance"]
    return lines + table(["method", *header, *header], rows)


def baselines() -> list[str]:
    mean = float(EQUAL.expected_reward(EQUAL.theta))
    lines = section(
        "Baselines: bias and variance at equal rollouts",
        f"""81 sequences; J = {mean:.4f}, standard deviation of the reward {_reward_std(EQUAL):.4f}. Variance is that of
        one batch of G. The leave-one-out baseline costs no bias, the group mean a factor (G-1)/G that the learning
        rate absorbs. They lower the variance where rewards lie away from 0; where their mean is 0 already, leave-
        one-out raises it: it only adds noise.""",
    )
    cases = {
        "reinforce, no baseline": ("reinforce", 0.0),
        "reinforce, no baseline, reward + 10": ("reinforce", 10.0),
        "reinforce, no baseline, reward - J": ("reinforce", -mean),
        "group mean, own reward included": (make("reinforce", advantage=GroupBaseline(scale=None)), 0.0),
        "leave-one-out (rloo)": ("rloo", 0.0),
        "leave-one-out (rloo), reward - J": ("rloo", -mean),
    }
    rows = []
    for name, (recipe, shift) in cases.items():
        found = [exactly(EQUAL, recipe, group_size=g, columns={"reward": EQUAL.rewards + shift}) for g in (2, 3)]
        rows.append([name, *(value for one in found for value in (one.scale, one.direction_bias, one.variance))])
    header = [f"{what}, G={g}" for g in (2, 3) for what in ("scale", "direction bias", "variance")]
    return lines + table(["baseline", *header], rows)


def _reward_std(lab: ExactLab) -> float:
    probability = lab.probability(lab.theta)
    return float((probability @ (lab.rewards - probability @ lab.rewards) ** 2).sqrt())


def standard_deviation() -> list[str]:
    coin = ExactLab(2, 1, reward=torch.tensor([0.0, 1.0]))
    sizes = (2, 3, 4, 8, 16, 64, 256)
    rows = []
    weights = {}
    for p in (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9):
        theta = torch.tensor([[0.0, math.log(p / (1 - p))]])
        weights[p] = [exactly(coin, make("grpo", eps=1e-12), group_size=g, theta=theta).scale for g in sizes]
        rows.append([p, *weights[p], 1 / math.sqrt(p * (1 - p))])
    lines = section(
        "GRPO's standard deviation",
        """Rewards 0 or 1, equal lengths: the expected gradient is w(p) times the gradient of the success probability
        p, so one prompt alone keeps its direction. w(p) = sqrt((G-1)/G) E[sqrt(k/G (1 - k/G))] / (p (1-p)), k ~
        Binomial(G, p). At G = 2 and 3, w does not depend on p: no bias. As G grows, w(p) goes to 1 / sqrt(p (1-p)):
        GRPO climbs the sum over prompts of 2 arcsin sqrt(p), not of p.""",
    )
    lines += [
        *table(["p", *(f"G={g}" for g in sizes), "limit"], rows),
        "Two prompts with success probabilities p and 1/2: cosine between GRPO's mean gradient and that of the summed p.",
        "",
    ]
    pairs = []
    for p in (0.02, 0.05, 0.1, 0.25):
        true = torch.tensor([p * (1 - p), 0.25])
        pairs.append(
            [p]
            + [
                float(torch.cosine_similarity(true, true * torch.tensor([weights[p][i], weights[0.5][i]]), 0))
                for i in range(len(sizes))
            ]
        )
    lines += table(["p", *(f"G={g}" for g in sizes)], pairs)
    graded = [[g, *bias_columns(exactly(EQUAL, "grpo", group_size=g))] for g in (2, 3)]
    lines += [
        "Rewards of many values: one prompt's direction is biased too (81 sequences, rewards uniform in [0, 1)).",
        "",
    ]
    return lines + table(["G", "scale", "cosine", "direction bias", "relative variance"], graded)


def aggregation() -> list[str]:
    lab = ExactLab(2, 3, eos=0)
    lines = section(
        "Lengths that differ: what the loss is divided by",
        """rloo's advantage, 15 sequences of 1 to 3 tokens, one group of G. Dividing by the row's own length is biased
        at every G; by the batch's tokens, by an amount that falls about as 1/G, since the denominator goes with the
        rows that it divides.""",
    )
    parts = {
        "sum (rloo)": SequenceSum(),
        "mean per sequence (grpo)": SequenceMean(),
        "mean over tokens (dapo)": TokenMean(),
    }
    rows = [
        [name, *(exactly(UNEQUAL, make("rloo", aggregate=part), group_size=g).direction_bias for g in (2, 3, 4, 5))]
        for name, part in parts.items()
    ]
    lines += table(["direction bias", "G=2", "G=3", "G=4", "G=5"], rows)
    whitened = [[n, *bias_columns(exactly(lab, "reinforce_pp", group_size=1, groups=n))] for n in (2, 4, 8, 16)]
    lines += ["Whitening over the batch (reinforce_pp) of N rows, 4 sequences of 1 to 3 tokens:", ""]
    return lines + table(["N", "scale", "cosine", "direction bias", "relative variance"], whitened)


def dynamic_sampling_and_gae() -> list[str]:
    lab = ExactLab(3, 3, reward=lambda tokens: float(tokens == (0, 0, 0)))
    p = float(lab.expected_reward(lab.theta))
    rows = []
    for g in (2, 4):
        plain, kept = exactly(lab, "grpo@trl", group_size=g), exactly(lab, make("dapo", eps=1e-4), group_size=g)
        rows.append(
            [g, kept.kept, plain.scale, kept.scale, kept.cosine, plain.relative_variance, kept.relative_variance]
        )
    header = ["G", "groups kept", "scale without", "scale with", "cosine", "relative variance without", "with"]
    lines = section(
        "Dynamic sampling",
        f"""One rewarded sequence of 27 (p = {p:.4f}). Dropping groups of equal rewards divides the mean by the share
        kept and leaves the direction; the variance per batch trained on falls, the rollouts per batch rise by 1 /
        (groups kept).""",
    )
    lines += table(header, rows)
    lines += section(
        "GAE without whitening, token sum",
        """15 sequences of 1 to 3 tokens. With the exact values as critic every lambda is unbiased, and here a smaller
        one is less noisy. With half the exact values only lambda = 1 is unbiased.""",
    )
    gae = []
    for lam in (1.0, 0.95, 0.5, 0.0):
        recipe = make("ppo_llm", lam=lam, whiten=False, reward=None, aggregate=SequenceSum())
        exact = exactly(UNEQUAL, recipe, group_size=1)
        half = exactly(UNEQUAL, recipe, group_size=1, columns={"old_value": UNEQUAL.value(UNEQUAL.theta) / 2})
        gae.append([lam, exact.relative_bias, exact.variance, half.relative_bias, half.direction_bias, half.variance])
    header = ["lambda", "bias, exact critic", "variance", "bias, half critic", "direction bias", "variance"]
    return lines + table(header, gae)


def kl() -> list[str]:
    lab = ExactLab(2, 2, reward=torch.zeros(4))
    theta = torch.tensor([[0.3, -0.2], [0.8, -0.5], [-0.4, 0.1]], dtype=torch.float64)
    ref = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.2, -0.2]], dtype=torch.float64)
    true = -lab.gradient(theta, lambda logits: lab.kl(logits, ref))
    bare = make("reinforce")
    mirror = make("kimi_k15_md", tau=1.0, advantage=None, reward=None)
    summed = {k: -kl_estimate(lab.logp(theta), lab.logp(ref), k).sum(1) for k in ("k1", "k2", "k3")}
    cases: dict[str, tuple[Recipe, dict]] = {
        "k1 in the loss, times the ratio": (bare.replace(regularizer=KL(1.0, "k1", ratio_weighted=True)), {}),
        "k2 in the loss, per token": (bare.replace(regularizer=KL(1.0, "k2")), {}),
        "k3 in the loss, per token": (bare.replace(regularizer=KL(1.0, "k3")), {}),
        "k3 in the loss, times the ratio": (bare.replace(regularizer=KL(1.0, "k3", ratio_weighted=True)), {}),
        "k2 in the loss, of the whole sequence": (
            mirror,
            {"old": ref, "behavior": theta, "columns": {"advantage": torch.zeros(4)}},
        ),
        "k1 in the reward, per token": (bare.replace(reward=KLInReward(1.0, "token")), {}),
        "k1 in the reward, per sequence": (bare.replace(reward=KLInReward(1.0, "sequence")), {}),
        "k2 in the reward": (bare, {"columns": {"reward": summed["k2"]}}),
        "k3 in the reward": (bare, {"columns": {"reward": summed["k3"]}}),
    }
    rows = [["exact gradient", *_first_logits(-true), 1.0, 0.0, "", ""]]
    for name, (recipe, extra) in cases.items():
        found = exactly(lab, recipe, group_size=1, theta=theta, ref=ref, target=true, **extra)
        values = [found.cosine, found.relative_bias, found.direction_bias, found.variance]
        rows.append([name, *_first_logits(-found.mean), *values])
    header = ["penalty", "root", "after 0", "after 1", "cosine", "bias", "direction bias", "variance"]
    probability = lab.probability(theta)
    means = ", ".join(f"E[{k}] = {float(-probability @ value):.6f}" for k, value in summed.items())
    lines = section(
        "KL penalties",
        f"""Two tokens, two positions, KL(policy || reference) of the sequence = {float(lab.kl(theta, ref)):.6f}; summed
        over its tokens {means}. Gradient of the penalty, first logit of each prefix. k1 in the loss without a ratio
        has none (the part refuses it).""",
    )
    return lines + table(header, rows)


def _first_logits(gradient: Tensor) -> list[str]:
    return [f"{value:.6f}" for value in gradient[:, 0].tolist()]


def off_policy() -> list[str]:
    lab = ExactLab(3, 3)
    away = torch.randn(lab.theta.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    plain = {"advantage": LEAVE_ONE_OUT, "reward": None, "regularizer": None}
    token = {**plain, "aggregate": SequenceSum()}
    sequence = ClippedSequenceRatio(**UNBOUNDED, length_normalized=False)
    recipes = {
        "ratio of the sequence, unclipped": make("rloo@trl", **plain).replace(surrogate=sequence, aggregate=RowMean()),
        "ratio per token, unclipped (cispo, ppo)": make("cispo", ratio_max=math.inf, **token),
        "ratio per token, clipped to [0.8, 1.2] (grpo)": make("grpo", **token),
        "no ratio (reinforce)": make("rloo", **token),
        "geometric mean, unclipped (gspo, gmpo)": make("gspo", **UNBOUNDED, **plain),
        "geometric mean, gspo's interval": make("gspo", **plain),
        "geometric mean, gmpo's interval": make("gmpo", **plain),
    }
    drifts = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
    divergence = [float(lab.kl(lab.theta + step * away, lab.theta)) for step in drifts]
    found = {
        name: [exactly(lab, recipe, old=lab.theta + step * away) for step in drifts] for name, recipe in recipes.items()
    }
    header = ["ratio", *(f"KL {value:.2g}" for value in divergence)]
    lines = section(
        "Off-policy: rows drawn from an older policy",
        """27 sequences of 3 tokens, leave-one-out advantage, G = 2; columns: KL(old || policy) of the sequence. The
        ratio per token follows the gradient of PPO's surrogate, whose prefixes stay those of the old policy: the
        true one at KL = 0 and for a single position only. A clip drops what has already moved its way, so it is not
        meant to keep the gradient. Direction bias:""",
    )
    lines += table(header, [[name, *(one.direction_bias for one in row)] for name, row in found.items()])
    lines += ["Relative variance:", ""]
    return lines + table(header, [[name, *(one.relative_variance for one in row)] for name, row in found.items()])


def mirror_descent() -> list[str]:
    lab = ExactLab(2, 2, seed=3)
    start = lab.theta
    rows = []
    for size in (2, 4):
        for tau in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
            there = lab.probability(mirror_descent_fixed_point(lab, start, tau, size))
            near, plain = (tilted(lab, start, factor / tau) for factor in ((size - 1) / size, 1.0))
            move = float((plain - lab.probability(start)).abs().sum() / 2)
            errors = [float((there - other).abs().sum() / 2) for other in (plain, near)]
            rows.append([size, tau, move, *errors])
    header = ["G", "tau", "move from pi_i to pi_i exp(R/tau)/Z", "distance to that", "to pi_i exp((G-1)/G R/tau)/Z"]
    lines = section(
        "Kimi k1.5: where one iteration converges",
        """Two tokens, two positions; the policy at which the expected gradient of the loss vanishes, rows drawn from
        pi_i; distances in total variation. The group mean includes the sample itself, so the reward counts (G-1)/G:
        of the move to pi_i exp(R/tau)/Z a share of about 1/G is missing at any tau. Against pi_i exp((G-1)/G
        R/tau)/Z the error falls as tau^-3.""",
    )
    return lines + table(header, rows)


def mirror_descent_fixed_point(lab: ExactLab, start: Tensor, tau: float, group_size: int) -> Tensor:
    """Logits [N, 2] (the second one 0) at which the expected gradient, on rows drawn from `start`, vanishes."""
    recipe = make("kimi_k15_md", tau=tau, reward=None)

    def logits(first: Sequence[float]) -> Tensor:
        column = torch.tensor(first, dtype=torch.float64)
        return torch.stack([column, torch.zeros_like(column)], 1)

    def expected(first: Sequence[float]) -> Sequence[float]:
        return exactly(lab, recipe, group_size=group_size, theta=logits(first), old=start).mean[:, 0].tolist()

    solution = root(expected, (start[:, 0] - start[:, 1]).tolist(), tol=1e-12)
    assert solution.success, solution.message
    return logits(solution.x)


def tilted(lab: ExactLab, theta: Tensor, strength: float) -> Tensor:
    """Probabilities proportional to pi exp(strength * reward), [S]."""
    weight = lab.probability(theta) * (strength * lab.rewards).exp()
    return weight / weight.sum()


def size_and_cost() -> list[str]:
    rows = []
    for name in ("rloo", "grpo"):
        start = time.process_time()
        found = exactly(EQUAL, name, group_size=4)
        rows.append(
            [
                name,
                f"{found.batches:,}",
                f"{time.process_time() - start:.0f}",
                found.scale,
                found.cosine,
                found.direction_bias,
            ]
        )
    lines = section("Cost", "All groups of 4 of 81 sequences, up to order, on one core.")
    return lines + table(["method", "groups", "CPU seconds", "scale", "cosine", "direction bias"], rows)


def main() -> None:
    torch.set_num_threads(1)
    sections = (
        every_method, baselines, standard_deviation, aggregation, dynamic_sampling_and_gae, kl, off_policy, mirror_descent,
        size_and_cost,
    )  # fmt: skip
    introduction = """Made by `python benchmarks/exact_lab.py`. A tabular autoregressive policy whose sequences are all enumerated
        (`upslope.exact`), in float64: expectations and variances are over every batch, none is sampled. 0 means below 1e-9. What
        holds for every policy and reward is pinned by `tests/exact/test_facts.py`; the sizes of a bias are those of the seeded
        policies and rewards named here."""
    lines = ["# The exact lab: numbers", "", *paragraph(introduction)]
    for part in sections:
        lines += part()
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
