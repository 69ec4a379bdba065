"""Named objectives that methods of the family rlvr follow in the exact lab, for exact_methods.py."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from exact_lab import section, table
from torch import Tensor

from upslope import Recipe, make
from upslope.batch import Batch
from upslope.exact import Estimate, ExactLab
from upslope.methods.rlvr.capo_curvature import CurvatureRejection, predicted_changes
from upslope.methods.rlvr.riskpo import BundledRisk
from upslope.methods.rlvr.tempsamp_r1 import SoftReward
from upslope.parts.advantage import GroupBaseline
from upslope.recipe import Part, State

RIGHT = ExactLab(2, 2, prompts=2, seed=1, reward=torch.tensor([0.0, 0, 0, 1, 0, 1, 1, 1]))
GRADED = ExactLab(2, 3, eos=0, prompts=2, seed=1)
SIZE, GROUPS = 4, 2
SETTINGS: dict[str, dict[str, Any]] = {"polychromic_ppo": {"size": 2}, "riskpo": {"bundle_size": 2}}


@dataclass(frozen=True)
class SgdPrediction(Part):
    """What CAPO's control reads, for a plain gradient step of the logits instead of Adam's."""

    lr: float = 0.02
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "log_distribution", "tokens"})
    makes: ClassVar[frozenset[str]] = frozenset({"predicted_gain", "predicted_shift"})

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        step = SimpleNamespace(lr=self.lr, direction=lambda gradient, ids: gradient)
        log_probs = batch.log_distribution.flatten(0, 1)
        ids = torch.arange(log_probs.shape[1]).expand_as(log_probs)
        chosen = ids == batch.tokens.flatten().unsqueeze(1)
        one = torch.ones_like(log_probs[:, :1])
        found = predicted_changes(one, log_probs.exp(), chosen, batch.advantage.flatten(), ids, step)  # type: ignore[arg-type]
        return {name: c.view(batch.logp.shape) for name, c in zip(sorted(self.makes), found, strict=True)}


@dataclass(frozen=True)
class FixedQuantiles(BundledRisk):
    """BundledRisk with quantiles that were tracked to 0.5 and 1.5 before."""

    def init(self) -> State:
        return {"step": 1, "low": 0.5, "high": 1.5}


def older(lab: ExactLab) -> Tensor:
    """The policy that the stale rows were drawn from."""
    away = torch.randn(lab.theta.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return lab.theta + 0.4 * away


def given_columns(lab: ExactLab) -> dict[str, Tensor]:
    """What verifiers and further passes would tell: stratum = first token, prediction = 1 to 5, a blanked prompt = flatter."""
    return {
        "stratum": lab.sequences[:, 0],
        "prediction": 1 + 4 * lab.rewards,
        "masked_logp": lab.logp(lab.theta / 2),
        "anchor_logp": lab.logp(lab.theta),
    }


def recipe_of(name: str) -> Recipe:
    if name == "capo_curvature":
        return make(name, control=(SgdPrediction(), CurvatureRejection()))
    return make(name, **SETTINGS.get(name, {}))


def estimate(lab: ExactLab, recipe: Recipe, **settings: Any) -> Estimate:
    given = {"group_size": SIZE, "groups": GROUPS, "limit": 10**7, **settings}
    return lab.estimate(recipe, columns=given_columns(lab), **given)


def residual(found: Estimate, target: Tensor) -> float:
    """|mean - c target| / |mean| for the best c: 0 where the mean follows `target`."""
    best = (found.mean * target).sum() / (target * target).sum() * target
    return float((found.mean - best).norm() / found.mean.norm())


def weighted(lab: ExactLab, weight: Tensor) -> Tensor:
    """Gradient of the sum over prompts of `weight` [prompts] times the success probability."""
    return lab.gradient(lab.theta, lambda theta: weight @ lab.prompt_mean(theta, lab.rewards))


def success(lab: ExactLab) -> Tensor:
    return lab.prompt_mean(lab.theta, lab.rewards)


def grpo_weight(p: Tensor, size: int) -> Tensor:
    """E[sqrt(k/G (1 - k/G))] / (p (1 - p)), k ~ Binomial(G, p): what GRPO multiplies a prompt's gradient by, up to a factor."""
    k = torch.arange(size + 1, dtype=torch.float64).unsqueeze(1)
    chance = torch.distributions.Binomial(size, p).log_prob(k).exp()
    return (chance * (k / size * (1 - k / size)).sqrt()).sum(0) / (p * (1 - p))


