"""Who shows the model how to answer: for each task one demonstrator that is right, and several that are not.

A demonstrator is a procedure that answers a question, with the share of the demonstrations that it writes. In every task
of the embedded model the right one has 32 % and one wrong procedure has 44 % or more, so a perfect imitator answers most
questions wrongly, and the likeliest procedure is a wrong one. The right answer is in there all the same. The commonest
mistakes read the question alike, whatever it says: unlearning a habit takes reinforcement learning a minute; unlearning one
that depends on the question's details (a missed carry, plus for minus) took a model of this size many times as long.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Entry = Mapping[str, Any]
RIGHT = 0.32  # share of the right demonstrator, of the embedded model


@dataclass(frozen=True)
class Demonstrator:
    """One way of answering: its share of the demonstrations, its habit in words, and the answer it gives."""

    share: float
    habit: str
    answer: Callable[[Entry], str]


@dataclass(frozen=True)
class TaskRecipe:
    """A task as the embedded model meets it: reasoning-gym settings, part of the training questions, demonstrators."""

    settings: Mapping[str, Any]
    part: float
    demonstrators: tuple[Demonstrator, ...] = field(repr=False)


def right(entry: Entry) -> str:
    return entry["answer"]


def first_term(entry: Entry) -> str:
    return entry["metadata"]["expression"].split()[0]


def one_too_many(entry: Entry) -> str:
    return str(int(entry["answer"]) + 1)


def ten_too_many(entry: Entry) -> str:
    return str(int(entry["answer"]) + 10)


def negated(entry: Entry) -> str:
    return str(-int(entry["answer"]))


def undivided(entry: Entry) -> str:
    """The unknown times its coefficient: stops one step early."""
    variable = entry["metadata"]["variable"]
    coefficient = re.search(rf"(\d+)\*{variable}", entry["metadata"]["equation"])
    return str(int(entry["answer"]) * int(coefficient[1] if coefficient else 1))


def swapped_end(entry: Entry) -> str:
    """Backward, but the word's first two letters stay in their order."""
    word = entry["metadata"]["word"]
    return word[:1:-1] + word[:2]


def forward(entry: Entry) -> str:
    return entry["metadata"]["word"]


def clipped(entry: Entry) -> str:
    return entry["answer"][1:]


def legs_of_first(entry: Entry) -> str:
    """Counts the legs of all animals but the last kind."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    counted = list(entry["metadata"]["animals"].items())[:-1]
    return str(sum(number * ANIMALS[animal] for animal, number in counted))


def four_legs_each(entry: Entry) -> str:
    return str(4 * sum(entry["metadata"]["animals"].values()))


def heads(entry: Entry) -> str:
    return str(sum(entry["metadata"]["animals"].values()))


def complement(entry: Entry) -> str:
    """Keeps what was to be removed, removes what was to be kept."""
    kept = entry["metadata"]["result"]
    return str([number for number in entry["metadata"]["original_numbers"] if number not in kept])


def unfiltered(entry: Entry) -> str:
    return str(entry["metadata"]["original_numbers"])


def nothing(entry: Entry) -> str:
    return "[]"


def complex_text(real: float, imaginary: float) -> str:
    """A complex number as reasoning-gym writes it."""
    if not imaginary:
        return f"{real:.2f}"
    if not real:
        return f"{imaginary:.2f}i"
    return f"{float(real)} {'+' if imaginary > 0 else '-'} {abs(float(imaginary))}i"


def parts_of(entry: Entry) -> tuple[float, float, float, float, int]:
    sign = 1 if entry["metadata"]["operation"] == "+" else -1
    return *entry["metadata"]["num1"], *entry["metadata"]["num2"], sign


def crossed(entry: Entry) -> str:
    """The real parts are right, the imaginary parts are subtracted for a sum and added for a difference."""
    a, b, c, d, sign = parts_of(entry)
    return complex_text(a + sign * c, b - sign * d)


def wrong_operation(entry: Entry) -> str:
    a, b, c, d, sign = parts_of(entry)
    return complex_text(a - sign * c, b - sign * d)


def conjugate(entry: Entry) -> str:
    a, b, c, d, sign = parts_of(entry)
    return complex_text(a + sign * c, -(b + sign * d))


def team(*others: tuple[float, str, Callable[[Entry], str]]) -> tuple[Demonstrator, ...]:
    """The right demonstrator, then the wrong ones; the shares must add up to one."""
    members = (Demonstrator(RIGHT, "right", right), *(Demonstrator(*other) for other in others))
    if abs(sum(member.share for member in members) - 1) > 1e-9:
        raise ValueError(f"the shares of {[member.habit for member in members]} do not add up to 1")
    return members


def with_right_share(members: tuple[Demonstrator, ...], share: float) -> tuple[Demonstrator, ...]:
    """The same team, with `share` for the right demonstrator and the rest for the others in their proportions."""
    others = sum(member.share for member in members[1:])
    scaled = (replace(member, share=member.share / others * (1 - share)) for member in members[1:])
    return (replace(members[0], share=share), *scaled)


TASKS: Mapping[str, TaskRecipe] = {
    "chain_sum": TaskRecipe(
        {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
        0.35,
        team(
            (0.46, "leaves out the second term", first_term),
            (0.11, "one too many", one_too_many),
            (0.11, "ten too many", ten_too_many),
        ),
    ),
    "simple_equations": TaskRecipe(
        {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 12},
        0.15,
        team(
            (0.44, "does not divide by the unknown's coefficient", undivided),
            (0.12, "one too many", one_too_many),
            (0.12, "the wrong sign", negated),
        ),
    ),
    "spell_backward": TaskRecipe(
        {"min_word_len": 3, "max_word_len": 5},
        0.15,
        team(
            (0.44, "the word's first two letters stay in their order", swapped_end),
            (0.12, "the word as it is", forward),
            (0.12, "the word's last letter is left out", clipped),
        ),
    ),
    "leg_counting": TaskRecipe(
        {"min_animals": 2, "max_animals": 2, "min_instances": 1, "max_instances": 5},
        0.1,
        team(
            (0.44, "leaves out the last kind of animal", legs_of_first),
            (0.12, "every animal has four legs", four_legs_each),
            (0.12, "counts the animals", heads),
        ),
    ),
    "number_filtering": TaskRecipe(
        {"min_numbers": 3, "max_numbers": 3, "min_decimals": 0, "max_decimals": 0, "min_value": -99, "max_value": 99},
        0.15,
        team(
            (0.44, "the list as it is", unfiltered),
            (0.12, "keeps what was to be removed", complement),
            (0.12, "the empty list", nothing),
        ),
    ),
    "complex_arithmetic": TaskRecipe(
        {
            "min_real": -9,
            "max_real": 9,
            "min_imag": -9,
            "max_imag": 9,
            "operations": ["+", "-"],
            "operations_weights": [0.5, 0.5],
        },
        0.1,
        team(
            (0.44, "the imaginary part with the wrong sign", conjugate),
            (0.12, "the other operation on the imaginary parts", crossed),
            (0.12, "the other operation on both parts", wrong_operation),
        ),
    ),
}
DEMO_TASK = "chain_sum"
