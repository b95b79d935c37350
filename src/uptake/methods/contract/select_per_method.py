"""Selections side by side: what each of several methods, combined on one model, reads of a store."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np

from uptake.text.select import Select
from uptake.text.types import Found, Source


class SelectPerMethod(Select):
    """For each of several methods what its own selection, a field, chooses; equal ones choose once."""

    def __reduce__(self) -> tuple[Any, ...]:
        return select_per_method, (tuple(self._selects), tuple(self._selects.values()))

    @property
    def _selects(self) -> dict[str, Select]:
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}  # type: ignore[arg-type]

    def for_model(self, model: object) -> Select:
        found = {name: select.for_model(model) for name, select in self._selects.items()}
        return select_per_method(tuple(found), tuple(found.values()))

    def choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        chosen: dict[Select, Found] = {}
        for select in self._selects.values():
            if select not in chosen:
                chosen[select] = select.choose(source, k, generator)
        return Found.of_each([chosen[select] for select in self._selects.values()])

    def check(self, source: Source, k: int) -> None:
        for select in self._selects.values():
            select.check(source, k)

    @property
    def name(self) -> str:
        return type(self).__name__

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        return self.choose(source, k, generator)


# Classes made for names are found in no module: what is sent to another process is made there again.
def select_per_method(fields: tuple[str, ...], selects: tuple[Select, ...]) -> SelectPerMethod:
    """Return the selection of several methods whose settings are called `fields`."""
    kind = _select_kind(
        "+".join(select.name for select in selects),
        tuple(zip(fields, map(type, selects), strict=True)),
        any(select.searches for select in selects),
        any(select.ranks for select in selects),
        any(select.gives_passages for select in selects),
    )
    made: SelectPerMethod = kind(*selects)
    return made


@cache
def _select_kind(
    name: str, parts: tuple[tuple[str, type[Select]], ...], searches: bool, ranks: bool, gives_passages: bool
) -> type[Any]:
    shared = {"searches": searches, "ranks": ranks, "gives_passages": gives_passages}
    return dataclasses.make_dataclass(name, parts, bases=(SelectPerMethod,), frozen=True, namespace=shared)
