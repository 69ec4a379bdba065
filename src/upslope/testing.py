"""The contract that every method keeps, for our tests and for anybody's own methods: `check_method(name)`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from upslope.batch import SOURCES, Batch
from upslope.errors import UsageError
from upslope.recipe import Recipe
from upslope.registry import HEADINGS, find, list_methods, make

if TYPE_CHECKING:
    from upslope.trainer import Trainer

VOCABULARY = 7


def batch_of(
    rewards: Sequence[Sequence[float]], *, lengths: Sequence[int] | None = None, seed: int = 0, **columns: Any
) -> Batch:
    """A batch with one group per list of rewards, on-policy (old_logp = logp), float64, with every column a method may read.

    `lengths` gives each row's number of tokens (default: drawn from 1..5, seeded); further columns replace or add to the rest.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    reward = torch.tensor([r for group in rewards for r in group], dtype=torch.float64)
    rows = len(reward)
    length = torch.randint(1, 6, (rows,), generator=generator) if lengths is None else torch.tensor(lengths)
    mask = torch.arange(int(length.max())) < length.unsqueeze(1)
    logp = -normal(*mask.shape).abs() - 0.1
    group = torch.repeat_interleave(torch.arange(len(rewards)), torch.tensor([len(group) for group in rewards]))
    made = {
        "logp": logp,
        "old_logp": logp.clone(),
        "behavior_logp": logp.clone(),
        "ref_logp": logp + 0.1 * normal(*mask.shape),
        "mask": mask,
        "entropy": normal(*mask.shape).abs(),
        "value": normal(*mask.shape),
        "old_value": normal(*mask.shape),
        "reward": reward,
        "group": group,
        "prompt": group,
        "trajectory": torch.arange(rows),
        "source": torch.zeros(rows),
        "truncated": torch.zeros(rows, dtype=torch.bool),
        "tokens": torch.randint(0, VOCABULARY, mask.shape, generator=generator),
        "turn": torch.zeros(mask.shape, dtype=torch.int64),
        "prompt_key": 1000 + group,
        "masked_logp": logp - 0.5 * normal(*mask.shape).abs(),
        "anchor_logp": logp.clone(),
        "answer": torch.randint(0, 3, (rows,), generator=generator),
        "prediction": 1 + 4 * torch.rand(rows, generator=generator, dtype=torch.float64),
        "stratum": torch.randint(0, 2, (rows,), generator=generator),
        "expected_reward": 0.25 + 0.5 * (group % 2).double(),
        "hidden": normal(*mask.shape, 4),
        "label": reward.clamp(0, 1),
        **_gaussian(logp),
        "mismatched_logp": logp - 1,
        "mismatched_ref_logp": 1.1 * logp - 1,
        "grad_norm_squared": ((1 - logp.exp()) ** 2 * mask).sum(1),
        "predicted_gain": -0.01 * logp,
        "predicted_shift": 1e-4 * logp**2,
        "teacher_logp": logp + 0.3 * normal(*mask.shape),
        "teacher_kl": 0.2 + 0.1 * logp.sin(),
        "divergence": 0.3 + 0.2 * logp.cos(),
        **_played(logp),
    }
    made = {**made, **columns}
    rest = normal(*mask.shape, VOCABULARY)
    if "log_distribution" not in made and made["tokens"].shape == made["logp"].shape:
        made["log_distribution"] = _distribution(made["logp"].detach(), made["tokens"], rest)
    return Batch(**made)


def _played(logp: Tensor) -> dict[str, Tensor]:
    """Columns of what was played in an environment, made up from log-probs [R, T]."""
    return {
        "component_weight": torch.stack([logp.sin(), logp.cos(), logp], -1).softmax(-1),
        "best_component": (-3 * logp).long() % 3,
        "cost": 1 + logp.sin(),
        "post_value": logp.cos() + 0.1 * logp,
        "old_post_value": logp.cos(),
    }


def _gaussian(logp: Tensor) -> dict[str, Tensor]:
    """Columns of a denoising sampler, made up from log-probs [R, T]."""
    return {
        "mean": torch.stack([logp.sin(), logp.cos()], -1),
        "old_mean": torch.stack([logp.sin() + 0.1, logp.cos() + 0.1 * logp], -1),
        "ref_mean": torch.stack([logp.sin() - 0.1, logp.cos()], -1),
        "noise_scale": 0.2 + logp.exp(),
        "step_size": 0.1 + 0.1 * logp.exp(),
    }


def _distribution(logp: Tensor, tokens: Tensor, rest: Tensor) -> Tensor:
    """Log-probs [R, T, V] in which each token has its `logp`, and the others share what is left by softmax(rest)."""
    chosen = torch.nn.functional.one_hot(tokens.clamp(0, VOCABULARY - 1), VOCABULARY).bool()
    others = rest.masked_fill(chosen, -torch.inf).log_softmax(-1)
    left = torch.log1p(-logp.exp().clamp(max=1 - 1e-12)).unsqueeze(-1)
    return torch.where(chosen, logp.unsqueeze(-1), others + left)


