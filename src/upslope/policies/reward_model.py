"""Reward models: a language model's backbone with a score, read at the last token that is not padding.

    reward = RewardModel.load("runs/rm-pairs/checkpoints/step-000100")
    reward.scores(rollouts)                                               # [R], with gradient where autograd records

The folders are those of transformers' AutoModelForSequenceClassification with one label, and the numbers are those of its own
forward pass. Completions of one prompt are computed on packed prefix trees, as a policy's are.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.policies import loading, support
from upslope.policies.attention import Backend
from upslope.policies.lora import LoraSettings, add_adapters, has_adapters
from upslope.policies.network import Network
from upslope.policies.passes import Pass
from upslope.policies.trained import Packing, TrainedModel
from upslope.recipe import Observation
from upslope.rollout import Rollouts

COLUMNS = frozenset({"value", "logp"})

log = logging.getLogger("upslope")


class ScoreNetwork(Network):
    """A transformers model with a score: the backbone runs, the layer `score` sees the states of the pass alone."""

    @staticmethod
    def check(model: Any) -> None:
        """Raises UsageError where the score is not a layer on the hidden states of a decoder."""
        score = getattr(model, "score", None)
        if score is None or unwrapped(model).base_model is unwrapped(model):
            raise UsageError(
                f"{type(model).__name__} does not read its score at the last token: it has no layer 'score' on a decoder's "
                "hidden states. Take a reward model that was made from a causal language model."
            )

    def forward(self, scored: Pass, logits: bool) -> tuple[Tensor, Tensor]:
        """Hidden states [n, H] and scores [n, 1] ([n, 0] where not asked for) at the states of the pass."""
        model = unwrapped(self.model)
        with self.running(scored) as inputs:
            states = model.base_model(**inputs, use_cache=False).last_hidden_state
        hidden = states.flatten(0, 1).index_select(0, scored.states)
        return hidden, model.score(hidden) if logits else hidden[:, :0]


def unwrapped(model: Any) -> Any:
    """The transformers model inside peft's."""
    return model.get_base_model() if has_adapters(model) else model


