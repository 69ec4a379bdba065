"""Assembly: what every kind of recipe is. Parts by stage, replaced by name, listed and compared."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from upslope.recipe import Part, Parts, State, Term


class Assembly:
    """The base of every kind of recipe; its subclasses are frozen dataclasses.

    STAGES    the names of the fields that hold parts, in the order of a step
    terms     further summands of the loss, where the kind of recipe has such
    """

    STAGES: ClassVar[tuple[str, ...]] = ()
    name: str
    terms: "tuple[Term, ...]"

    def replace(self, **stages: Any) -> Self:
        """The recipe with other parts."""
        return replace(self, **stages)  # type: ignore[type-var]

    def stages(self) -> "Iterator[tuple[str, Part]]":
        """(stage, part) pairs in the order of the step; a tuple gives one pair per part."""
        for stage in self.STAGES:
            for part in as_tuple(getattr(self, stage)):
                yield stage, part
        for index, term in enumerate(self.terms):
            rows = () if term.rows is None else (term.rows,)
            for part in (*rows, term.surrogate, *term.regularizer, term.aggregate):
                yield f"terms[{index}]", part

    def parts(self) -> "dict[str, Part]":
        """Stage -> part; where a stage holds several, `stage.ClassName` -> part."""
        pairs = list(self.stages())
        count = [stage for stage, _ in pairs]
        return {stage if count.count(stage) == 1 else f"{stage}.{type(part).__name__}": part for stage, part in pairs}

    def init(self) -> "State":
        """The first state of every stateful part, keyed as in `parts()`."""
        return {key: part.init() for key, part in self.parts().items() if part.stateful}

    @property
    def needs(self) -> frozenset[str]:
        """Columns that the recipe reads from outside, besides those that every step has."""
        raise NotImplementedError

    def check(self) -> Self:
        """Raises UsageError where parts do not fit each other, or one rejects its settings."""
        raise NotImplementedError

    def objective(self) -> list[str]:
        """The recipe as a formula, in lines, for `describe`."""
        raise NotImplementedError

    def trainer(self) -> Any:
        """The class of the loop that runs recipes of this kind."""
        raise NotImplementedError

    def reading(self) -> str:
        """What it reads, in words, for `describe`."""
        raise NotImplementedError


def as_tuple(parts: "Parts") -> "tuple[Part, ...]":
    """The parts of a stage as a tuple."""
    return () if parts is None else parts if isinstance(parts, tuple) else (parts,)
