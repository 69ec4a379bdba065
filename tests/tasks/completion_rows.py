"""Rows with given completions, for the tests of their files."""

import json

from upslope.tasks.completions import open_completions

PAIRS = [{"prompt": f"{n} + 1 = ?", "chosen": f"{n + 1}", "rejected": f"{n}"} for n in range(40)]
USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "1+1?"), ("assistant", "2"), ("assistant", "3"))
)
SYSTEM = {"role": "system", "content": "Be brief."}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def examples(data):
    return [*data.examples("train"), *data.examples("eval")]


def only(row, kind, **settings):
    (example,) = examples(open_completions([row], kind, settings))
    return example.prompt, example.data["completions"]


def texts(row, kind="pairs", **settings):
    prompt, completions = only(row, kind, **settings)
    return prompt, [completion.text for completion in completions]


HH = "\n\nHuman: 1+1?\n\nAssistant:"
LONG = "\n\nHuman: hi\n\nAssistant: hello" + HH