class RewardModel(TrainedModel):
    """A score for a prompt with a completion. In training it stands where the policy does, but writes nothing.

    model        a transformers model of type AutoModelForSequenceClassification with one label, perhaps wrapped by peft
    tokenizer    its tokenizer, with a padding token (the end token where it had none)
    network      how the model runs over rollouts
    pad          the token that the score is never read at; None: it is read at the last token, whatever that is
    why_padded   the reason why rows are padded where prefix trees were not possible
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        packing: Packing = "auto",
        attention: Backend | Literal["auto"] = "auto",
        gradient_checkpointing: bool = False,
    ) -> None:
        """Raises UsageError for a model whose own forward pass reads its score elsewhere."""
        if tokenizer is not None and tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.pad: int | None = model.config.get_text_config().pad_token_id
        self.network = ScoreNetwork.of(model, self.pad, attention, gradient_checkpointing)
        self.tokenizer = tokenizer
        self.why_padded: str | None = None
        self._decide_packing(packing)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        new: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        lora: LoraSettings | None = None,
        trust_remote_code: bool = False,
        packing: Packing = "auto",
        attention: Backend | Literal["auto"] = "auto",
        gradient_checkpointing: bool = False,
    ) -> "RewardModel":
        """Load a reward model from a Hugging Face folder or the hub.

        Args:
            name: as `LanguagePolicy.load` takes it.
            new: a causal language model will do: its backbone gets a score of random weights (torch's global generator).
            lora: train low-rank adapters and the score only.

        The others are those of `LanguagePolicy.load`.

        Raises:
            UsageError: nothing to load there, no score and not `new`, more than one label, a score that is read elsewhere than
                at the last token, and whatever `LanguagePolicy.load` refuses.
        """
        model, tokenizer = loading.load(name, device, dtype, trust_remote_code, "any score" if new else "score")
        text = model.config.get_text_config()
        if new and text.pad_token_id is None:  # transformers cannot score several rows without one
            text.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            model.config.pad_token_id = text.pad_token_id
        if lora is not None:
            model = add_adapters(model, lora, score=True)
        return cls(
            model,
            tokenizer,
            packing=packing,
            attention=attention,
            gradient_checkpointing=gradient_checkpointing,
        )

    def score(
        self,
        rollouts: Rollouts,
        needs: frozenset[str] = frozenset({"value"}),
        *,
        rows: Tensor | None = None,
        observe: Mapping[str, Observation] | None = None,
    ) -> dict[str, Tensor]:
        """The columns of the given rows (all, where None), with gradient where autograd records.

        value   the row's score at its last trained token, 0 elsewhere      [r, T] float32
        logp    0: a reward model has no log-probs; every batch has them    [r, T] float32

        Raises:
            UsageError: another column, an empty prompt, a row longer than the context.
        """
        unknown = sorted((set(needs) | set(observe or ())) - COLUMNS)
        if unknown:
            raise UsageError(
                f"a reward model has no column {', '.join(unknown)}. It has: {', '.join(sorted(COLUMNS))}."
            )
        mask = rollouts.mask if rows is None else rollouts.mask[rows]
        trained = mask.any(1).nonzero().squeeze(1)
        value = torch.zeros(mask.shape, device=mask.device)
        if len(trained):
            chosen = trained if rows is None else rows.to(trained.device)[trained]
            last = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).amax(1)[trained]
            value = value.index_put((trained, last), self.scores(rollouts, chosen))
        return {"value": value, "logp": torch.zeros(mask.shape, device=mask.device)}

    def scores(self, rollouts: Rollouts, rows: Tensor | None = None) -> Tensor:
        """Score [r] of each given row (all, where None), float32: of its prompt with the `length` tokens of its completion.

        Raises:
            UsageError: an empty prompt, a row longer than the context.
        """
        chosen = ending(rollouts if rows is None else rollouts.select(rows.to(rollouts.prompt.device)), self.pad)
        scored = self.network.prepare(chosen, None)
        assert scored is not None
        _, values = self.network.forward(scored, logits=True)
        return scored.column(values.float().squeeze(-1)[scored.state]).sum(1).to(rollouts.tokens.device)

    def _decide_packing(self, packing: Packing) -> None:
        """Compares padded rows with the model's own forward pass, and trees with padded rows, on a few random tokens."""
        kind = self.model.config.model_type
        rollouts = support.probe(self.model.get_input_embeddings().weight.shape[0], self.context_length, self.device)
        with torch.no_grad():
            expected, padded = self.by_transformers(rollouts), self.scores(rollouts)
        tolerance = support.TOLERANCE[self.dtype] * max(1.0, float(expected.abs().max()))
        if not (gap := float((padded - expected).abs().max())) <= tolerance:
            raise UsageError(
                f"{kind} reads its score elsewhere than at the last token: there it differs by {gap:.1e} from what its own "
                "forward pass gives. Take a reward model that was made from a causal language model."
            )
        if packing == "padded":
            return
        reason = support.why_not_packed(self.model) or self._failed_check(rollouts, padded, tolerance)
        if reason is None:
            return
        if packing == "tree":
            raise UsageError(f"{kind} cannot be computed on prefix trees: {reason}. Use packing='auto' or 'padded'.")
        self.why_padded = reason
        log.warning("the reward model (%s) is computed on padded rows, not on prefix trees: %s", kind, reason)

    def _failed_check(self, rollouts: Rollouts, padded: Tensor, tolerance: float) -> str | None:
        """Leaves the network on trees where they give the padded scores; otherwise the reason why not."""
        on_rows = self.network
        self.network = replace(on_rows, packing="tree")
        try:
            with torch.no_grad():
                gap = float((self.scores(rollouts) - padded).abs().max())
            if gap <= tolerance:
                return None
            reason = f"its scores on trees differ by {gap:.1e} from those on padded rows"
        except NotImplementedError as error:
            reason = str(error)
        except Exception as error:  # whatever an unforeseen architecture trips over; the padded path does not need it
            reason = f"it fails on trees with {type(error).__name__}: {error}"
        self.network = on_rows
        return reason

    def by_transformers(self, rollouts: Rollouts) -> Tensor:
        """Score [R] of every row by the model's own forward pass, one row at a time: what `scores` is checked against."""
        found = []
        for prompt, tokens, length in zip(
            rollouts.prompt.tolist(), rollouts.tokens, rollouts.length.tolist(), strict=True
        ):
            ids = torch.tensor([[*rollouts.prompts[prompt], *tokens[:length].tolist()]], device=self.device)
            found.append(self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().flatten()[0])
        return torch.stack(found).to(rollouts.tokens.device)


def ending(rollouts: Rollouts, pad: int | None) -> Rollouts:
    """The rollouts, each cut behind its last token that is not `pad`, with a slot behind it that alone is scored.

    A pass reads such a slot's state at the token before: where the score is. `length` [R] leaves the slot out.
    """
    width = rollouts.tokens.shape[1]
    place = torch.arange(width, device=rollouts.tokens.device)
    real = place < rollouts.length[:, None]
    if pad is not None:
        real = real & (rollouts.tokens != pad)
    end = torch.where(real, place + 1, 0).amax(1)
    prompts, prompt = list(rollouts.prompts), rollouts.prompt.clone()
    for row in (end == 0).nonzero().squeeze(1).tolist():  # nothing is completed: the score is read in the prompt
        ids = list(prompts[int(prompt[row])])
        while len(ids) > 1 and ids[-1] == pad:
            ids.pop()
        prompt[row] = len(prompts)
        prompts.append(ids)
    slots = torch.arange(width + 1, device=end.device) == end[:, None]
    return replace(
        rollouts,
        prompts=prompts,
        prompt=prompt,
        tokens=torch.nn.functional.pad(rollouts.tokens, (0, 1)),
        mask=slots,
        length=end,
    )
