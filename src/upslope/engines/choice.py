"""Which decoder a model gets: the quickest one that reproduces the model's plain forward pass on a small probe."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from upslope.engines.decoders import CacheDecoder, Decoder, SharedPrefixDecoder
from upslope.engines.llama import MODEL_TYPES
from upslope.errors import UsageError
from upslope.policies.support import TOLERANCE, model_dtype, why_not_packed

log = logging.getLogger("upslope")

PROMPTS, ROWS, STEPS = (7, 4), (0, 0, 1), 3  # the probe: prompt lengths, the prompt of each row, tokens per row


def choose_decoder(model: Any, context_length: int) -> Callable[[], Decoder]:
    """What makes decoders for `model`; says in the log why they do not share prompts, where they do not.

    Raises:
        UsageError: no decoder reproduces the model's plain forward pass.
    """
    shared = partial(SharedPrefixDecoder, model, context_length)
    reason = why_not_packed(model)
    if reason is None and model.config.model_type in MODEL_TYPES:
        reason = _why_wrong(partial(shared, direct=True), model)
        if reason is None:
            return partial(shared, direct=True)
        log.warning("Generation goes through the model's forward pass, which is slower for small models: %s.", reason)
    reason = why_not_packed(model) or _why_wrong(partial(shared, direct=False), model)
    if reason is None:
        return partial(shared, direct=False)
    log.warning(
        "Generation keeps each prompt once per completion instead of once per group, which takes more time and memory "
        "for long prompts, because of the model: %s.",
        reason,
    )
    cached = partial(CacheDecoder, model, context_length)
    for equal_lengths in (False, True):
        reason = _why_wrong(partial(cached, equal_lengths=equal_lengths), model)
        if reason is None:
            return partial(cached, equal_lengths=equal_lengths)
    raise UsageError(
        f"Cannot generate with {type(model).__name__}: token by token, through its cache, it does not do what it does on a "
        f"whole sequence; {reason}."
    )


@torch.inference_mode()
def _why_wrong(new_decoder: Callable[[], Decoder], model: Any) -> str | None:
    """What differs between a decoder's log-probs and those of one plain forward pass; None if only rounding does."""
    try:
        gap = max(gaps(new_decoder(), model))
    except Exception as error:  # whatever a model's own code raises, it only means: not in this way
        return f"its forward pass does not support it ({type(error).__name__}: {error})"
    tolerance = TOLERANCE.get(model_dtype(model), 0.2)
    # NaN passes here: weights that are not finite are reported by the generation itself, with row and step.
    return f"log-probs were off by {gap:.1e} in a check, more than {tolerance:.0e}" if gap > tolerance else None


def gaps(decoder: Decoder, model: Any) -> Iterator[float]:
    """Largest difference in log-prob between decoder and plain forward pass, after each step of the probe."""
    device = next(model.parameters()).device
    vocab = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocab, (sum(PROMPTS) + STEPS * len(ROWS),), generator=torch.Generator().manual_seed(0))
    first, second, *drawn = ids.split([*PROMPTS, *[len(ROWS)] * STEPS])
    if decoder.equal_lengths:
        first = first[: len(second)]
    rows = [[first, second][prompt] for prompt in ROWS]
    logits = decoder.start([first.tolist(), second.tolist()], torch.tensor(ROWS), STEPS)
    yield _gap(model, rows, logits)
    for step, tokens in enumerate(drawn):
        if step == 1:  # retire a row, so that the groups become equal again and row order is put to the test
            kept = torch.tensor([1, 2])
            decoder.keep(kept)
            rows = [rows[row] for row in kept]
        tokens = tokens[: len(rows)]
        logits = decoder.step(tokens.to(device))
        rows = [torch.cat([row, token[None]]) for row, token in zip(rows, tokens, strict=True)]
        yield _gap(model, rows, logits)


def _gap(model: Any, rows: list[Tensor], logits: Tensor) -> float:
    plain = torch.stack([model(input_ids=row[None].to(logits.device), use_cache=False).logits[0, -1] for row in rows])
    return float((logits.float().log_softmax(-1) - plain.float().log_softmax(-1)).abs().max())
