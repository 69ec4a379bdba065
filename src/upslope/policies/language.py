"""Language policies: any Hugging Face causal language model, computed on packed prefix trees.

    policy = LanguagePolicy.load("tiny")
    columns = policy.score(rollouts, frozenset({"logp", "entropy"}))      # [R, T] each, with gradient
    for rows in policy.plan(rollouts, tokens_per_pass=16384): ...         # micro-batches

The model stays in `eval()` mode: without dropout, a ratio of log-probs is exactly one before the first update.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.policies import loading, support
from upslope.policies.attention import Backend
from upslope.policies.heads import LogitFinish
from upslope.policies.logprobs import (
    LOGIT_COLUMNS,
    Wanted,
    columns_from_logits,
    columns_in_parts,
    observed_columns,
    positions_at_once,
)
from upslope.policies.lora import LoraSettings, adapters_off, add_adapters
from upslope.policies.network import Network
from upslope.policies.trained import Packing, TrainedModel
from upslope.recipe import Observation
from upslope.rollout import Rollouts

COLUMNS = (*LOGIT_COLUMNS, "hidden")

log = logging.getLogger("upslope")


class LanguagePolicy(TrainedModel):
    """A causal language model with its tokenizer, scored on packed prefix trees.

    model         a transformers PreTrainedModel, wrapped by peft where it has adapters; in eval mode
    tokenizer     its tokenizer, with a padding token (the end token where it had none)
    network       how the model runs over rollouts
    packing       "tree" or "padded": how rows are computed; decided once, from the model
    why_padded    the reason for "padded" where "tree" was not possible
    vocab_chunk   holds no more logits at once than there would be of so many words; None: as many as fit 64 MB
    top_k         entries of the columns "top_logp" and "top_ids"
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        packing: Packing = "auto",
        attention: Backend | Literal["auto"] = "auto",
        gradient_checkpointing: bool = False,
        vocab_chunk: int | None = None,
        top_k: int = 32,
    ) -> None:
        if vocab_chunk is not None and vocab_chunk < 1:
            raise UsageError(f"vocab_chunk is {vocab_chunk}: give a number of words, e.g. 4096, or None.")
        if tokenizer is not None and tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        pad = None if tokenizer is None else tokenizer.pad_token_id
        self.network = Network.of(model, pad, attention, gradient_checkpointing)
        self.tokenizer = tokenizer
        self.vocab_chunk = vocab_chunk
        self.top_k = top_k
        self.why_padded: str | None = None
        self._finish = LogitFinish.of(model.config)
        self._parts_agree: bool | None = None
        self._decide_packing(packing)
        if vocab_chunk is not None:
            self._check_chunks()

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        lora: LoraSettings | None = None,
        trust_remote_code: bool = False,
        packing: Packing = "auto",
        attention: Backend | Literal["auto"] = "auto",
        gradient_checkpointing: bool = False,
        vocab_chunk: int | None = None,
        top_k: int = 32,
    ) -> "LanguagePolicy":
        """Load an embedded model ("tiny", "tiny-teacher"), a Hugging Face folder, or a model of the hub.

        Args:
            name: "tiny", "tiny-teacher", a folder with config.json, safetensors and a tokenizer, or a hub id.
            device: "auto" (CUDA where there is one), or a torch device.
            dtype: "auto" (bfloat16 on a CUDA device that has it, else float32), or the name of a torch dtype.
            lora: train low-rank adapters only.
            trust_remote_code: run Python code that comes with the model.
            packing: "tree", "padded", or "auto": trees wherever the model supports them.
            attention: how attention over trees is computed: "segments" (CPU), "mask", "flex" (CUDA), or "auto".
            gradient_checkpointing: recompute each layer in backward, for memory.
            vocab_chunk: for memory, no more logits at once than there would be of so many words; None: all of a pass up to 2^24
                of them (64 MB), else those of a few positions at a time.
            top_k: entries of the columns "top_logp" and "top_ids".

        Raises:
            UsageError: nothing to load there, pickled weights only, no tokenizer, a tokenizer with more words than the
                model, an encoder-decoder, or `packing="tree"` for a model that does not support it.
        """
        model, tokenizer = loading.load(name, device, dtype, trust_remote_code)
        if lora is not None:
            model = add_adapters(model, lora)
        return cls(
            model,
            tokenizer,
            packing=packing,
            attention=attention,
            gradient_checkpointing=gradient_checkpointing,
            vocab_chunk=vocab_chunk,
            top_k=top_k,
        )

    def save(self, path: str | Path) -> None:
        """As TrainedModel.save. The settings of tasks that the model came with (tasks.json) are its own, too: they go along."""
        super().save(path)
        source = self.model.config._name_or_path
        if source and (tasks := Path(source) / "tasks.json").is_file():
            (Path(path) / "tasks.json").write_bytes(tasks.read_bytes())

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapters off inside the block: the policy is then the model that training started from.

        Raises:
            UsageError: the policy has no adapters.
        """
        with adapters_off(self.model):
            yield

    def frozen(self) -> "LanguagePolicy":
        """A copy that shares nothing with this policy and is not trained."""
        twin = copy.copy(self)
        twin.network = self.network.twin(copy.deepcopy(self.model).requires_grad_(False))
        return twin

    def score(
        self,
        rollouts: Rollouts,
        needs: frozenset[str] = frozenset({"logp"}),
        *,
        rows: Tensor | None = None,
        temperature: float = 1.0,
        adapter: bool = True,
        observe: Mapping[str, Observation] | None = None,
    ) -> dict[str, Tensor]:
        """Columns for the given rows (all, where None), with gradient where autograd records.

        logp               log-prob of each response token                       [r, T]
        entropy            of the distribution that predicts each token, nats    [r, T]
        log_distribution   that distribution's log-probs                         [r, T, V]
        top_logp, top_ids  its `top_k` largest log-probs, and their ids (int64)  [r, T, k]
        hidden             the state before the output layer that predicts it    [r, T, H]

        Masked positions are 0. All are float32 but `hidden`, which has the model's dtype. `temperature` divides the
        logits. With `adapter=False` adapters are switched off. "log_distribution" holds all logits, chunks or not.
        `observe` adds further columns [r, T] by name, without gradient: functions of log_probs [m, V] and tokens [m] to [m].

        Raises:
            UsageError: an unknown column, an empty prompt, a row longer than the context, a temperature that is not
                positive, `adapter=False` without adapters.
        """
        unknown = sorted(set(needs) - set(COLUMNS))
        if unknown:
            raise UsageError(f"score has no column {', '.join(unknown)}. It has: {', '.join(COLUMNS)}.")
        if not temperature > 0:
            raise UsageError(f"temperature is {temperature}: it divides the logits, so it must be positive.")
        with nullcontext() if adapter else self.reference():
            values = self._score(rollouts, needs, rows, Wanted(needs, temperature, self.top_k, observe or {}))
        return {name: value.to(rollouts.tokens.device) for name, value in values.items()}

    def _score(
        self, rollouts: Rollouts, needs: frozenset[str], rows: Tensor | None, wanted: Wanted
    ) -> dict[str, Tensor]:
        scored = self.network.prepare(rollouts, rows)
        if scored is None:
            shape = (len(rollouts) if rows is None else len(rows), rollouts.tokens.shape[1])
            return self._empty(needs | wanted.observe.keys(), shape)
        head, read = self.model.get_output_embeddings(), bool(wanted.columns or wanted.observe)
        words = head.weight.shape[0]
        few = None if "log_distribution" in needs else self._at_once(len(scored.target), words)
        hidden, logits = self.network.forward(scored, logits=read and few is None)
        values: dict[str, Tensor] = {}
        if read and few is None:
            values = columns_from_logits(logits, scored.state, scored.target, wanted)
            values |= observed_columns(lambda states: logits[states], scored, wanted, words)
        elif few is not None:
            values = columns_in_parts(hidden, head, self._finish, few, scored, wanted) if wanted.columns else {}
            values |= observed_columns(lambda states: self._finish(head(hidden[states])), scored, wanted, words)
        if "hidden" in needs:
            values["hidden"] = hidden.index_select(0, scored.state)
        return {name: scored.column(value) for name, value in values.items()}

    def _empty(self, needs: frozenset[str], shape: tuple[int, int]) -> dict[str, Tensor]:
        head = self.model.get_output_embeddings().weight
        tails = {"log_distribution": (head.shape[0],), "hidden": (head.shape[1],)}
        tails |= dict.fromkeys(("top_logp", "top_ids"), (min(self.top_k, head.shape[0]),))
        dtypes = {"hidden": head.dtype, "top_ids": torch.int64}
        return {n: head.new_zeros((*shape, *tails.get(n, ())), dtype=dtypes.get(n, torch.float32)) for n in needs}

    def _decide_packing(self, packing: Packing) -> None:
        if packing == "padded":
            return
        reason = support.why_not_packed(self.model) or self._failed_check()
        if reason is None:
            self.network.packing = "tree"
            return
        kind = self.model.config.model_type
        if packing == "tree":
            raise UsageError(f"{kind} cannot be computed on prefix trees: {reason}. Use packing='auto' or 'padded'.")
        self.why_padded = reason
        log.warning("%s is computed on padded rows, not on prefix trees: %s", kind, reason)

    def _failed_check(self) -> str | None:
        """Compare trees with padded rows on a few random tokens; the reason if they disagree or trees do not run."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        try:
            gap = packing_gap(self, support.probe(vocabulary, self.context_length, self.device))
        except NotImplementedError as error:
            return str(error)
        except Exception as error:  # whatever an unforeseen architecture trips over; the padded path does not need it
            return f"it fails on trees with {type(error).__name__}: {error}"
        if gap <= support.TOLERANCE[self.dtype]:
            return None
        return f"its log-probs on trees differ by {gap:.1e} from those on padded rows"

    def _at_once(self, positions: int, words: int) -> int | None:
        """Of how many positions logits are made at once; None for all, also where only the model's own forward can make them."""
        few = positions_at_once(positions, words, self.vocab_chunk)
        if few is None or self.vocab_chunk is not None:
            return few
        if self._parts_agree is None:
            self._parts_agree = self._gap_of_parts() <= support.TOLERANCE[self.dtype]
        return few if self._parts_agree else None

    @torch.no_grad()
    def _gap_of_parts(self) -> float:
        """Largest difference of log-probs from logits made one position at a time to those of whole logits."""
        rollouts = support.probe(self.model.get_input_embeddings().weight.shape[0], self.context_length, self.device)
        whole, parts = copy.copy(self), copy.copy(self)
        whole.vocab_chunk, whole._parts_agree, parts.vocab_chunk = None, False, 1
        return float((whole.score(rollouts)["logp"] - parts.score(rollouts)["logp"]).abs().max())

    def _check_chunks(self) -> None:
        gap = self._gap_of_parts()
        if not gap <= support.TOLERANCE[self.dtype]:
            raise UsageError(
                f"vocab_chunk does not work for {self.model.config.model_type}: log-probs in chunks differ by "
                f"{gap:.1e} from those of whole logits. Load it with vocab_chunk=None."
            )


def packing_gap(policy: LanguagePolicy, rollouts: Rollouts) -> float:
    """Largest absolute difference of log-probs between packed prefix trees and padded, repeated rows."""
    views = [copy.copy(policy), copy.copy(policy)]
    views[0].network = replace(policy.network, packing="tree")
    views[1].network = replace(policy.network, packing="padded")
    with torch.no_grad():
        packed, padded = (view.score(rollouts)["logp"] for view in views)
    return (packed - padded).abs().max().item()
