"""Model folders that are incomplete, damaged or not what they say. Each is a copy of the toy model, changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from .scene import Case, Make

MODEL = "train grpo --model ./model --data questions.jsonl --reward exact --out run --steps 1"


def copied(change: Callable[[Path], object]) -> Make:
    """Makes a copy of the toy model, changed."""

    def make(path: Path, toy: str) -> None:
        shutil.copytree(toy, path)
        change(path)

    return make


def removed(*names: str) -> Make:
    return copied(lambda path: [(path / name).unlink() for name in names])


def pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def cut_off(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def without_layer(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    save_file({n: w for n, w in weights.items() if "layers.1" not in n}, path / "model.safetensors", {"format": "pt"})


def with_nan(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def with_more_words(path: Path) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"word{i}": len(vocabulary) + i for i in range(10)}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


def configured(**changes: object) -> Make:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changes}))

    return copied(change)


CASES = [
    Case("model is missing", MODEL, 2, ("no folder", "model", "tiny")),
    Case("model is a file", MODEL, 2, ("model is a file", "folder"), {"model": "x"}),
    Case("model has no config", MODEL, 2, ("model has no config.json", "It holds"), {"model": removed("config.json")}),
    Case(
        "model's config is cut off",
        MODEL,
        2,
        ("config of model",),
        {"model": copied(lambda path: (path / "config.json").write_text("{"))},
    ),
    Case("model has no weights", MODEL, 2, ("no weights", "safetensors"), {"model": removed("model.safetensors")}),
    Case(
        "model has no tokenizer",
        MODEL,
        2,
        ("no tokenizer", "save_pretrained"),
        {"model": removed("tokenizer.json", "tokenizer_config.json")},
    ),
    Case("weights are a pickle", MODEL, 2, ("pickle", "pytorch_model.bin", "safetensors"), {"model": copied(pickled)}),
    Case("weights are cut off", MODEL, 2, ("weights of model",), {"model": copied(cut_off)}),
    Case("weights are missing", MODEL, 2, ("lacks 9 of the weights", "layers.1"), {"model": copied(without_layer)}),
    Case(
        "weights of another shape",
        MODEL,
        2,
        ("model", "lm_head.weight", "258 x 32", "258 x 64"),
        {"model": configured(hidden_size=64)},
    ),
    Case("tokenizer has more words", MODEL, 2, ("ids up to 267", "only 258"), {"model": copied(with_more_words)}),
    Case(
        "unknown architecture",
        MODEL,
        2,
        ("model", "nonesuch"),
        {"model": configured(model_type="nonesuch", architectures=["Nonesuch"])},
    ),
    Case(
        "NaN in the weights",
        MODEL,
        2,
        ("model.layers.0.mlp.up_proj.weight of model", "NaN"),
        {"model": copied(with_nan)},
    ),
    Case(
        "doctor on a damaged model",
        "doctor --model ./model --task chain_sum",
        2,
        ("weights of model",),
        {"model": copied(cut_off)},
    ),
]
