"""Data files that cannot be read, or do not fit the model."""

import json

from .scene import QUESTIONS, Case

OWN = "train grpo --model TOY --data questions.jsonl --reward exact --out run --steps 1"
LINES = QUESTIONS.splitlines(keepends=True)


def asked(*lengths: int, count: int = 40) -> str:
    """Questions of the given lengths in characters, in turn; each token of the toy model is one byte."""
    return "".join(
        json.dumps({"question": f"q{i} ".ljust(lengths[i % len(lengths)], "?"), "answer": "1"}) + "\n"
        for i in range(count)
    )


def rows(*columns: str, count: int = 20) -> str:
    return "".join(json.dumps({column: f"{column}{i}" for column in columns}) + "\n" for i in range(count))


CASES = [
    Case("data is missing", OWN.replace("questions", "absent"), 2, ("absent.jsonl",)),
    Case("data is empty", OWN.replace("questions", "empty"), 2, ("empty.jsonl", "no row"), {"empty.jsonl": ""}),
    Case(
        "line 17 is cut off",
        OWN,
        2,
        ("questions.jsonl", "line 17"),
        {"questions.jsonl": "".join(LINES[:16]) + '{"question": "q16", "ans\n' + "".join(LINES[17:])},
    ),
    Case(
        "line 17 is a list",
        OWN,
        2,
        ("questions.jsonl", "line 17"),
        {"questions.jsonl": "".join(LINES[:16]) + "[1, 2]\n" + "".join(LINES[17:])},
    ),
    Case(
        "data is not UTF-8",
        OWN,
        2,
        ("questions.jsonl", "UTF-8"),
        {"questions.jsonl": b'{"question": "caf\xe9", "answer": "1"}\n'},
    ),
    Case(
        "row 5 has no question",
        OWN,
        2,
        ("questions.jsonl", "line 5", "question"),
        {"questions.jsonl": "".join(LINES[:4]) + '{"answer": "3"}\n' + "".join(LINES[5:])},
    ),
    Case(
        "a row has no answer",
        OWN,
        2,
        ("questions.jsonl", "answer"),
        {"questions.jsonl": "".join(LINES[:4]) + '{"question": "q4"}\n' + "".join(LINES[5:])},
    ),
    Case(
        "no column can be the prompt",
        OWN,
        2,
        ("no column can be the prompt", "a, b", "Expected"),
        {"questions.jsonl": rows("a", "b")},
    ),
    Case(
        "data of another kind",
        OWN.replace("questions.jsonl", "questions.docx"),
        2,
        ("questions.docx", ".jsonl"),
        {"questions.docx": "x"},
    ),
    Case(
        "Parquet that is none",
        OWN.replace("questions.jsonl", "questions.parquet"),
        2,
        ("questions.parquet", "Parquet"),
        {"questions.parquet": QUESTIONS},
    ),
    Case("folder without data", OWN.replace("questions.jsonl", "folder"), 2, ("folder",), {"folder/readme.md": "x"}),
    Case(
        "data without reward",
        OWN.replace(" --reward exact", ""),
        2,
        ("--reward FILE.py:FUNCTION",),
        {"questions.jsonl": rows("prompt", "n")},
    ),
    Case("exact without answers", OWN, 2, ("reference answer", "label_key"), {"questions.jsonl": rows("prompt", "n")}),
    Case(
        "unknown column as input",
        OWN + " --set task_settings.input_key=instruction",
        2,
        ("no column 'instruction'", "question, answer"),
    ),
    Case(
        "unknown setting of data", OWN + " --set task_settings.shuffle=true", 2, ("no setting 'shuffle'", "input_key")
    ),
    Case("one row only", OWN, 0, ("nothing to evaluate on", "eval_data"), {"questions.jsonl": LINES[0]}),
    Case(
        "some prompts are too long",
        OWN.replace("--steps 1", "--steps 2"),
        0,
        ("prompt too long", "longer than 88 tokens"),
        {"questions.jsonl": asked(10, 20, 90)},
    ),
    Case(
        "every prompt is too long",
        OWN,
        2,
        ("no training prompt fits into the 88 tokens", "the longest has 100", "max_tokens"),
        {"questions.jsonl": asked(100)},
    ),
    Case(
        "every training prompt is too long",
        OWN + " --set task_settings.eval_data=short.jsonl",
        2,
        ("no training prompt fits into the 88 tokens", "max_tokens"),
        {"short.jsonl": asked(10), "questions.jsonl": asked(100)},
    ),
    Case(
        "messages for a model without a chat template",
        OWN,
        2,
        ("chat template",),
        {"questions.jsonl": '{"prompt": [{"role": "user", "content": "hi"}], "answer": "1"}\n' * 3},
    ),
    Case("max_tokens beyond the context", OWN + " --set max_tokens=96", 2, ("max_tokens=96", "context of 96 tokens")),
    Case(
        "rate is far too large",
        OWN.replace("--steps 1", "--steps 9").replace("exact", "mine.py:score") + " --set optimizer.lr=1e30",
        1,
        ("failed:", "logits are not finite"),
        {"mine.py": "def score(completions, **columns):\n    return [float(len(set(one))) for one in completions]\n"},
    ),
    Case("no completion at all", OWN + " --set max_tokens=0", 2, ("max_tokens is 0", "at least 1")),
]