Check = tuple[str, str, Estimate, Tensor]


def logp(theta: Tensor) -> Tensor:
    """Log-prob of each sequence, [S]."""
    return RIGHT.logp(theta).sum(1)


def on_policy() -> list[Check]:
    lab, p, reward = RIGHT, success(RIGHT), RIGHT.rewards
    theta = lab.theta
    mixed = weighted(lab, (1 - p**SIZE - (1 - p) ** SIZE) / (p * (1 - p)))
    log_probs = lab.log_distribution(theta)
    entropies = -(log_probs.exp() * log_probs).sum((1, 2))

    def bonus(th: Tensor) -> Tensor:
        there = lab.log_distribution(th)
        return 0.75 * lab.expected_reward(th) - lab.probability(theta) @ (there.exp() * there).sum((1, 2)) / 2

    def punished(th: Tensor) -> Tensor:
        return lab.probability(th) @ (0.75 * reward - entropies / 2)

    best = torch.tensor([3, 5])
    soft = SoftReward()(Batch(logp=torch.zeros(len(reward), 1), reward=reward))
    gap = (soft[best] - lab.prompt_mean(theta, soft)) / (SIZE - 1)

    def with_reference(th: Tensor) -> Tensor:
        return (lab.prompt_mean(th, soft) + gap * logp(th)[best]).sum()

    fixed = FixedQuantiles(bundle_size=2, scale=None, credit="uniform")
    risk = make("riskpo").replace(advantage=fixed)
    epo = make("epo_agent", coefficient=1.0, advantage=GroupBaseline(scale=None))
    gtpo = make("gtpo_trajectory", penalty=1.0, weight=None, limit=None)
    sets = {"shuffle": True, "samples": 12_000, "groups": 1}

    def of(function: Callable[[Tensor], Tensor]) -> Tensor:
        return lab.gradient(theta, function)

    return [
        ("dapo", "grpo's: dropping silent groups changes no prompt's weight", estimate(lab, make("dapo")),
         weighted(lab, grpo_weight(p, SIZE))),
        ("nft_negative, first step", "J", estimate(lab, make("nft_negative")), of(lab.expected_reward)),
        ("disco, tau=None", "sum of log(p / (1 - p)), each times the chance of a mixed group",
         estimate(lab, make("disco", tau=None)), mixed),
        ("disco, tau=10", "the same", estimate(lab, make("disco")), mixed),
        ("stratified_grpo, alpha=1, scale=None", "sum over strata k of E[(n_k - 1)+] E[R given k]: nothing between strata",
         estimate(lab, make("stratified_grpo", alpha=1.0, scale=None)), within_strata(lab)),
        ("epo_agent, first step, coefficient 1, scale=None", "(G-1)/G J + mean entropy at its own prefixes, visits constant",
         estimate(lab, epo), of(bonus)),
        ("gtpo_trajectory, penalty 1, without weights", "(G-1)/G J - mean entropy through the visits, entropies constant",
         estimate(lab, gtpo), of(punished)),
        ("copo, rho=1e9 (between prompts only), no scale", "J", estimate(lab, make("copo", rho=1e9, eps=1e6)),
         of(lab.expected_reward)),
        ("tempsamp_r1, scale=None", "E[S] + (S* - E[S]) / (G-1) log pi(reference), the factor constant",
         estimate(lab, make("tempsamp_r1", scale=None)), of(with_reference)),
        ("polychromic_ppo, sets of 2, one group", "E[mean reward * diversity] of two draws",
         estimate(lab, recipe_of("polychromic_ppo"), **sets), of(lambda th: set_objective(lab, th))),
        ("riskpo, quantiles fixed, no scales", "E[(w C + V) / (w + 1)] of the sum of two prompts' rewards",
         estimate(lab, risk, group_size=1), of(lambda th: risk_objective(lab, th, fixed))),
    ]  # fmt: skip


