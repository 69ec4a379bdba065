"""The local engine: completions from the trainer's own weights, in the same process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from upslope.engines.call import Call, Wave
from upslope.engines.choice import choose_decoder
from upslope.engines.decoders import Decoder
from upslope.engines.sampling import check_sampling, draw
from upslope.engines.stopping import StopRule
from upslope.engines.waves import Budget, waves
from upslope.errors import UsageError
from upslope.recipe import Observation
from upslope.rollout import Rollouts, Sampling

RETIRED_SHARE = 0.125  # rows that have ended leave the batch once they are this share of it


class LocalEngine:
    """Samples completions with the weights of a policy: nothing is copied, so nothing has to be synchronized.

    A prompt is read once and shared by its rows, which are decoded together; rows that have ended leave the batch.
    What is drawn depends on the weights, the arguments and the state of the generator; how rows are batched matters to
    rounding only. On the CPU a call with the same generator state returns the same bits.

    Args:
        policy: an object with `model` (a transformers causal LM, perhaps with adapters), `tokenizer`, `device`, `dtype`
            and `context_length`. Its weights may change between calls.
        max_rows: rows that are decoded at once; the others wait. None: as many as 1 GiB of keys and values allows on
            the CPU, or a quarter of the device's memory, at most 1024. (A prompt with more rows than that is read again
            for each part.)
    """

    def __init__(self, policy: Any, *, max_rows: int | None = None) -> None:
        if max_rows is not None and max_rows < 1:
            raise UsageError(f"max_rows is {max_rows}, but has to be at least 1, or None for a bound by memory.")
        self.policy = policy
        self.max_rows = max_rows
        self._model: Any = None
        self._new_decoder: Callable[[], Decoder]
        self._stop_rules: dict[tuple[str, ...], StopRule] = {}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        counts: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator,
        observe: Mapping[str, Observation] | None = None,
    ) -> Rollouts:
        """Sample `counts[p]` completions of `prompts[p]`.

        A completion ends with an end token, with the token that completes a stop string (which stays in `tokens`, while
        `text` is cut before the string), after `sampling.max_tokens`, or where prompt and completion fill the context.

        Args:
            prompts: token ids of each prompt, P lists.
            counts: completions of each prompt, P numbers.
            sampling: how tokens are drawn.
            generator: advanced by one draw per call.
            observe: functions of log_probs [r, V] (temperature 1) and tokens [r] to [r], evaluated at every token; their values
                come back as `Rollouts.observed`.

        Returns:
            The completions on the CPU, R = sum(counts) rows ordered by prompt.

        Raises:
            UsageError: a prompt is empty, fills the context or holds an unknown token; counts or sampling are invalid.
            FloatingPointError: the model's logits are not finite; names row, prompt and step.
        """
        policy = self.policy
        check_sampling(sampling)
        vocab = policy.model.config.get_text_config().vocab_size
        check_prompts(prompts, counts, policy.context_length, vocab)
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
        call = Call(
            prompts, counts, sampling, seed, policy.context_length, self._stop_rule(sampling, vocab), observe or {}
        )
        with evaluating(policy.model), torch.inference_mode():
            self._choose(policy.model)
            kind = self._new_decoder()
            budget = Budget.of(policy.model.config, policy.dtype, policy.device, self.max_rows)
            lengths = [len(prompt) for prompt in prompts]
            for rows in waves(
                lengths, counts, call.width, budget, shared=kind.shares_prompts, equal_lengths=kind.equal_lengths
            ):
                decode(self._new_decoder(), call, torch.tensor(rows))
        return call.rollouts()

    def _choose(self, model: Any) -> None:
        if self._model is model:
            return
        # Adapters live inside the base model, whose forward pass is shorter than the wrapper's.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._new_decoder = choose_decoder(base, self.policy.context_length)
        self._model = model

    def _stop_rule(self, sampling: Sampling, vocab: int) -> StopRule:
        if sampling.stop not in self._stop_rules:
            config = getattr(self.policy.model, "generation_config", None)
            self._stop_rules[sampling.stop] = StopRule(self.policy.tokenizer, config, sampling.stop, vocab)
        return self._stop_rules[sampling.stop]


def decode(decoder: Decoder, call: Call, rows: Tensor) -> None:
    """Complete `rows` [r] int64 of `call` together."""
    distinct, row_prompt = call.prompt[rows].unique_consecutive(return_inverse=True)
    prompts = [call.prompts[prompt] for prompt in distinct.tolist()]
    wave = Wave(call, rows)
    logits = decoder.start(prompts, row_prompt, int(call.limit[rows].max()))
    while True:
        tokens, logp, behavior_logp = draw(logits, wave.uniform().to(logits.device), call.sampling)
        observed = [values.cpu() for values in wave.observe(logits, tokens)]
        wave.append(tokens.cpu(), logp.cpu(), behavior_logp.cpu(), observed)
        if wave.left == 0:
            break
        ended = len(wave.rows) - wave.left
        if ended and ended >= RETIRED_SHARE * len(wave.rows):
            kept = wave.alive.nonzero()[:, 0]
            decoder.keep(kept)
            wave.keep(kept)
            tokens = tokens[kept.to(tokens.device)]
        logits = decoder.step(tokens)
    wave.store()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode within; each as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_prompts(prompts: Sequence[Sequence[int]], counts: Sequence[int], context_length: int, vocab: int) -> None:
    """Raise UsageError for a prompt that cannot be continued, naming it."""
    if len(prompts) != len(counts):
        raise UsageError(f"{len(prompts)} prompts, but {len(counts)} counts: give the number of rows of each prompt.")
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        if count < 0:
            raise UsageError(f"counts[{index}] is {count}, but the number of rows of a prompt is 0 or more.")
        if not len(prompt):
            raise UsageError(f"Prompt {index} is empty: it needs at least one token, such as the tokenizer's BOS.")
        if len(prompt) >= context_length:
            raise UsageError(
                f"Prompt {index} has {len(prompt)} tokens, which leaves no room for a completion in the model's context "
                f"of {context_length}. Shorten or leave out such prompts."
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            wrong = next(token for token in prompt if not 0 <= token < vocab)
            raise UsageError(
                f"Prompt {index} holds token {wrong}, but the model's vocabulary ends at {vocab - 1}. "
                "Use the tokenizer that belongs to the model."
            )
