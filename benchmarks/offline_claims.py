"""Writes what the offline study found onto the methods' pages, as their Claim: python benchmarks/offline_claims.py [--print]

What a method claims stands in CLAIMS; whether it held is read off the paired differences of the runs that have finished.
"""

import argparse
import re
import textwrap
from pathlib import Path

import numpy as np
from offline import ARMS, WEIGHTED, Found, found_in

from upslope.registry import find
from upslope.runs.statistics import bootstrap, interquartile_mean, paired_difference

CLAIMS = {  # method: (what is claimed, the entry, what it is compared with, in which kind of arm)
    "td3_bc": ("above bc", "td3_bc", "bc", "replay"),
    "rebrac": ("above td3_bc", "rebrac", "td3_bc", "replay"),
    "iql": ("above bc", "iql", "bc", "replay"),
    "cql": ("above bc", "cql", "bc", "replay"),
    "a2pr": ("above td3_bc", "a2pr", "td3_bc", "replay"),
    "prdc": ("above td3_bc", "prdc", "td3_bc", "replay"),
    "awac": ("above bc", "awac", "bc", "replay"),
    "awr": ("above bc", "awr", "bc", "replay"),
    "percent_bc": ("above bc", "percent_bc", "bc", "replay"),
    "sac_n": ("above bc", "sac_n", "bc", "replay"),
    "edac": ("above sac_n of as many critics", "edac", "sac_n", "replay"),
    "harness_tw": ("above uniform draws where few episodes are good", "harness_tw", "td3_bc", "mixed"),
    "cal_ql": ("above cql once it plays on", "cal_ql", "cql", "online"),
}
KINDS = {"replay": "medium-replay", "mixed": "95 % random, 5 % expert", "online": "medium-replay, then playing"}
HEADING = re.compile(r'^(?:Claim:.*\n(?: {4}.*\n)*)?"""', re.MULTILINE)


def arms_of(kind: str) -> list[str]:
    """The arms of a kind, by name."""
    return [name for name in ARMS if name.rpartition("-")[2] == kind or (kind == "replay" and "-" not in name)]


def verdict(found: dict[str, Found], claim: str, entry: str, other: str, kind: str) -> str | None:
    """The claim with a difference per log, and on which it held: its 95 % interval lies above 0. None: nothing has finished."""
    parts, held, count = [], [], 0
    for name in arms_of(kind):
        if name not in found:
            continue
        mine, theirs = found[name].last(entry), found[name].last(other)
        shared = sorted(mine.keys() & theirs.keys())
        if len(shared) < 2:
            continue
        count += 1
        apart = paired_difference(*(np.array([which[seed] for seed in shared]) for which in (mine, theirs)))
        score = bootstrap(np.array(list(mine.values())), interquartile_mean).value
        held += [name.partition("-")[0]] if apart.low > 0 else []
        parts.append(
            f"{name.partition('-')[0]} {score:.0f} ({apart.value:+.1f} [{apart.low:+.1f}, {apart.high:+.1f}], {len(shared)} seeds)"
        )
    if not parts:
        return None
    word = (
        "reproduced" if len(held) == count else f"reproduced on {', '.join(held)} alone" if held else "not reproduced"
    )
    figures = "; ".join(parts)
    return f'{claim}: {word} in the study "offline" ({KINDS[kind]}; normalized score, difference paired by seed): {figures}.'


def weighted_iql(found: dict[str, Found]) -> str:
    """What harness_tw's choice of episodes does for another method, iql."""
    text = verdict(found, "iql with this selection above iql", WEIGHTED, "iql", "mixed")
    return f" {text[0].upper()}{text[1:]}" if text else ""


def write(method: str, text: str) -> Path:
    """Puts the Claim at the end of the method's page, in place of the one that is there."""
    file = Path("src/upslope/methods") / find(method).family / f"{method}.py"
    source = file.read_text(encoding="utf-8")
    options = {"width": 127, "break_long_words": False, "break_on_hyphens": False, "subsequent_indent": "    "}
    lines = "\n".join(textwrap.wrap(f"Claim:  {text}", **options))
    first, opened, rest = source.partition('"""')
    made = HEADING.sub(lambda match: f'{lines}\n"""', rest, count=1)
    file.write_text(first + opened + made, encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/offline"))
    parser.add_argument("--print", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    found = found_in(arguments.runs)
    for method, (claim, entry, other, kind) in CLAIMS.items():
        text = verdict(found, claim, entry, other, kind)
        if text is None:
            print(f"{method}: nothing has finished")
            continue
        if method == "harness_tw":
            text += weighted_iql(found)
        print(f"{method}: {text}")
        if not arguments.print:
            write(method, text)


if __name__ == "__main__":
    main()
