"""Every method of the family rlvr in the exact lab: writes docs/results/exact_methods.md.  `python benchmarks/exact_methods.py`"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from exact_lab import LEAVE_ONE_OUT, OUTPUT, paragraph, section, table
from exact_objectives import (
    GRADED,
    RIGHT,
    SIZE,
    estimate,
    grpo_weight,
    named_objectives,
    older,
    recipe_of,
    residual,
    success,
    weighted,
)  # fmt: skip
from torch import Tensor

from upslope import make
from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.exact import Estimate, ExactLab
from upslope.parts.advantage import GroupBaseline
from upslope.parts.aggregate import RowMean
from upslope.parts.surrogate import ClippedSequenceRatio
from upslope.recipe import Part
from upslope.registry import list_methods

COINS = ExactLab(2, 1, prompts=2, seed=29, reward=torch.tensor([0.0, 1.0, 0.0, 1.0]))
SAMPLES = 4000
SHUFFLED = ("clip_cov", "d3s", "polychromic_ppo", "prs_vspo", "riskpo")  # choices by the identity of rows
NO_LAB = {
    "grpo_guard": "acts on Gaussian actions of a flow sampler (`mean`, `noise_scale`), not on tokens: the lab refuses it"
}
PLAIN = make("reinforce", advantage=LEAVE_ONE_OUT)
CORRECTED = PLAIN.replace(
    surrogate=ClippedSequenceRatio(0.0, float("inf"), length_normalized=False), aggregate=RowMean()
)


@dataclass(frozen=True)
class Kept(Part):
    """1 for the rows of AEPO's second draw that it keeps, else 0, [R]."""

    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group"})

    def __call__(self, batch: Batch) -> Tensor:
        return (GroupBaseline()(batch) > 0.05).to(batch.dtype)


def noise(found: Estimate, plain: Estimate) -> float:
    """Relative variance at equal rollouts over that of `plain`; groups that a curriculum drops were rollouts, too."""
    return found.relative_variance / found.kept / plain.relative_variance


def measured(lab: ExactLab, name: str, **settings: Any) -> Estimate:
    """By enumeration; sampled where a choice depends on the order or the identity of rows."""
    if name not in SHUFFLED:
        try:
            return estimate(lab, recipe_of(name), **settings)
        except UsageError as error:
            if "order of the rows" not in str(error):
                raise
    return estimate(lab, recipe_of(name), shuffle=True, samples=SAMPLES, **settings)


def how(found: Estimate) -> str:
    error = float(found.standard_error.norm() / found.mean.norm())
    return "exact" if found.exact else f"+-{error:.2g}"


def every_method() -> tuple[list[str], dict[str, Estimate]]:
    old = older(RIGHT)
    plain = [estimate(RIGHT, PLAIN), estimate(GRADED, PLAIN), estimate(RIGHT, CORRECTED, old=old)]
    target = weighted(RIGHT, grpo_weight(success(RIGHT), SIZE))
    rows, means = [], {}
    for name in list_methods(family="rlvr"):
        if name in NO_LAB:
            rows.append([name, *["refused"] * 14])
            continue
        three = [measured(RIGHT, name), measured(GRADED, name), measured(RIGHT, name, old=old)]
        means[name] = three[0]
        cells: list[object] = [name, three[0].scale, residual(three[0], target)]
        for found, base in zip(three, plain, strict=True):
            cells += [found.cosine, found.direction_bias, noise(found, base), how(found)]
        rows.append(cells)
        print(*cells, f"{time.process_time():.0f} s", flush=True)
    first, second = success(RIGHT).tolist()
    lines = section(
        "All methods",
        f"""Two groups of 4; each group's prompt is one of two, at random. Left, right or wrong: 4 sequences of 2 tokens, success
        probabilities {first:.3f} and {second:.3f}, so that lengths play no part and only the prompts' weights can be off. Middle,
        graded: 4 sequences of 1 to 3 tokens, rewards in [0, 1). Right, stale: the first again, rows drawn from another policy
        (KL {float(RIGHT.kl(old, RIGHT.theta)):.3f}), gradient at the present one. Scale c, cosine, direction bias: as in
        exact_lab.md. From grpo: what is left of the mean after the best multiple of grpo's own objective, |mean - c w| / |mean|.
        Noise: variance / |c true|^2 at equal rollouts, over that of the plain leave-one-out policy gradient (when stale: of its
        importance-weighted form, which is unbiased). Below 1 is less noise, which in a biased method may be what its bias buys.
        Noise counts the groups that dynamic sampling throws away. How: exact, or the standard
        error of a sampled mean over |mean|. The reference is the policy itself, so KL penalties in the loss
        start at 0; the critic and spo's tracker are exact.""",
    )
    block = ["cosine", "direction bias", "noise", "how"]
    header = ["method", "scale", "from grpo", *block, *(f"graded: {b}" for b in block), *(f"stale: {b}" for b in block)]
    lines += table(header, rows)
    return lines + [f"- `{name}`: {why}." for name, why in NO_LAB.items()] + [""], means


