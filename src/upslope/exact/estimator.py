"""A recipe's gradient estimator over all its batches: the gradients of thousands of batches from one backward pass."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.collect import entropy_of
from upslope.errors import UsageError
from upslope.exact.counting import log_multiplicity, multisets, multisets_count
from upslope.recipe import Recipe

if TYPE_CHECKING:
    from upslope.exact.lab import ExactLab

PACKED_ROWS = 8_000_000  # enumerated by default where batches pack: minutes at most
ALONE_BATCHES = 20_000  # and where they do not
CHUNK_ROWS = 1 << 16
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Estimate:
    """What a recipe's gradient estimator does on average. Gradients are [N, V], of the objective to be maximised.

    mean             expectation of -(gradient of the loss) over batches
    truth            the gradient to compare with
    spread           variance of each coordinate of one batch's gradient
    batches          batches evaluated; those that differ in row order count once
    exact            every batch was enumerated; else they were drawn, and `standard_error` is that of the mean
    packed           one batch's gradient does not depend on others, so that many were evaluated together
    kept             probability that the curriculum keeps a group (DAPO's dynamic sampling), else 1
    """

    mean: Tensor
    truth: Tensor
    spread: Tensor
    batches: int
    exact: bool
    packed: bool
    kept: float = 1.0

    @property
    def bias(self) -> Tensor:
        """mean - truth, [N, V]."""
        return self.mean - self.truth

    @property
    def relative_bias(self) -> float:
        """|mean - truth| / |truth|."""
        return float(self.bias.norm() / self.truth.norm())

    @property
    def scale(self) -> float:
        """The c for which c * truth is nearest to the mean: (G-1)/G for a group mean that includes the sample itself."""
        return float((self.mean * self.truth).sum() / (self.truth * self.truth).sum())

    @property
    def cosine(self) -> float:
        """Cosine between mean and truth; 1 where only the scale is biased, which the learning rate absorbs."""
        return float((self.mean * self.truth).sum() / (self.mean.norm() * self.truth.norm()))

    @property
    def direction_bias(self) -> float:
        """|mean - scale * truth| / |scale * truth|: the relative bias that no learning rate absorbs."""
        best = self.scale * self.truth
        return float((self.mean - best).norm() / best.norm())

    @property
    def variance(self) -> float:
        """Trace of the covariance of one batch's gradient."""
        return float(self.spread.sum())

    @property
    def relative_variance(self) -> float:
        """variance / |scale * truth|^2: comparable between recipes whose gradients differ in scale."""
        return self.variance / float((self.scale * self.truth).norm() ** 2)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, [N, V]: 0 where the enumeration is exact."""
        return torch.zeros_like(self.spread) if self.exact else (self.spread / self.batches).sqrt()

    def __str__(self) -> str:
        how = "exact" if self.exact else f"sampled, standard error {float(self.standard_error.norm()):.1e}"
        return (
            f"scale {self.scale:.6f}, cosine {self.cosine:.6f}, relative bias {self.relative_bias:.2e} "
            f"({self.direction_bias:.2e} after rescaling), variance {self.variance:.4g}; {self.batches} batches, {how}"
        )


@dataclass
class Estimator:
    """A recipe on a lab's policy: which batches there are, how probable each is, and the gradient of each.

    A batch ("unit" where many are packed into one `Batch`) is `shape` = (groups, group size) indices of sequences.
    """

    lab: "ExactLab"
    recipe: Recipe
    shape: tuple[int, int]
    theta: Tensor
    old: Tensor
    behavior: Tensor
    ref: Tensor
    given: dict[str, Tensor]
    packs: bool = field(default=True, init=False)
    identities: torch.Generator | None = field(default=None, init=False)

    @property
    def words(self) -> int:
        """Sequences of one prompt."""
        return len(self.lab.words) // self.lab.prompts

    @property
    def reference_rows(self) -> int:
        """Rows of a group that are the reference answer."""
        return min(getattr(self.recipe.rollout, "reference_rows", 0), self.shape[1] - 1)

    def run(self, truth: Tensor, *, limit: int | None, samples: int, seed: int, shuffle: bool = False) -> Estimate:
        """The estimate, by enumeration up to `limit` batches, else from `samples` of them."""
        if min(self.shape) < 1 or samples < 2:
            raise UsageError(
                f"estimate(groups={self.shape[0]}, group_size={self.shape[1]}, samples={samples}): at least 1 group of 1 row, and "
                "2 samples."
            )
        self.columns = self._sequence_columns()
        generator = torch.Generator().manual_seed(seed)
        if shuffle:
            self.packs, self.identities, limit = False, torch.Generator().manual_seed(seed + 1), -1
        # Whether batches pack is seen on a few first, rare sequences included: it decides how many can be afforded.
        trial = torch.randint(len(self.lab.words), (24, *self.shape), generator=generator)
        if not shuffle:
            self._check_order(trial[:8], generator)
        for _ in self._gradients(trial):
            pass
        default = PACKED_ROWS // (self.shape[0] * self.shape[1]) if self.packs else ALONE_BATCHES
        exact = self._count() <= (default if limit is None else limit)
        units, weights, kept = self._all() if exact else self._draw(samples, generator)
        first, second = torch.zeros_like(truth), torch.zeros_like(truth)
        for index, gradients in self._gradients(units):
            weight = weights[index]
            first += torch.einsum("u,unv->nv", weight, gradients)
            second += torch.einsum("u,unv->nv", weight, gradients**2)
        spread = (second - first**2).clamp(min=0)
        if not exact:
            spread *= samples / (samples - 1)
        return Estimate(first, truth, spread, len(units), exact, self.packs, kept)

    def draw(self, samples: int, seed: int) -> Tensor:
        """Gradients of batches drawn at random, [samples, N, V]."""
        self.columns = self._sequence_columns()
        units, _, _ = self._draw(samples, torch.Generator().manual_seed(seed))
        found = torch.empty(samples, *self.theta.shape, dtype=torch.float64)
        for index, gradients in self._gradients(units):
            found[index] = gradients
        return found

    def _count(self) -> int:
        groups, size = self.shape
        return multisets_count(self.lab.prompts * multisets_count(self.words, size - self.reference_rows), groups)

    def _all(self) -> tuple[Tensor, Tensor, float]:
        """Every batch [U, groups, size], its probability [U] among those with kept groups only, and a group's chance of that."""
        drawn = multisets(self.words, self.shape[1] - self.reference_rows)
        prompt = torch.arange(self.lab.prompts).repeat_interleave(len(drawn))
        drawn = drawn.repeat(self.lab.prompts, 1) + self.words * prompt.unsqueeze(1)
        row_logp = self.lab.logp(self.behavior).sum(1)
        group_logp = log_multiplicity(drawn) + row_logp[drawn].sum(1) - math.log(self.lab.prompts)
        rows = self._with_reference(drawn, prompt)
        keep = self._keep(rows)
        if not keep.any():
            raise UsageError(
                f"the curriculum of '{self.recipe.name}' keeps no group of {self.shape[1]} of this lab's sequences: their rewards "
                "never differ."
            )
        rows, group_logp = rows[keep], group_logp[keep]
        kept = group_logp.logsumexp(0)
        units = multisets(len(rows), self.shape[0])
        weights = (log_multiplicity(units) + (group_logp - kept)[units].sum(1)).exp()
        return rows[units], weights, 1.0 if keep.all() else float(kept.exp())

    def _draw(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        """As `_all`, for `samples` batches drawn at random."""
        probability = self.lab.probability(self.behavior).view(self.lab.prompts, -1)
        size = self.shape[1] - self.reference_rows
        wanted, tried = samples * self.shape[0], 0
        found = torch.empty(0, self.shape[1], dtype=torch.int64)
        while len(found) < wanted:
            prompt = torch.randint(self.lab.prompts, (wanted,), generator=generator)
            rows = torch.multinomial(probability[prompt], size, replacement=True, generator=generator).sort(1).values
            rows = self._with_reference(rows + self.words * prompt.unsqueeze(1), prompt)
            found = torch.cat([found, rows[self._keep(rows)]])
            tried += wanted
            if tried >= 100 * wanted and not len(found):
                raise UsageError(
                    f"the curriculum of '{self.recipe.name}' kept none of {tried} groups of {self.shape[1]}: their rewards hardly "
                    "ever differ. Take a larger group_size or another reward."
                )
        weights = torch.full((samples,), 1 / samples, dtype=torch.float64)
        return found[:wanted].view(samples, *self.shape), weights, len(found) / tried

    def _with_reference(self, rows: Tensor, prompt: Tensor) -> Tensor:
        """Groups [M, drawn] of the prompts [M], and the reference answer in the places that are left, [M, size]."""
        best = self.lab.rewards.view(self.lab.prompts, -1).argmax(1) + self.words * torch.arange(self.lab.prompts)
        return torch.cat([rows, best[prompt].unsqueeze(1).expand(-1, self.reference_rows)], 1)

    def _keep(self, rows: Tensor) -> Tensor:
        """Which groups [M, size] the curriculum trains on, judged on the task's reward, [M] bool."""
        keep = getattr(self.recipe.curriculum, "keep", None)
        if keep is None:
            return torch.ones(len(rows), dtype=torch.bool)
        reward = self.lab.rewards[rows.flatten()]
        group = torch.arange(len(rows)).repeat_interleave(rows.shape[1])
        return keep(Batch(logp=torch.zeros(len(reward), 1), reward=reward, group=group))

    def _gradients(self, units: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(index of units [u], their gradients [u, N, V]), chunk by chunk.

        Units of equal token count share every denominator of tokens or rows, so that a packed batch of n of them has the mean (or
        the sum) of their losses. That nothing else couples them is not assumed: in each chunk three units are evaluated
        alone too, and where one differs, they all are.
        """
        tokens = self.lab.mask.sum(1)[units].sum((1, 2))
        per_chunk = max(CHUNK_ROWS // (self.shape[0] * self.shape[1]), 1)
        for count in tokens.unique():
            for index in (tokens == count).nonzero().squeeze(1).split(per_chunk):
                gradients = self._packed(units[index]) if self.packs else None
                self.packs = gradients is not None
                yield index, self._alone(units[index]) if gradients is None else gradients

    def _packed(self, units: Tensor) -> Tensor | None:
        """Gradients [u, N, V] from one backward pass, or None where units alone have others."""
        total = self._backward(units)
        norms = total.flatten(1).norm(dim=1)
        check = torch.tensor([int(norms.argmax()), len(units) // 3, (2 * len(units)) // 3])
        alone = self._alone(units[check])
        for factor in (len(units), 1):  # losses are means over units, or sums
            if _same(factor * total[check], alone):
                return factor * total
        return None

    def _check_order(self, units: Tensor, generator: torch.Generator) -> None:
        order = torch.rand(units.shape, generator=generator).argsort(-1)
        if not _same(self._alone(units), self._alone(units.gather(-1, order).flip(1))):
            raise UsageError(
                f"'{self.recipe.name}' depends on the order of the rows, so its batches cannot be enumerated up to order. "
                "Replace the part that does, such as LocalTokenMean, or draw batches in random order: shuffle=True."
            )

    def _alone(self, units: Tensor) -> Tensor:
        return torch.cat([self._backward(unit.unsqueeze(0)) for unit in units])

    def _backward(self, units: Tensor) -> Tensor:
        """-(gradient of the loss of all units as one batch), split by unit, [u, N, V].

        Every row has its own copy of the logits that it meets, so one backward pass tells which unit each share came from.
        """
        lab, rows = self.lab, units.flatten()
        prefix, mask = lab.prefix[rows], lab.mask[rows]
        logits = self.theta[prefix].requires_grad_()
        loss, _ = self.recipe(self._batch(logits, units))
        share = torch.zeros_like(logits)
        if loss.requires_grad:
            (share,) = torch.autograd.grad(loss, logits)
        states = len(lab.theta)
        unit = torch.arange(len(units)).repeat_interleave(self.shape[0] * self.shape[1]).unsqueeze(1)
        place = (unit * states + prefix)[mask]
        summed = torch.zeros(len(units) * states, lab.vocabulary, dtype=torch.float64).index_add_(
            0, place, -share[mask]
        )
        return summed.view(len(units), states, lab.vocabulary)

    def _batch(self, logits: Tensor, units: Tensor) -> Batch:
        """The columns that the recipe reads, for the rows of all units; logits [R, T, V]."""
        rows, size = units.flatten(), self.shape[1]
        recipe, log_distribution = self.recipe, logits.log_softmax(-1)
        logp = log_distribution.gather(-1, self.lab.sequences[rows].unsqueeze(-1)).squeeze(-1)
        group = torch.arange(len(rows)) // size
        trajectory, prompt_key = torch.arange(len(rows)), self.lab.prompt[rows]
        if self.identities is not None:
            trajectory = torch.randint(1 << 62, (len(rows),), generator=self.identities)
            prompt_key = torch.randint(1 << 62, (len(rows) // size,), generator=self.identities)[group]
        made = {
            "logp": logp,
            "log_distribution": log_distribution,
            "entropy": -(log_distribution.exp() * log_distribution).sum(-1),
            "group": group,
            "prompt": group,
            "trajectory": trajectory,
            "prompt_key": prompt_key,
        }
        if "entropy" not in recipe.needs_each_pass:
            del made["entropy"]  # read before the update only: the old policy's
        for name, function in recipe.observes().items():
            if name in recipe.needs_each_pass:
                seen = function(log_distribution.detach().flatten(0, 1), self.lab.sequences[rows].flatten())
                made[name] = seen.view(logp.shape)
        wanted = recipe.needs | {"logp", "mask"}
        absent = sorted(wanted - set(made) - set(self.columns))
        if absent:
            raise UsageError(
                f"'{self.recipe.name}' reads the column{'s' * (len(absent) > 1)} {', '.join(absent)}, which the lab does not have. "
                f"Pass columns={{'{absent[0]}': ...}}, one entry per sequence: [{len(self.lab.words)}] or "
                f"[{len(self.lab.words)}, {self.lab.horizon}]."
            )
        gathered = {name: column[rows] for name, column in self.columns.items() if name not in made}
        return Batch(**{name: column for name, column in {**gathered, **made}.items() if name in wanted})

    def _sequence_columns(self) -> dict[str, Tensor]:
        """Columns that depend on the row's sequence alone, [S] or [S, T]."""
        lab, old_value = self.lab, self.lab.value(self.old)
        distribution = lab.log_distribution(self.old)
        observed = {
            name: function(distribution.flatten(0, 1), lab.sequences.flatten()).view(lab.mask.shape)
            for name, function in {"entropy": entropy_of, **self.recipe.observes()}.items()
        }
        length = lab.mask.sum(1)
        last = lab.sequences.gather(1, length.unsqueeze(1) - 1).squeeze(1)
        own = {
            "mask": lab.mask,
            "tokens": lab.sequences,
            "reward": lab.rewards,
            "truncated": torch.zeros_like(lab.mask[:, 0]) if lab.eos is None else last != lab.eos,
            "source": torch.zeros_like(length),
            "turn": torch.zeros_like(lab.sequences),
            "expected_reward": lab.prompt_mean(self.old, lab.rewards)[lab.prompt],
            "answer": torch.arange(len(lab.words)),
            "old_logp": lab.logp(self.old),
            "anchor_logp": lab.logp(self.old),
            "behavior_logp": lab.logp(self.behavior),
            "ref_logp": lab.logp(self.ref),
            "old_value": old_value,
            "value": old_value,
            **observed,
        }
        for name, column in self.given.items():
            if column.shape[:1] != (len(lab.words),):
                raise UsageError(
                    f"estimate(columns={{'{name}': ...}}) has shape {list(column.shape)}; its first axis must be the "
                    f"{len(lab.words)} sequences of lab.words."
                )
        given = {n: c.double() if c.is_floating_point() else c for n, c in self.given.items()}
        return {**own, **given}


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * (1e-3 + float(other.abs().max())))
