"""When a completion ends: end-of-sequence ids and stop strings."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CONTINUE, END, PERHAPS = 0, 1, 2
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StopRule:
    """Ends completions at any end-of-sequence id, and at stop strings in the decoded text.

    A stop string that is itself a special token of the tokenizer acts as an end-of-sequence id, because decoding leaves
    special tokens out. Other stop strings are looked for in the decoded text, so they may span token borders; text is
    decoded only after a token that could complete one.
    """

    def __init__(self, tokenizer: Any, generation_config: Any, stop: Sequence[str], vocab_size: int) -> None:
        self.tokenizer = tokenizer
        special = set(tokenizer.all_special_tokens)
        self.ids = end_ids(tokenizer, generation_config)
        self.ids |= {tokenizer.convert_tokens_to_ids(text) for text in stop if text in special}
        self.strings = tuple(text for text in stop if text not in special)
        self.table = torch.zeros(vocab_size, dtype=torch.uint8)
        if self.strings:
            self._mark_candidates()
        self.table[[index for index in self.ids if index < vocab_size]] = END

    def flags(self, tokens: Tensor) -> Tensor:
        """CONTINUE, END or PERHAPS (ask `ends_with_string`) for each token [r] int64; [r] uint8, on the CPU."""
        return self.table[tokens]

    def ends_with_string(self, tokens: Sequence[int]) -> bool:
        """Whether the text of a completion holds a stop string."""
        return self._find(self.decode(tokens)) >= 0

    def text(self, tokens: Sequence[int]) -> str:
        """The completion as text: no end token, no special tokens, cut before the first stop string."""
        if tokens and tokens[-1] in self.ids:
            tokens = tokens[:-1]
        text = self.decode(tokens)
        at = self._find(text)
        return text if at < 0 else text[:at]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _find(self, text: str) -> int:
        return min((at for string in self.strings if (at := text.find(string)) >= 0), default=-1)

    def _mark_candidates(self) -> None:
        """A token can complete a stop string only if its text has the string's last character, or a part of it.

        Decoded after another token, since some tokenizers drop the space before the first one.
        """
        last = {string[-1] for string in self.strings}
        anchor = next(i for i in range(len(self.tokenizer)) if self.decode([i]).strip())
        start = self.decode([anchor])
        known = min(len(self.tokenizer), len(self.table))
        texts = self.tokenizer.batch_decode(
            [[anchor, index] for index in range(known)], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for index, text in enumerate(texts):
            added = text.removeprefix(start) if text.startswith(start) else REPLACEMENT
            if REPLACEMENT in added or not last.isdisjoint(added):
                self.table[index] = PERHAPS


def end_ids(tokenizer: Any, generation_config: Any) -> set[int]:
    """The end-of-sequence ids of the tokenizer and of the model's generation config."""
    ids: set[int] = set()
    for source in (tokenizer, generation_config):
        value = getattr(source, "eos_token_id", None)
        ids |= set() if value is None else {value} if isinstance(value, int) else set(value)
    return ids
