"""Make the shipped preference pairs, src/upslope/assets/tiny/preferences.jsonl: right and wrong sums of the embedded model.

    python scripts/make_preferences.py

A few seconds. None of the prompts is held out: what is trained on them can be evaluated on chain_sum.
"""

import json
from pathlib import Path

from upslope.pairs import sample_pairs
from upslope.policies.language import LanguagePolicy
from upslope.tasks.base import ASSETS, open_task

PROMPTS = 2000


def main() -> None:
    with open_task("chain_sum", for_model="tiny") as task:
        pairs = sample_pairs(LanguagePolicy.load("tiny"), task, prompts=PROMPTS, max_tokens=8)
    out: Path = ASSETS / "tiny" / "preferences.jsonl"
    out.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    print(f"{len(pairs)} pairs in {out}, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
