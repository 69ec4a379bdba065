"""Folders are opened, or refused with what is wrong and what to do."""

import json
import shutil

import pytest
import torch

from upslope.errors import UsageError
from upslope.policies.language import LanguagePolicy
from upslope.policies.loading import UNLIMITED, context_length

CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}9{% endif %}"


@pytest.fixture(scope="module")
def saved(make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    LanguagePolicy(make_model("Llama"), tokenizer).save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "llama")


def test_save_and_load(saved, llama, make_rollouts):
    policy = LanguagePolicy.load(saved)
    original = LanguagePolicy(llama, None)
    assert policy.packing == "tree"
    assert (policy.device.type, policy.dtype, policy.context_length) == ("cpu", torch.float32, 96)
    assert torch.equal(policy.score(make_rollouts())["logp"], original.score(make_rollouts())["logp"])
    assert not policy.model.training
    assert [file.name for file in saved.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(saved.glob("*.bin"))


def test_encode_and_decode(saved):
    policy = LanguagePolicy.load(saved)
    ids = policy.encode("ab1")
    assert ids == [13, 14, 4]
    assert policy.decode([*ids, 2]) == "ab1"
    messages = [{"role": "user", "content": "12"}]
    with pytest.raises(UsageError, match="no chat template"):
        policy.encode(messages)
    policy.tokenizer.chat_template = CHAT
    assert policy.encode(messages) == policy.encode("129")


def test_dtype_and_names(saved):
    assert LanguagePolicy.load(str(saved), dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    for settings, message in (
        ({"dtype": "float33"}, "dtype is 'float33'"),
        ({"dtype": "int64"}, "dtype is 'int64'"),
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"device": "cuda:7"}, "no device 'cuda:7'"),
    ):
        with pytest.raises(UsageError, match=message):
            LanguagePolicy.load(saved, **settings)


def test_no_padding_token_is_no_harm(folder, make_rollouts):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    policy = LanguagePolicy.load(folder, packing="padded")
    assert policy.tokenizer.pad_token_id == 2
    expected = LanguagePolicy.load(folder).score(make_rollouts())["logp"]
    torch.testing.assert_close(policy.score(make_rollouts())["logp"], expected)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def pickle_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def remove_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def grow_tokenizer(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<more>", "<yet more>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "There is no folder"),
        (lambda f: (f / "config.json").unlink(), "has no config.json, so it is not .* It holds .*model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "Cannot open the config"),
        (lambda f: edit_config(f, model_type="nonesuch"), "Cannot open the config .*nonesuch"),
        (lambda f: edit_config(f, num_hidden_layers=3), r"lacks 9 of the weights .* model\.layers\.2"),
        (lambda f: (f / "model.safetensors").unlink(), "has a config.json but no weights"),
        (lambda f: truncate(f / "model.safetensors", 1000), "Cannot open the weights"),
        (pickle_weights, r"only as pickle \(pytorch_model.bin\)"),
        (remove_tokenizer, "has no tokenizer"),
        (lambda f: truncate(f / "tokenizer.json", 100), "Cannot open the tokenizer"),
        (grow_tokenizer, "has ids up to 62, but the model embeds only 61 tokens"),
    ],
)
def test_damage_is_named(damage, message, folder):
    damage(folder)
    with pytest.raises(UsageError, match=message):
        LanguagePolicy.load(folder)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(UsageError, match="is a file"):
        LanguagePolicy.load(folder / "config.json")


def test_names_that_look_like_folders(tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    for name in ("./nowhere", "/no/where", "a/b/c", "runs/"):
        with pytest.raises(UsageError, match="There is no folder"):
            LanguagePolicy.load(name)
    with pytest.raises(UsageError, match="not a folder here, so it was looked up on the hub"):
        LanguagePolicy.load("nobody/no-such-model")


def test_encoder_decoders_are_refused(tmp_path):
    from transformers import T5Config

    T5Config(vocab_size=61, d_model=16, num_layers=1).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="encoder-decoder"):
        LanguagePolicy.load(tmp_path)


def test_context_length_of_models_without_one(make_model):
    assert context_length(make_model("GPT2").config) == 96
    assert context_length(make_model("Mamba", max_position_embeddings=None).config) == UNLIMITED


def test_the_embedded_model(make_rollouts):
    policy = LanguagePolicy.load("tiny")
    assert policy.packing == "tree"
    assert policy.decode(policy.encode("12+3")) == "12+3"
    assert torch.isfinite(policy.score(make_rollouts())["logp"]).all()


def test_a_long_text_is_encoded_without_a_warning_of_the_tokenizers(caplog):
    policy = LanguagePolicy.load("tiny")
    with caplog.at_level("WARNING", logger="transformers"):
        assert len(policy.encode("1+1=" * 400)) > policy.context_length
    assert not caplog.records
