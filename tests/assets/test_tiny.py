"""The shipped model: what it promises is what lies in the package."""

import json
from importlib import resources
from itertools import islice
from pathlib import Path

import pytest
import reasoning_gym
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from upslope.tasks.holdout import is_held_out

TINY = Path(str(resources.files("upslope"))) / "assets" / "tiny"
SETTINGS = json.loads((TINY / "tasks.json").read_text())
TOKENIZER = AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY)


def instances(task, count, held_out=True):
    dataset = reasoning_gym.create_dataset(task, seed=77, size=100_000, **SETTINGS[task])
    return dataset, list(islice((e for e in dataset if is_held_out(e["question"]) == held_out), count))


def text_ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_folder_holds_what_was_promised_in_8_mb():
    files = {path.name: path.stat().st_size for path in TINY.rglob("*")}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= set(files)
    assert {"tokenizer.json", "tokenizer_config.json", "tasks.json"} <= set(files)
    assert sum(files.values()) <= 8_000_000


def test_an_ordinary_llama_with_no_parameter_missing(model):
    assert type(model) is LlamaForCausalLM
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(TOKENIZER)
    assert model.config.max_position_embeddings == TOKENIZER.model_max_length
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    ids = {TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id}
    assert len(ids) == 3
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == TOKENIZER.eos_token_id
        assert config.pad_token_id == TOKENIZER.pad_token_id


@given(st.text())
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(text_ids(text)) == text


@given(st.text())
def test_skipping_special_tokens_loses_no_ordinary_text(text):
    assert TOKENIZER.decode([*text_ids(text), TOKENIZER.eos_token_id], skip_special_tokens=True) == text


@given(st.integers(0, 10**12))
def test_digits_are_apart(number):
    assert [TOKENIZER.decode([token]) for token in text_ids(str(number))] == list(str(number))


def test_no_entry_joins_a_digit_to_anything():
    with_digit = [token for token in TOKENIZER.get_vocab() if any(c in "0123456789" for c in token)]
    assert sorted(with_digit) == list("0123456789")


@given(st.text(min_size=1))
def test_prompt_and_chat_are_the_same_tokens(text):
    prompt = TOKENIZER(text)["input_ids"]
    assert prompt == [TOKENIZER.bos_token_id, *text_ids(text), *text_ids("<|answer|>")]
    chat = TOKENIZER.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    assert chat["input_ids"] == prompt


def test_chat_with_an_answer_ends_in_the_end_token():
    messages = [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}]
    ids = TOKENIZER.apply_chat_template(messages)["input_ids"]
    assert ids == [*TOKENIZER.encode("1 + 1 ="), *text_ids("2"), TOKENIZER.eos_token_id]


@pytest.mark.parametrize("task", SETTINGS)
def test_recommended_settings(task):
    """reasoning-gym takes them; questions are short; both sides of the held-out rule are large enough."""
    _, held_out = instances(task, 200)
    assert len({entry["question"] for entry in held_out}) > 150
    assert max(len(TOKENIZER.encode(entry["question"])) for entry in held_out) < 80
    assert max(len(text_ids(entry["answer"])) for entry in held_out) < 32


def sampled_accuracy(model, task, count, samples, **how):
    """Whether each of `samples` answers to each of `count` held-out questions scores 1, [count, samples]."""
    dataset, entries = instances(task, count)
    prompts = TOKENIZER([entry["question"] for entry in entries], padding=True, return_tensors="pt")
    torch.manual_seed(0)
    with torch.no_grad():
        tokens = model.generate(**prompts, max_new_tokens=24, num_return_sequences=samples, **how)
    texts = TOKENIZER.batch_decode(tokens[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    scores = [dataset.score_answer(text, entries[row // samples]) for row, text in enumerate(texts)]
    return (torch.tensor(scores).view(count, samples) >= 1).float()


def test_demo_task_has_room_to_learn_and_the_answers_to_learn_from(model):
    correct = sampled_accuracy(model, "chain_sum", 64, 16, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    # 64 questions x 16 samples: the card's 0.32 with a standard error near 0.02.
    assert 0.25 <= correct.mean() <= 0.45
    assert correct.amax(1).mean() >= 0.9


def test_greedy_answers_are_often_wrong(model):
    """The likeliest tokens follow the likeliest demonstrator, unless several others begin with the same ones."""
    assert sampled_accuracy(model, "chain_sum", 64, 1, do_sample=False).mean() <= 0.8
