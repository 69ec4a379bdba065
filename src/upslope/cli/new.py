"""upslope new FAMILY SLUG"""

import re
from pathlib import Path

import tyro

from upslope.errors import UsageError
from upslope.registry import find, list_methods

METHOD = '''"""{title}: one sentence that says what the method does.

    A_i   what the advantage is                                                        [R]
    loss  what is minimised, with its denominators

Differs from {parent}:  the parts below.
Limits:  the settings in which it equals {parent}, and its invariances.
Expects:  which rewards, groups and columns it needs.
Source:  paper (arXiv:0000.00000), equation; the authors' code where there is any.
Deviations:  none.
Not this:  other methods of this name.
"""

from upslope.methods.{parent_family}.{parent} import {parent}
from upslope.recipe import Recipe
from upslope.registry import method


@method(paper="0000.00000", title="{title}", parent="{parent}")
def {slug}() -> Recipe:
    return {parent}().replace()
'''

TEST = '''"""Pins {slug} to its paper. Row order, padding, micro-batches, failed rewards: `check_method`."""

import numpy as np

from upslope import make
from upslope.testing import batch_of, check_method, value_and_gradient

REWARDS = [[1, 0, 0, 0], [1, 1, 0, 0]]


def test_contract():
    check_method({name!r})


def test_numbers_of_the_paper():
    recipe = make({name!r})
    batch = recipe.prepare(batch_of(REWARDS))
    np.testing.assert_allclose(batch.advantage[:4, 0], [np.nan] * 4)  # replace by the paper's numbers


def test_equals_its_parent_in_the_limit():
    batch = batch_of(REWARDS)
    mine, parent = make({name!r}), make({parent!r})  # add the settings of the limit
    np.testing.assert_allclose(
        value_and_gradient(mine, mine.prepare(batch))[1], value_and_gradient(parent, parent.prepare(batch))[1]
    )
'''


def command(
    family: tyro.conf.Positional[str],
    slug: tyro.conf.Positional[str],
    *,
    parent: str = "grpo",
    title: str | None = None,
) -> None:
    """Start a method: its file with the page's headings, and a test that fails until it is filled in.

    Inside a checkout of Upslope they go to src/upslope/methods/FAMILY/SLUG.py and tests/methods/FAMILY/test_SLUG.py;
    elsewhere to FAMILY/SLUG.py and FAMILY/test_SLUG.py, and the method is used by its path.

    Args:
        family: the folder: rlvr, preference, distillation, ...
        slug: the method's name: lower case letters, digits and underscores.
        parent: the method it differs least from.
        title: the paper's title.
    """
    for word in (family, slug):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", word):
            raise UsageError(
                f"new: '{word}' must be lower case letters, digits and underscores, and start with a letter."
            )
    if slug in list_methods():
        raise UsageError(f"new: there is a method '{slug}' already, in {find(slug).file}.")
    base = find(parent)
    package = Path("src/upslope/methods")
    inside = package.is_dir()
    source = (package if inside else Path()) / family / f"{slug}.py"
    test = (Path("tests/methods") if inside else Path()) / family / f"test_{slug}.py"
    words = {
        "slug": slug,
        "name": slug if inside else str(source),
        "parent": base.name,
        "parent_family": base.family,
        "title": title or slug.replace("_", " ").title(),
    }
    for path in (source, test):
        if path.exists():
            raise UsageError(f"new: {path} exists already; nothing was written.")
    if inside:
        _write(package / family / "__init__.py", "")
    _write(source, METHOD.format(**words))
    _write(test, TEST.format(**words))
    print(f"{source}\n{test}\nFill in the page and the numbers, then: pytest {test}")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if text or not path.exists():
            path.write_text(text)
    except OSError as error:
        raise UsageError(f"new: cannot write {path}: {error.strerror}.") from None
