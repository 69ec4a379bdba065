"""Small models, rollouts and a tokenizer for the tests of policies."""

from collections.abc import Callable
from typing import Any

import pytest
import transformers

from upslope.rollout import Rollouts

from .models import build, random_rollouts


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    return build


@pytest.fixture
def llama() -> Any:
    return build("Llama")


@pytest.fixture
def make_rollouts() -> Callable[..., Rollouts]:
    return random_rollouts


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token per character, digits and letters, for VOCABULARY ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV"
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", bos_token="<s>", pad_token="<pad>"
    )
