"""Files with given completions, good and bad, and what training on each of them says."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

PAIRS = [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)]
LABELS = [{"prompt": f"p{n}", "completion": f"c {n}", "label": n % 2 == 0} for n in range(40)]
DEMOS = [{"prompt": f"p{n}", "completion": f"c {n}"} for n in range(40)]
TALKS = [
    {
        "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}],
    }
    for row in PAIRS
]
CONTEXT = 96  # of the toy model, whose tokens are bytes
LONG = "x" * 2 * CONTEXT


@dataclass(frozen=True)
class Given:
    """A file that a method is trained on for two steps, all of its rows in each.

    rows     what stands in the file; `suffix` says how
    status   0: it trains, to finite numbers; 2: it is refused in one line and no run is begun
    words    what the messages must say
    events   what is counted in the first step, by kind
    rest     further words of the command line
    model    TOY, or TALKER, which has a chat template
    """

    name: str
    method: str
    rows: list
    status: int = 0
    words: tuple[str, ...] = ()
    events: dict = field(default_factory=dict)
    suffix: str = "jsonl"
    rest: str = ""
    model: str = "TOY"


def at_17(rows, **changes):
    """The rows, of which the one of line 17 is another; a change to None takes the column out."""
    row = {name: value for name, value in {**rows[16], **changes}.items() if value is not None}
    return [*rows[:16], row, *rows[17:]]


def each(rows, **columns):
    return [{**row, **columns} for row in rows]


def write(folder: Path, given: Given) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"given.{given.suffix}"
    if given.suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in given.rows))
    elif given.suffix == "json":
        path.write_text(json.dumps(given.rows))
    elif given.suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, given.rows[0])
            writer.writeheader()
            shown = [{n: v if isinstance(v, str) else json.dumps(v) for n, v in row.items()} for row in given.rows]
            writer.writerows(shown)
    else:
        pq.write_table(pa.Table.from_pylist(given.rows), path)
    return path


def alike(*cases: tuple) -> list[Given]:
    """The same bad row for every method that reads it: name, change, status, words, events."""
    found = []
    for method, rows, completion in (
        ("dpo", PAIRS, "chosen"),
        ("reward_model_bt", PAIRS, "rejected"),
        ("kto", LABELS, "completion"),
        ("sft", DEMOS, "completion"),
    ):
        for name, column, value, status, words, events in cases:
            changed = at_17(rows, **{column or completion: value})
            said = tuple(word.replace("COLUMN", column or completion) for word in words)
            found.append(Given(f"{method}: {name}", method, changed, status, said, events))
    return found


CASES = [
    *alike(
        ("empty completion", None, "", 0, ("1 row left out: COLUMN is empty (e.g. given.jsonl line 17)",), {}),
        ("blank completion", None, " \n", 0, ("1 row left out: COLUMN is empty (e.g. given.jsonl line 17)",), {}),
        ("missing completion", None, None, 2, ("given.jsonl line 17 has no column 'COLUMN'",), {}),
        ("missing prompt", "prompt", None, 2, ("given.jsonl line 17 has no column 'prompt'",), {}),
        ("empty prompt", "prompt", "", 2, ("given.jsonl line 17: prompt is empty",), {}),
        ("completion of another type", None, 3, 2, ("given.jsonl line 17: COLUMN is a number",), {}),
        ("prompt fills the context", "prompt", "x" * CONTEXT, 0, ("prompt too long: longer than 95 tokens",),
         {"prompt too long": 1}),
        ("prompt longer than the context", "prompt", LONG, 0, ("prompt too long", "with 192"), {"prompt too long": 1}),
        ("completion longer than what remains", None, LONG, 0, ("completion cut: longer than",), {"completion cut": 1}),
    ),
    Given("pairs: chosen is rejected", "dpo", at_17(PAIRS, rejected="good 16"),
          words=("1 row left out: chosen and rejected are the same (e.g. given.jsonl line 17)",)),
    Given("pairs: chosen is rejected, for a reward model", "reward_model_bt", at_17(PAIRS, rejected="good 16"),
          words=("1 row left out: chosen and rejected are the same",)),
    Given("pairs: all the same", "dpo", each(PAIRS, chosen="a", rejected="a"), 2,
          ("no usable row", "40 rows left out: chosen and rejected are the same")),
    Given("pairs: no rejected at all", "dpo", DEMOS, 2, ("no two columns can be the pair", "rejected_key=COLUMN")),
    Given("pairs: every prompt is too long", "dpo", each(PAIRS, prompt=LONG), 2, ("no training prompt fits into the 95",)),
    Given("pairs: a score is NaN", "dpo", at_17(each(PAIRS, score_chosen=1.0, score_rejected=0.0), score_chosen=float("nan")),
          2, ("given.jsonl line 17: score_chosen is nan", "finite")),
    Given("pairs: a score is infinite", "reward_model_bt",
          at_17(each(PAIRS, score_chosen=1.0, score_rejected=0.0), score_rejected=float("-inf")),
          2, ("given.jsonl line 17: score_rejected is -inf", "finite")),
    Given("pairs: scores against the preference", "dpo",
          at_17(each(PAIRS, score_chosen=1.0, score_rejected=0.0), score_rejected=2.0),
          words=("1 pair whose preferred completion has the lower score (e.g. given.jsonl line 17): kept",)),
    Given("pairs: columns exchanged", "dpo", each(PAIRS, score_chosen=0.0, score_rejected=1.0), 2,
          ("in 40 of 40 scored pairs", "Are the columns exchanged")),
    Given("pairs: label out of range", "dpo", at_17(each(PAIRS, label=0.9), label=1.5), 2,
          ("given.jsonl line 17: label is 1.5", "from 0 to 1")),
    Given("pairs: soft labels", "dpo", each(PAIRS, label=0.9), words=("probability of the preference: label",)),
    Given("labels: out of range", "kto", at_17(LABELS, label=3), 2, ("given.jsonl line 17: label is 3",)),
    Given("labels: none at all", "kto", DEMOS, 2, ("no column can be the label", "label_key=COLUMN")),
    Given("labels: pairs are taken apart", "kto", PAIRS, words=("80 labels of 40 prompts", "40 desirable, 40 undesirable")),
    Given("labels: pairs of which one is no pair", "kto", at_17(PAIRS, rejected="good 16"),
          words=("1 row left out: chosen and rejected are the same", "39 desirable, 39 undesirable")),
    Given("labels: soft labels of pairs", "kto", each(PAIRS, label=0.9), 2, ("given.jsonl line 1: label is 0.9", "0 or 1")),
    Given("demonstrations: of pairs", "sft", PAIRS, words=("columns prompt, chosen; rejected is not read",)),
    Given("demonstrations: of labels", "sft", LABELS, words=("the column label is not read",)),
    Given("demonstrations: nothing to learn", "sft", [{"prompt": "a"}] * 5, 2, ("no column can be the completion",)),
    *(
        Given(f"{method} from {suffix}", method, rows, suffix=suffix, words=words)
        for suffix in ("json", "csv", "parquet")
        for method, rows, words in (
            ("dpo", PAIRS, ("pairs in columns prompt, chosen, rejected",)),
            ("kto", LABELS, ("20 desirable, 20 undesirable",)),
            ("sft", DEMOS, ("completions in columns prompt, completion",)),
        )
    ),
    *(
        Given(f"messages from {suffix}", "sft", TALKS, suffix=suffix, model="TALKER",
              words=("messages, each a whole conversation with its prompt",))
        for suffix in ("jsonl", "json", "csv", "parquet")
    ),
    Given("conversations as pairs", "dpo",
          [{"chosen": [*row["messages"]], "rejected": [row["messages"][0], {"role": "assistant", "content": "no"}]}
           for row in TALKS], words=("chosen, rejected, each a whole conversation",), model="TALKER"),
    Given("messages without a chat template", "sft", TALKS, 2, ("no chat template", "plain strings")),
    Given("messages without a role", "sft", at_17(TALKS, messages=[{"content": "x"}]), 2,
          ("given.jsonl line 17: messages: message 1: role is missing",), model="TALKER"),
    Given("messages that end with the user", "sft", at_17(TALKS, messages=TALKS[0]["messages"][:1]),
          words=("1 row left out: the last turn is not the assistant's (e.g. given.jsonl line 17)",), model="TALKER"),
    Given("teacher of another vocabulary", "opd", [{"question": f"q{n}", "answer": "1"} for n in range(40)], 2,
          ("the teacher tiny has another vocabulary than the model", "words differ"), rest="--reward exact --teacher tiny"),
    Given("no teacher", "opd", [{"question": f"q{n}", "answer": "1"} for n in range(40)], 2, ("--teacher MODEL",),
          rest="--reward exact"),
    Given("a teacher's prompt that is too long", "opd",
          [{"question": LONG if n == 16 else f"q{n}", "answer": "1"} for n in range(40)],
          words=("prompt too long",), events={"prompt too long": 1}, rest="--reward exact --teacher TOY --set max_tokens=4"),
]  # fmt: skip
