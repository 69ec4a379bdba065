"""Reward models that are none, where none is read, or of another kind than asked for."""

import json
from collections.abc import Callable
from pathlib import Path

from .bad_models import copied
from .scene import Case, Make

TRAIN = "train grpo --model TOY --data questions.jsonl --out run --steps 1"
PAIRS = "".join(json.dumps({"prompt": f"p{i}", "chosen": "a", "rejected": "z"}) + "\n" for i in range(20))


def scoring(change: Callable[[Path], object] = lambda path: None, **settings: object) -> Make:
    """Makes a reward model of the toy's kind, changed."""

    def make(path: Path, toy: str) -> None:
        import transformers

        config = transformers.AutoConfig.from_pretrained(toy, **{"num_labels": 1, **settings})
        transformers.LlamaForSequenceClassification(config).save_pretrained(path)
        transformers.AutoTokenizer.from_pretrained(toy).save_pretrained(path)
        change(path)

    return make


CASES = [
    Case("reward model is missing", f"{TRAIN} --reward-model ./none", 2, ("--reward-model", "no folder")),
    Case(
        "reward model has no score",
        f"{TRAIN} --reward-model ./rm",
        2,
        ("--reward-model", "rm has no score (LlamaForCausalLM)", "upslope train rm --model ./rm"),
        {"rm": copied(lambda path: None)},
    ),
    Case(
        "reward model with several labels",
        f"{TRAIN} --reward-model ./rm",
        2,
        ("rm is a classifier into 2 classes", "one score"),
        {"rm": scoring(num_labels=2)},
    ),
    Case(
        "reward model without tokenizer",
        f"{TRAIN} --reward-model ./rm",
        2,
        ("--reward-model", "no tokenizer"),
        {"rm": scoring(lambda path: [(path / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")])},
    ),
    Case(
        "reward model as the model",
        "train grpo --model ./rm --data questions.jsonl --reward exact --out run --steps 1",
        2,
        ("rm is a reward model", "cannot write", "--reward-model"),
        {"rm": scoring()},
    ),
    Case(
        "reward model for given completions",
        "train dpo --model TOY --data pairs.jsonl --reward-model ./rm --out run --steps 1",
        2,
        ("'dpo' learns from completions that the data gives", "--reward-model would not be read"),
        {"rm": scoring(), "pairs.jsonl": PAIRS},
    ),
    Case(
        "critic from no reward model",
        "train rlhf_ppo --model TOY --data questions.jsonl --reward exact --out run --steps 1 --set critic_from=reward_model",
        2,
        ("critic_from=reward_model", "no --reward-model", "critic_from=policy"),
    ),
    Case(
        "a reward model is evaluated on a task",
        "train rm --model TOY --data pairs.jsonl --task chain_sum --out run --steps 1",
        2,
        ("writes nothing", "--task chain_sum", "Leave it out"),
        {"pairs.jsonl": PAIRS},
    ),
    Case(
        "a reward model of prompts alone",
        "train rm --model TOY --data questions.jsonl --out run --steps 1",
        2,
        ("no two columns can be the pair", "chosen_key"),
    ),
]