def with_observed(recipe: Recipe, batch: Batch) -> Batch:
    """The batch with the columns that the recipe's parts observe of next-token distributions, from `log_distribution`."""
    log_probs, tokens = batch.log_distribution.flatten(0, 1), batch.tokens.flatten()
    made = {name: function(log_probs, tokens).view_as(batch.logp) for name, function in recipe.observes().items()}
    return batch.replace(**made)


def value_and_gradient(recipe: Recipe, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of a prepared batch and its gradient with respect to logp, [R, T] (0 where nothing depends on it)."""
    logp = batch.logp.detach().clone().requires_grad_()
    loss, _ = recipe.loss(batch.replace(logp=logp))
    (gradient,) = torch.autograd.grad(loss, logp, allow_unused=True) if loss.requires_grad else (None,)
    return loss.detach(), torch.zeros_like(logp) if gradient is None else gradient


def finite_differences(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of a function of an array, by central differences: what an independent NumPy loss says of ours."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[index] = step
        gradient[index] = (function(at + moved) - function(at - moved)) / (2 * step)
    return gradient


REWARDS = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.5], [1.0, 1.0]]


def methods_on_batches() -> list[str]:
    """Names of the methods that learn from a Batch of rows; the others learn from stored transitions."""
    return [name for name in list_methods() if isinstance(make(name), Recipe)]


def check_method(name: str, **columns: Any) -> None:
    """Runs a method through the contract; AssertionError or UsageError names what broke.

    Exactly its declared columns; row order, padding, micro-batch split; failed rewards; degenerate groups and extreme numbers;
    a page with every heading. `columns` are passed on to `batch_of` for methods that read columns of their own.
    """
    recipe = make(name)
    if not isinstance(recipe, Recipe):
        from upslope.actor_critic.contract import check_actor_critic

        check_actor_critic(recipe)
        check_page(name)
        return
    if "source" in recipe.needs:  # rows of both kinds within the prompts, so that no term is without any
        rows = torch.arange(sum(map(len, REWARDS)))
        columns = {"source": torch.where(rows % 3 == 1, SOURCES.index("teacher"), SOURCES.index("policy")), **columns}
    off_policy = batch_of(REWARDS, seed=1, **columns)
    shift = 0.3 * torch.randn(off_policy.logp.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batch = with_observed(recipe, off_policy.replace(old_logp=off_policy.logp + shift))
    check_columns(recipe, batch)
    check_invariances(recipe, batch)
    check_failed_rewards(recipe, batch)
    check_extremes(recipe, batch)
    check_page(name)


class KilledError(Exception):
    """What `check_resume` ends a run with."""


def check_resume(method: str, folder: Path, *, killed: int, **settings: Any) -> tuple["Trainer", "Trainer"]:
    """Trains a run, and another that is killed after step `killed` and resumed from its newest checkpoint before that.

    Returns both trainers. AssertionError where the policies' weights, or what was logged of the steps after the checkpoint, are
    not the same, bit for bit. `settings` are those of `Trainer`; `checkpoint_every` less than `killed` is among them.
    """
    from upslope.trainer import Trainer

    with Trainer(method, out=folder / "whole", **settings) as whole:
        whole.train()

    def kill(step: int, row: dict[str, Any]) -> None:
        if step == killed:
            raise KilledError

    try:
        with Trainer(method, out=folder / "cut", on_row=kill, **settings) as cut:
            cut.train()
    except KilledError:
        pass
    else:
        raise AssertionError(f"{method} had no step {killed} to be killed after")
    with Trainer(method, out=folder / "cut", resume=True, **settings) as resumed:
        assert 0 < resumed.step < killed, f"the checkpoint is of step {resumed.step}: nothing is resumed"
        first = resumed.step
        resumed.train()
    again = resumed.parts.policy.state_dict()
    for name, value in whole.parts.policy.state_dict().items():
        assert torch.equal(value, again[name]), f"{method}: {name} is another one after resuming"
    for one, other in zip([row for row in whole.rows if row["step"] > first], resumed.rows, strict=True):
        for name, value in one.items():
            timed = name.startswith("time/") or "per_second" in name
            same = timed or value == other[name] or (value != value and other[name] != other[name])
            assert same, f"{method}: {name} of step {one['step']} is {other[name]} after resuming, was {value}"
    return whole, resumed


def check_columns(recipe: Recipe, batch: Batch) -> None:
    """`needs` is exact: enough to run, and nothing in it unread."""
    exact = batch.only(recipe.needs)
    loss, _ = recipe(exact)
    assert loss.isfinite(), f"{recipe.name}: the loss is {loss}"
    for column in sorted(recipe.needs):
        complaint = ""
        try:
            recipe(exact.replace(**{column: None}))
        except UsageError as error:
            complaint = str(error)
        assert column in complaint, (
            f"{recipe.name} declares needs {column!r} but, without it, says: {complaint or 'nothing'}"
        )


def check_invariances(recipe: Recipe, batch: Batch) -> None:
    """Calling the recipe, row order, padding on the right, any split into micro-batches: the same loss and gradient."""
    prepared = recipe.prepare(batch)
    loss, gradient = value_and_gradient(recipe, prepared)

    learned = {"logp"} | ({"value", "divergence", "cost"} & recipe.needs)
    leaves = {name: getattr(batch, name).clone().requires_grad_() for name in learned}
    recipe(batch.replace(**leaves))[0].backward()
    assert any(leaf.grad is not None for leaf in leaves.values())
    called = leaves["logp"].grad  # None where only another is learned from, as in a reward model
    _same(recipe, "calling the recipe", torch.zeros_like(gradient) if called is None else called, gradient)

    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    shuffled_loss, shuffled_gradient = value_and_gradient(recipe, recipe.prepare(batch.select(order)))
    _same(recipe, "row order", shuffled_loss, loss)
    _same(recipe, "row order", shuffled_gradient, gradient[order])

    rows, width = batch.logp.shape
    padded = {
        n: torch.cat([c, c.new_zeros(rows, 3, *c.shape[2:])], 1)
        for n in batch
        if (c := getattr(batch, n)).shape[1:2] == (width,)
    }
    padded_loss, padded_gradient = value_and_gradient(
        recipe, recipe.prepare(Batch(**{**{n: getattr(batch, n) for n in batch}, **padded}))
    )
    _same(recipe, "padding", padded_loss, loss)
    _same(recipe, "padding", padded_gradient[:, :width], gradient)

    key = batch.group if recipe.keep_groups else torch.arange(rows) % 3
    pieces = [(key == k).nonzero().squeeze(1) for k in key.unique()]
    parts = [value_and_gradient(recipe, prepared.select(piece)) for piece in pieces]
    _same(recipe, "micro-batches", torch.stack([part[0] for part in parts]).sum(), loss)
    for piece, (_, part_gradient) in zip(pieces, parts, strict=True):
        _same(recipe, "micro-batches", part_gradient, gradient[piece])


def check_failed_rewards(recipe: Recipe, batch: Batch) -> None:
    """A row whose reward failed changes nothing: the batch is as if the row were not there, whatever its reward says."""
    if "reward" not in recipe.needs:
        return
    valid = torch.ones(len(batch), dtype=torch.bool)
    valid[1] = False
    reward = torch.where(valid, batch.reward, torch.nan)
    loss, gradient = value_and_gradient(recipe, recipe.prepare(batch.replace(valid=valid, reward=reward)))
    kept = valid.nonzero().squeeze(1)
    kept_loss, kept_gradient = value_and_gradient(recipe, recipe.prepare(batch.select(kept)))
    _same(recipe, "a failed reward", loss, kept_loss)
    _same(recipe, "a failed reward", gradient[kept], kept_gradient)
    assert not gradient[1].any(), f"{recipe.name}: a row whose reward failed has a gradient"


def check_extremes(recipe: Recipe, batch: Batch) -> None:
    """Equal rewards, groups of one, a fully masked row, ratios of 1e-4 and 1e4, rewards of 1e6: finite, or a part's UsageError."""
    rows = len(batch)
    masked = batch.mask.clone()
    masked[0] = False
    big = torch.full_like(batch.logp, 9.21)
    for case, variant in {
        "equal rewards": batch.replace(reward=torch.ones(rows, dtype=torch.float64)),
        "groups of one": batch.replace(group=torch.arange(rows)),
        "a masked row": batch.replace(mask=masked),
        "ratio 1e4": batch.replace(old_logp=batch.logp - big),
        "ratio 1e-4": batch.replace(old_logp=batch.logp + big),
        "rewards of 1e6": batch.replace(reward=batch.reward * 1e6),
    }.items():
        try:
            loss, gradient = value_and_gradient(recipe, recipe.prepare(variant))
        except UsageError as error:
            if "not finite" in str(error):
                raise AssertionError(f"{recipe.name}: {case}: {error}") from None
            continue
        assert loss.isfinite(), f"{recipe.name}: {case} give a loss of {loss}"
        assert gradient.isfinite().all(), f"{recipe.name}: {case} give a gradient that is not finite"


def check_page(name: str) -> None:
    """The page has a summary, a formula and every heading; the parent, if any, exists and differs."""
    found = find(name)
    sections = found.sections()
    missing = [heading for heading in ("Formula", *HEADINGS) if not sections.get(heading)]
    wanted = [heading for heading in missing if heading != "Differs from" or found.parent]
    assert not wanted, f"{found.file.name}: the module docstring lacks {', '.join(wanted)}"
    if found.parent:
        assert make(found.parent).parts() != make(name).parts(), (
            f"{name} has the very parts of its parent {found.parent}"
        )


def _same(recipe: Recipe, what: str, one: Tensor, other: Tensor) -> None:
    message = f"{recipe.name}: {what} changes the result"
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=lambda text: f"{message}. {text}")