def classes(means: Mapping[str, Estimate]) -> list[str]:
    """The names whose mean on the left is the true gradient, grpo's, or neither."""
    target = weighted(RIGHT, grpo_weight(success(RIGHT), SIZE))
    exact = {name: found for name, found in means.items() if found.exact}
    true = [name for name, found in exact.items() if found.direction_bias < 1e-5]
    alike = [name for name, found in exact.items() if residual(found, target) < 1e-5]
    rest = [name for name in means if name not in (*true, *alike)]
    return [
        *section("Who follows what, right or wrong, on-policy", "By the table's left columns; eps = 1e-6 leaves 1e-5."),
        *paragraph(f"- **The expected reward**, up to a factor: {', '.join(true)}."),
        *paragraph(f"- **grpo's objective**, the sum over prompts of W(p), W' = w_G(p): {', '.join(alike)}."),
        *paragraph(f"- **Neither**: {', '.join(rest)}."),
    ]


def optimal_baseline() -> list[str]:
    lab = ExactLab(2, 3, eos=0, seed=1)
    score = torch.stack([lab.gradient(lab.theta, lambda th, i=i: lab.logp(th)[i].sum()) for i in range(len(lab.words))])
    weight = lab.probability(lab.theta) * score.square().sum((1, 2))
    best = float(weight @ lab.rewards / weight.sum())
    rows = []
    for size in (2, 3, 4, 6, 8, 12):
        one = {"group_size": size, "groups": 1}
        rloo = estimate(lab, PLAIN, **one)
        found = [estimate(lab, make("oblr_po", leave_one_out=out), **one) for out in (False, True)]
        constants = [
            lab.estimate("reinforce", group_size=size, columns={"reward": lab.rewards - b})
            for b in (best, float(lab.expected_reward(lab.theta)))
        ]
        bias = found[0].direction_bias
        rows.append([size, bias, size * bias, found[1].direction_bias, *(noise(f, rloo) for f in (*found, *constants))])
    lines = section(
        "oblr_po: the baseline of least variance",
        """One prompt, 4 sequences of 1 to 3 tokens, rewards in [0, 1); noise against leave-one-out (rloo). b* estimated from the
        group itself is biased in direction too, by O(1 / G); without the row itself it is not. Known exactly, b* is the constant of
        least variance: the last two columns are constants. What estimating it costs shows in the columns before.""",
    )
    header = [
        "G",
        "b*: direction bias",
        "times G",
        "leave-one-out b*: direction bias",
        "b*: noise",
        "leave-one-out b*: noise",
    ]
    return lines + table([*header, "exact b*: noise", "exact mean: noise"], rows)


def growing_batch() -> list[str]:
    names = (
        "lite_ppo",
        "reinforce_pp",
        "reinforce_pp_baseline",
        "spo_single_stream",
        "ppo_llm",
        "bnpo",
        "copo",
        "grpo",
    )
    sizes = (2, 3, 5)
    rows = []
    plain = {groups: estimate(COINS, PLAIN, groups=groups) for groups in sizes}
    for name in names:
        found = {groups: estimate(COINS, make(name), groups=groups) for groups in sizes}
        rows.append(
            [name, *(f.direction_bias for f in found.values()), *(noise(f, plain[g]) for g, f in found.items())]
        )
    first, second = success(COINS).tolist()
    lines = section(
        "Statistics of the batch: what a larger batch mends",
        f"""Two prompts of one token, success probabilities {first:.3f} and {second:.3f}, groups of 4. Dividing by the deviation of
        the batch costs a bias that falls as the batch grows, dividing by the group's does not.""",
    )
    header = [f"{what}, {g} groups" for what in ("direction bias", "noise") for g in sizes]
    return lines + table(["method", *header], rows)


