"""GRACE's codebook (Hartvigsen et al. 2023, arXiv 2211.11031): keys with radii, and what each stands for."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Entry:
    """A key [width] that answers within `radius`: with edit `edit`, whose target is `label`."""

    key: Tensor
    radius: float
    label: str
    edit: int


class Nearest(NamedTuple):
    """The entry nearest to a key, by its place, and how far it is."""

    place: int
    distance: float


@dataclass(frozen=True)
class Codebook:
    """Entries in the order they were added; `initial` is the radius of a new one.

    Labels are compared as texts. The published code compares the means of their token ids, by which two
    different targets can be one.
    """

    initial: float = 1.0
    entries: tuple[Entry, ...] = field(default=())

    def nearest(self, key: Tensor) -> Nearest | None:
        """Return the entry nearest to a key [width], of equally near ones the latest; None without any."""
        if not self.entries:
            return None
        apart = (torch.stack([entry.key for entry in self.entries]) - key).norm(dim=1)
        place = len(apart) - 1 - int(apart.flip(0).argmin())
        return Nearest(place, float(apart[place]))

    def hit(self, key: Tensor) -> Entry | None:
        """Return the nearest entry if the key is within its radius, the boundary included."""
        found = self.nearest(key)
        if found is None or found.distance > self.entries[found.place].radius:
            return None
        return self.entries[found.place]

    def with_edit(self, edit: int, key: Tensor, label: str) -> "Codebook":
        """Return the codebook after one more edit, by the paper's three rules."""
        found, new = self.nearest(key), Entry(key, self.initial, label, edit)
        if found is None or found.distance > self.initial + self.entries[found.place].radius:
            return self._with(new)
        old = self.entries[found.place]
        if old.label != label:
            half = found.distance / 2
            return self._with(replace(new, radius=half), found.place, half - 1e-5)
        return self._with(None, found.place, max(old.radius, found.distance))

    @classmethod
    def of(cls, edits: Iterable[tuple[int, Tensor, str]], initial: float = 1.0) -> "Codebook":
        """Return the codebook after edits (edit, key, label) one after another."""
        book = cls(initial)
        for edit, key, label in edits:
            book = book.with_edit(edit, key, label)
        return book

    def _with(self, new: Entry | None, place: int = -1, radius: float = math.nan) -> "Codebook":
        entries = list(self.entries)
        if place >= 0:
            entries[place] = replace(entries[place], radius=radius)
        return replace(self, entries=(*entries, *([] if new is None else [new])))
