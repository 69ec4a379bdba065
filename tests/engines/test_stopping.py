"""Stop strings are found wherever token borders fall, and only tokens that could complete one are looked at."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from upslope.engines.stopping import CONTINUE, END, PERHAPS, StopRule, end_ids

from .models import tokenizer_of


def byte_tokenizer(metaspace: bool = False) -> PreTrainedTokenizerFast:
    """BPE trained on a few words, at byte level or with the space mark of SentencePiece."""
    backend = Tokenizer(models.BPE(byte_fallback=metaspace))
    backend.pre_tokenizer = (
        pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    backend.decoder = decoders.Metaspace() if metaspace else decoders.ByteLevel()
    alphabet = [] if metaspace else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the answer </answer> is 7; a b é → done\n\n Question: end"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def rule(tokenizer, *stop: str) -> StopRule:
    return StopRule(tokenizer, SimpleNamespace(eos_token_id=None), stop, len(tokenizer))


@pytest.mark.parametrize("metaspace", [False, True])
@given(st.lists(st.integers(1, 80), min_size=1, max_size=14), st.data())
@settings(max_examples=40, deadline=None)
def test_a_string_is_found_at_the_first_token_that_completes_it(metaspace, tokens, data):
    tokenizer = byte_tokenizer(metaspace)
    tokens = [token % len(tokenizer) or 1 for token in tokens]
    whole = tokenizer.decode(tokens)
    start = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    stop = whole[start : start + data.draw(st.integers(1, 3))]
    if not stop:
        return
    stops = rule(tokenizer, stop)
    texts = [tokenizer.decode(tokens[:count]) for count in range(1, len(tokens) + 1)]
    first = next(count for count, text in enumerate(texts) if stop in text)
    assert int(stops.table[tokens[first]]) == PERHAPS
    assert stops.ends_with_string(tokens[: first + 1])
    assert not stops.ends_with_string(tokens[:first])
    assert stops.text(tokens[: first + 1]) == texts[first][: texts[first].index(stop)]


def test_few_tokens_are_candidates():
    stops = rule(tokenizer_of(["a", "b", "</answer>", "x>y", "answer"]), "</answer>")
    assert stops.table.tolist() == [CONTINUE, CONTINUE, END, CONTINUE, CONTINUE, PERHAPS, PERHAPS, CONTINUE]


def test_end_ids_of_all_sources():
    tokenizer = tokenizer_of(["a"])
    assert end_ids(tokenizer, SimpleNamespace(eos_token_id=[3, 5])) == {2, 3, 5}
    assert end_ids(tokenizer, SimpleNamespace(eos_token_id=7)) == {2, 7}
    assert end_ids(tokenizer, None) == {2}


def test_text_leaves_the_end_token_out_even_if_it_is_an_ordinary_word():
    tokenizer = tokenizer_of(["a", "b"])
    stops = StopRule(tokenizer, SimpleNamespace(eos_token_id=4), (), 5)
    assert stops.text([3, 3, 4]) == "aa"
    assert stops.text([3, 2]) == "a"
    assert stops.text([]) == ""