def second_draw() -> list[str]:
    rows = []
    lab = RIGHT
    entropy = lab.gradient(lab.theta, lab.entropy)
    for temperature in (0.8, 1.0, 1.2):
        found = estimate(lab, PLAIN.replace(advantage=Kept()), old=lab.theta, behavior=lab.theta / temperature)
        along = [float((found.mean * g).sum() / found.mean.norm() / g.norm()) for g in (found.truth, entropy)]
        rows.append([temperature, *along])
    lines = section(
        "aepo_arbitrary: the rows of the second draw",
        """The first step of the table is grpo; the lab takes the second draw's term by itself: rows drawn at T, kept where their
        advantage is over 0.05, reinforced by 1. Cosine of its mean with the gradients of J and of the sequence's entropy. The
        temperature is meant to set the sign of the latter.""",
    )
    return lines + table(["T", "with the gradient of J", "with that of the entropy"], rows)


def prompt_weights() -> list[str]:
    coin, chances = ExactLab(2, 1, reward=torch.tensor([0.0, 1.0])), (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
    rows = []
    for name in ("dr_grpo", "nft_negative", "topr", "grpo", "dapo", "egpo_funcall", "disco"):
        weights = []
        for p in chances:
            theta = torch.tensor([[1 - p, p]], dtype=torch.float64).log()
            found = coin.estimate(make(name), group_size=64, theta=theta)
            weights.append(found.scale * found.kept)
        rows.append([name, *(w / weights[3] for w in weights)])
    lines = section(
        "What a prompt weighs by its success probability",
        """One token, right or wrong, G = 64: the factor of the prompt's true gradient, over that at p = 1/2, rollouts of dropped
        groups counted. Equal numbers climb the mean success; where hard prompts weigh more, something like its arcsine (grpo) or
        log-odds (disco).""",
    )
    return lines + table(["method", *(f"p={p}" for p in chances)], rows)


def other_policies() -> list[str]:
    recipes = {
        "reinforce": make("reinforce"),
        "topr": make("topr"),
        "grpo": make("grpo"),
        "bnpo": make("bnpo"),
        "reinforce_pp": make("reinforce_pp"),
        "reinforce_pp_baseline": make("reinforce_pp_baseline"),
        "ppo_llm, exact critic": make("ppo_llm"),
        "oblr_po": make("oblr_po"),
        "oblr_po, leave-one-out": make("oblr_po", leave_one_out=True),
        "egpo_funcall": make("egpo_funcall"),
        "stratified_grpo": make("stratified_grpo"),
        "tempsamp_r1": make("tempsamp_r1"),
    }
    labs = [ExactLab(2, 2, seed=seed) for seed in range(20)]
    one: dict[str, Any] = {"groups": 1}
    plain = [estimate(lab, PLAIN, **one) for lab in labs]
    rows = []
    for name, recipe in recipes.items():
        found = [estimate(lab, recipe, **one) for lab in labs]
        bias = torch.tensor([f.direction_bias for f in found])
        noises = torch.tensor([noise(f, p) for f, p in zip(found, plain, strict=True)])
        less = int((noises < 1 - 1e-9).sum())
        rows.append([name, *(float(f(c)) for c in (bias, noises) for f in (torch.median, torch.min, torch.max)), less])
    lines = section(
        "Other policies",
        """20 seeded policies and rewards: one prompt, 4 sequences of 2 tokens, rewards in [0, 1), one group of 4, which is the
        batch. Median, lowest and highest; how often the noise is below that of leave-one-out.""",
    )
    header = [f"{what}{which}" for what in ("direction bias", "noise") for which in ("", ", lowest", ", highest")]
    return lines + table(["method", *header, "less noise, of 20"], rows)


FINDINGS = (
    """With right or wrong rewards and equal lengths only `reinforce`, `rloo`, `dr_grpo`, `kimi_k15_md`, `nft_negative` and `topr`
    follow the expected reward. With graded rewards and unequal lengths only `reinforce`, `rloo` and `dr_grpo` do.""",
    """Fresh rows cannot tell `gspo`, `gmpo`, `cispo`, `bapo_balanced`, `r2vpo`, `kl_cov`, `lp_reg`, `remix`, `apo_asymmetric` and
    `aepo_arbitrary`'s first draw from `grpo`: all their gain, if any, is in stale rows, penalties or lengths.""",
    """`dapo`'s dynamic sampling keeps grpo's objective. At equal rollouts the noise falls, since the number of silent groups no
    longer varies the length of the step; `nft_negative`, with the same draw, has the same noise and no bias.""",
    """`disco` without tau climbs the log-odds of success, each prompt's times its chance of a mixed group. It is free of
    difficulty bias in its own objective, but of the mean success it is further away than grpo: at large G a prompt of p = 0.02
    weighs 9 times one of p = 1/2, in grpo 3 times.""",
    """`oblr_po`'s baseline has the least variance of all constants when it is known. Estimated from the group it is biased in
    direction by O(1 / G), not only in scale as the group's mean; estimated without the row it is unbiased, but at G = 4 noisier
    than rloo on most policies tried. The claim of lower variance needs groups of about 8 or more here.""",
    """`bnpo`'s claim of lower variance: not seen. On rewards of right or wrong its noise is dr_grpo's within 5 percent, on graded
    ones above it, and its bias is up to twice that of grpo.""",
    """Less noise without much bias comes from a baseline that is not estimated from the group: `ppo_llm` with the exact critic
    and `spo_single_stream` with the exact tracker, 0.5 to 0.8 of rloo's. How good theirs is in a run, the lab does not say.""",
    """`disco` on stale rows is mostly its constraint: beyond delta the factor 1000 makes the pull to the old policy the larger
    part. `gtpo_trajectory`'s weights for shared tokens make it several times as noisy.""",
    """`epo_agent`'s bonus has the entropy's gradient at the policy's own prefixes only, `gtpo_trajectory`'s penalty only that
    through the visits (downwards): each is one half of the gradient of the sequence's entropy.""",
    """`vppo`'s "entropy penalty" is the gradient of KL(old, policy) and 0 on fresh rows; it has nothing of an entropy.""",
    """`riskpo` with fixed quantiles and no scales follows the risk of a random bundle's score. If rewards are right or wrong, that
    is a multiple of the mean success: what is averse to risk then is left to the scales and the batch's quantiles.""",
    """`polychromic_ppo` is unbiased for the score of a set, up to (1 - 1/M) (1 - n/N), at a high price in noise.""",
    """`stratified_grpo` with alpha = 1 and no scale has no gradient between strata at all: unbiased only where strata do not
    matter. `tempsamp_r1`'s reference row is supervised learning, weighted by its advantage.""",
    """`aepo_arbitrary`'s second draw: at every T its mean is close to the gradient of J. The temperature moves its entropy's share
    the way that is meant, but here does not turn its sign: the selection by reward outweighs it.""",
    """`copo`'s comparison between prompts follows J, too, at many times the noise. `topr`'s fixed baseline of 1/2 is unbiased and
    often less noisy than leave-one-out, where rewards lie around 1/2; far from it, much more.""",
    """A scale by the batch's deviation (`lite_ppo`, `reinforce_pp`, `reinforce_pp_baseline`, `spo_single_stream`) is biased less
    the larger the batch. The group's deviation, a mean over a sequence's tokens and selections of tokens or rows stay biased.""",
)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    introduction = """Made by `python benchmarks/exact_methods.py`. Of what objective is each method's mean gradient
        the gradient, and how noisy is it at equal rollouts? Tabular policies, float64, first step from the first state,
        default settings (polychromic_ppo: sets of 2; riskpo: bundles of 2 prompts; capo_curvature: bounds on a plain gradient step
        of lr 0.02, since Adam's moments are the trainer's; stratum = first token, a blanked prompt = half the logits). Means and
        variances are over all batches unless sampled: there choices depend on the order or identity of the rows, and the standard
        error of the mean is given relative to its norm. Sizes are those of these seeded policies; zeros hold for
        every policy where `tests/exact` says so."""
    lines = ["# Every method in the exact lab", "", *paragraph(introduction)]
    lines += ["## Findings", "", *(line for text in FINDINGS for line in paragraph(f"- {text}")[:-1]), ""]
    rows, means = every_method()
    lines += classes(means) + rows + named_objectives()
    for part in (prompt_weights, growing_batch, optimal_baseline, second_draw, other_policies):
        lines += part()
    OUTPUT.with_name("exact_methods.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
