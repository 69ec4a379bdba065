"""Writes the method pages of the site and the table of methods in the README, from the registry. A missing heading fails.

python docs/generate.py            writes docs/methods/*.md and the table in README.md
python docs/generate.py --check    exits 1 where the README's table is out of date
"""

import argparse
import sys
from pathlib import Path

from upslope.registry import HEADINGS, Method, describe, diff, find, list_methods

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
START, END = "<!-- methods: start -->", "<!-- methods: end -->"


def page(method: Method) -> str:
    """The Markdown page of a method: its docstring under its headings, the assembled objective, the parts that differ."""
    sections = method.sections()
    missing = [h for h in HEADINGS if not sections.get(h) and not (h == "Differs from" and method.parent is None)]
    if missing:
        sys.exit(f"{method.file}: the page lacks {', '.join(missing)}")
    paper = f"[{method.paper}]({method.url})" if method.url else method.paper
    lines = [
        f"# {method.name}",
        "",
        method.summary,
        "",
        f"**Paper:** {method.title} ({paper})  ",
        f"**Family:** {method.family}",
    ]
    lines += ["", "```text", sections["Formula"], "```", ""]
    for heading in (*HEADINGS, "Claim"):
        if sections.get(heading):
            lines += [f"## {heading}", "", sections[heading], ""]
    lines += ["## As assembled", "", "```text", describe(method.name), "```", ""]
    if method.parent:
        lines += [
            f"## What `upslope diff {method.parent} {method.name}` prints",
            "",
            "```text",
            diff(method.parent, method.name),
            "```",
            "",
        ]
    for system, (_, version) in method.presets.items():
        changes = diff(method.name, f"{method.name}@{system}")
        lines += [f"## Preset `{method.name}@{system}` ({version})", "", "```text", changes, "```", ""]
    lines += [f"Source: `src/upslope/methods/{method.family}/{method.name}.py`. Tests: `{method.tests() or 'none'}`."]
    return "\n".join(lines) + "\n"


FAMILIES = {
    "rlvr": "Reinforcement learning with verifiable rewards",
    "preference": "Preferences",
    "distill": "Distillation",
    "supervised": "Supervised",
    "hybrid": "Demonstrations and rewards together",
    "rlhf": "Reinforcement learning from human feedback",
    "control": "Control on-policy",
    "offpolicy": "Control from a replay buffer",
    "offline": "Control from a log",
}


def tables(link: bool) -> str:
    """A table per family, one row per method: name (with a link to its page), what it does, paper, presets."""
    lines: list[str] = []
    families = {find(name).family for name in list_methods()}
    for family in sorted(
        families, key=lambda one: (list(FAMILIES).index(one) if one in FAMILIES else len(FAMILIES), one)
    ):
        lines += [
            f"### {FAMILIES.get(family, family)}",
            "",
            "| method | what it does | paper | presets |",
            "|---|---|---|---|",
        ]
        for name in list_methods(family=family):
            method = find(name)
            paper = f"[{method.paper}]({method.url})" if method.url else method.paper
            what = method.summary.partition(": ")[2] or method.summary
            presets = ", ".join(f"`@{system}`" for system in method.presets)
            shown = f"[`{name}`]({name}.md)" if link else f"`{name}`"
            lines.append(f"| {shown} | {what} | {paper} | {presets} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    updated = f"{before}{START}\n{tables(link=False)}\n{END}{after}"
    if check:
        sys.exit(
            0 if updated == text else "README.md: the table of methods is out of date. Run python docs/generate.py"
        )
    README.write_text(updated, encoding="utf-8")
    folder = DOCS / "methods"
    folder.mkdir(exist_ok=True)
    for name in list_methods():
        (folder / f"{name}.md").write_text(page(find(name)), encoding="utf-8")
    (folder / "index.md").write_text(f"# Methods\n\n{tables(link=True)}\n", encoding="utf-8")
    for source, target in ((README, "index.md"), (README.parent / "CONTRIBUTING.md", "write-a-method.md")):
        text = (
            source.read_text(encoding="utf-8")
            .replace("](docs/", "](")
            .replace("](CONTRIBUTING.md)", "](write-a-method.md)")
        )
        (DOCS / target).write_text(text, encoding="utf-8")
    print(f"{len(list_methods())} method pages in {folder}")


if __name__ == "__main__":
    main()
