"""The average of the weights of several models: a soup."""

from collections.abc import Sequence
from pathlib import Path

import torch

from upslope.errors import UsageError


@torch.no_grad()
def average_models(models: Sequence[str | Path], out: str | Path, shares: Sequence[float] | None = None) -> Path:
    """Writes the weighted mean of models of one architecture to the folder `out`; its path.

    models   Hugging Face folders, such as checkpoints of runs, or hub ids; the first gives tokenizer and configuration
    shares   of each, which add up to 1; equal ones where not given. Averaged in float32

    Raises UsageError for fewer than two models, shares that do not add up, or weights of different names or shapes.
    """
    from upslope.policies.language import LanguagePolicy

    shares = [1 / len(models)] * len(models) if shares is None and models else list(shares or ())
    if len(models) < 2 or len(shares) != len(models) or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(
            f"a soup needs two or more models and as many shares that add up to 1, not {len(models)} models with shares {shares}."
        )
    soup = LanguagePolicy.load(str(models[0]), device="cpu", dtype="float32")
    weights = dict(soup.model.named_parameters())
    for weight in weights.values():
        weight.mul_(shares[0])
    for name, share in zip(models[1:], shares[1:], strict=True):
        other = dict(LanguagePolicy.load(str(name), device="cpu", dtype="float32").model.named_parameters())
        shapes, theirs = ({key: tuple(weight.shape) for key, weight in of.items()} for of in (weights, other))
        if shapes != theirs:
            differing = sorted(key for key in shapes.keys() | theirs.keys() if shapes.get(key) != theirs.get(key))
            raise UsageError(
                f"{name} cannot be averaged with {models[0]}: {len(differing)} weights differ in name or shape, e.g. "
                f"{differing[0]}. Take models that were trained from the same one."
            )
        for key, weight in weights.items():
            weight.add_(other[key], alpha=share)
    soup.save(Path(out))
    return Path(out)