def off_policy() -> list[Check]:
    lab, old, reward = RIGHT, older(RIGHT), RIGHT.rewards
    chance, sign = lab.probability(old) / lab.prompts, 2 * reward - 1
    gain = 0.75 * (reward - lab.prompt_mean(old, reward)[lab.prompt])

    def ratio(th: Tensor) -> Tensor:
        return (lab.logp(th) - lab.logp(old)).exp()

    def moved(th: Tensor) -> Tensor:
        return logp(th) - logp(old)

    def tapered(th: Tensor) -> Tensor:
        r = moved(th).exp()
        return chance @ torch.where(sign > 0, logp(th), -torch.where(r < 1, r, 1 + r.log()))

    def ratio_variance(th: Tensor) -> Tensor:
        return chance @ (gain.unsqueeze(1) * ratio(th) - 0.1 * (ratio(th) - 1) ** 2).sum(1)

    def of(function: Callable[[Tensor], Tensor]) -> Tensor:
        return lab.gradient(lab.theta, function)

    def stale(recipe: Recipe) -> Estimate:
        return estimate(lab, recipe, old=old)

    vppo = make("vppo", curriculum="grpo")
    full, bare = stale(vppo), stale(vppo.replace(regularizer=None))
    term = Estimate(full.mean - bare.mean, full.truth, full.spread, full.batches, full.exact, full.packed)
    return [
        ("reinforce, stale", "E_old[R log pi]", stale(make("reinforce")), of(lambda th: chance @ (reward * logp(th)))),
        ("topr, stale", "E_old[log pi] of successes - E_old[h(r)] of failures, h = r below 1, 1 + log r above",
         stale(make("topr")), of(tapered)),
        ("kimi_k15_md, stale", "(G-1)/G E_old[(R - J_old) log pi] - tau/2 E_old[(log pi/pi_old)^2]",
         stale(make("kimi_k15_md")), of(lambda th: chance @ (gain * logp(th) - 0.05 * moved(th) ** 2))),
        ("r2vpo, stale, scale=None", "PPO's surrogate - lam E_old[(r - 1)^2], per token",
         stale(make("r2vpo", scale=None)), of(ratio_variance)),
        ("vppo's term in logp, stale", "-KL(old, policy), not an entropy", term, of(lambda th: chance @ moved(th))),
    ]  # fmt: skip


def named_objectives() -> list[str]:
    rows = []
    for name, objective, found, target in (*on_policy(), *off_policy()):
        error = float(found.standard_error.norm() / found.mean.norm())
        how = "exact" if found.exact else f"sampled, +-{error:.2g}"
        rows.append([name, objective, residual(found, found.truth), residual(found, target), how])
    lines = section(
        "The objective that they do follow",
        """Right or wrong; residual |mean - c target| / |mean| for the best c, of the gradient of J and of that of the objective
        named: 0 says that the mean is a multiple of it. For a sampled one the standard error of the mean stands beside it, also
        relative to |mean|. grpo's and disco's eps leave 1e-7.""",
    )
    return lines + table(["method", "objective", "from J", "from the objective", "how"], rows)


def within_strata(lab: ExactLab) -> Tensor:
    """Gradient of the sum over prompts and strata of E[(n - 1)+] E[R | stratum], n ~ Binomial(4, chance of the stratum)."""
    total = torch.zeros_like(lab.theta)
    for prompt in range(lab.prompts):
        for stratum in (0, 1):
            inside = ((lab.prompt == prompt) & (lab.sequences[:, 0] == stratum)).double()
            q = float(lab.probability(lab.theta) @ inside)
            weight = SIZE * q - 1 + (1 - q) ** SIZE

            def conditional(theta: Tensor, inside: Tensor = inside) -> Tensor:
                chance = lab.probability(theta) * inside
                return chance @ lab.rewards / chance.sum()

            total += weight * lab.gradient(lab.theta, conditional)
    return total


def pairs(lab: ExactLab, theta: Tensor) -> Tensor:
    """Probability of two independent sequences of the same prompt, [S, S]."""
    chance = lab.probability(theta)
    same = lab.prompt.unsqueeze(1) == lab.prompt
    return chance.unsqueeze(1) * chance * same / lab.prompts


def set_objective(lab: ExactLab, theta: Tensor) -> Tensor:
    """E of the mean reward of two draws where they differ, else 0."""
    score = (lab.rewards.unsqueeze(1) + lab.rewards) / 2
    return (pairs(lab, theta) * score * ~torch.eye(len(score), dtype=torch.bool)).sum()


def risk_objective(lab: ExactLab, theta: Tensor, part: BundledRisk) -> Tensor:
    """E of the part's performance of the sum of two prompts' rewards."""
    chance = lab.probability(theta) / lab.prompts
    total = (lab.rewards.unsqueeze(1) + lab.rewards).flatten()
    score = part._risk(total, torch.tensor([[0.5, 1.5]]).expand(len(total), 2).double())
    return (chance.unsqueeze(1) * chance).flatten() @ score
