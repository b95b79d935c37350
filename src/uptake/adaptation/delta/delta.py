"""What changed: the difference between an adapted model and its base, as named parts of several kinds.

An edit, an adaptation to a document and test-time training on neighbours all end as a Delta.
It can be added, scaled, negated, saved and put over the base it came from, and refuses any
other base. The base is never touched: every tensor that did not change is shared. A part is named by who
made it and what it stands on, so that two trainings stand in one delta and each finds its own.
"""

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from uptake.adaptation.delta.dense import Dense
from uptake.adaptation.delta.overlay import Overlay
from uptake.adaptation.delta.part import Name, Part, WeightPart, kind_of
from uptake.adaptation.tensors import digest, from_metadata, read_tensors, to_metadata, write_tensors
from uptake.codec import Malformed
from uptake.errors import BadInput, Damaged, Mismatch

ModuleT = TypeVar("ModuleT", bound=nn.Module)
PartT = TypeVar("PartT", bound=Part)
FORMAT = "uptake-delta-1"
WEIGHTS = "weights"  # who owns the differences of weights that are trained themselves


@dataclass(frozen=True)
class _PartAbout:
    """What a file holds of a part besides its tensors."""

    owner: str
    path: str
    kind: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class _About:
    """What the file of a delta holds besides the tensors, whose names begin with the number of their part."""

    base: str
    parts: tuple[_PartAbout, ...]
    format: str = FORMAT


@dataclass(frozen=True)
class PackedPart(_PartAbout):
    """A part as plain data: its kind, its settings as JSON data, and its tensors by their names in it."""

    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class PackedDelta:
    """A delta as plain data, for files."""

    base: str
    parts: tuple[PackedPart, ...]


@dataclass(frozen=True, eq=False)
class Delta:
    """Parts by name, with the fingerprint of the base they belong to."""

    base: str
    parts: Mapping[Name, Part] = field(default_factory=dict)

    @classmethod
    def of(cls, base: str, parts: Mapping[str, Part], owner: str) -> "Delta":
        """Return a delta of parts of one owner, by what they stand on."""
        check_owner(owner)
        return cls(base, {Name(owner, path): part for path, part in parts.items()})

    @classmethod
    def dense(cls, base: str, differences: Mapping[str, Tensor], owner: str = WEIGHTS) -> "Delta":
        """Return a delta of differences by parameter."""
        return cls.of(base, {path: Dense(values) for path, values in differences.items()}, owner)

    @property
    def names(self) -> set[str]:
        """What the parts stand on: names of parameters, or of modules."""
        return {name.path for name in self.parts}

    @property
    def differences(self) -> dict[str, Tensor]:
        """What is added in all to each parameter that is changed."""
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if isinstance(part, WeightPart):
                before, change = found.get(name.path), part.difference()
                found[name.path] = change if before is None else before + change
        return found

    @property
    def kinds(self) -> set[type[Part]]:
        """The kinds of its parts."""
        return {type(part) for part in self.parts.values()}

    @property
    def input_tokens(self) -> int:
        """How many of the model's max input tokens its parts use."""
        return sum(part.input_tokens for part in self.parts.values())

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever the base, a name, a kind, a setting or a value does."""
        return digest(
            (
                f"{part.owner}/{part.path}/{part.kind}/{json.dumps(part.settings, sort_keys=True)}/{name}",
                tensor,
            )
            for part in self.packed().parts
            for name, tensor in (("", torch.zeros(0)), *sorted(part.tensors.items()))
        )

    def parts_of(self, kind: type[PartT], owner: str | None = None) -> dict[str, PartT]:
        """Return the parts of one kind, of one owner or added over all, by what they stand on."""
        found: dict[str, PartT] = {}
        for name, part in self.parts.items():
            if isinstance(part, kind) and owner in (None, name.owner):
                found[name.path] = found[name.path].plus(part) if name.path in found else part
        return found

    def without(self, gone: Callable[[Name, Part], bool]) -> "Delta":
        """Return what is left when these parts are taken out."""
        return Delta(self.base, {name: part for name, part in self.parts.items() if not gone(name, part)})

    def owned_by(self, owner: str) -> "Delta":
        """Return the same parts under one owner. Raises Mismatch where two would have one name."""
        parts = {name.path: part for name, part in self.parts.items()}
        if len(parts) < len(self.parts):
            raise Mismatch(f"several owners have parts on one name: they cannot all be {owner!r}'s")
        return Delta.of(self.base, parts, owner)

    def difference(self, name: str) -> Tensor:
        """Return what is added to parameter `name` in all; KeyError if nothing is."""
        return self.without(lambda other, _: other.path != name).differences[name]

    def over(self, module: ModuleT, base: str) -> ModuleT:
        """Return a copy of `module` with this delta on it, sharing all that did not change.

        Raises Mismatch where `base`, the module's fingerprint, is not the one the delta names, or the module
        lacks something a part stands on.
        """
        self.check(base)
        site = Overlay(module)
        self.put(site)
        return site.module

    def put(self, site: Overlay[Any], led: Container[Name] = ()) -> dict[Name, dict[str, nn.Parameter]]:
        """Put all parts on a private module; return what of each can be trained, as `Part.apply`.

        Those that `led` names are put there to be trained, as `Part.lead` does.
        """

        def place(item: tuple[Name, Part]) -> tuple[int, bool, Name]:
            # In an order of their own, so that a + b is b + a where parts do not commute. What is led and
            # scales weights sees those that all others have scaled.
            name, part = item
            return part.order, part.order < 0 and name in led, name

        ordered = sorted(self.parts.items(), key=place)
        with torch.no_grad():
            found = {
                name: part.lead(site, name) if name in led else part.apply(site, name)
                for name, part in ordered
            }
        site.note(
            f"{name.owner}/{name.path}/{type(part).__name__}/{part.settings()}/{digest(part.tensors().items())}"
            for name, part in ordered
            if part.order > 0
        )
        return found

    def check(self, base: str) -> None:
        """Raise Mismatch unless `base` is the fingerprint this delta was made on."""
        if base != self.base:
            raise Mismatch(
                f"delta belongs to base model {self.base}, not {base}: load the model it was made on"
            )

    def __add__(self, other: "Delta") -> "Delta":
        other.check(self.base)
        parts = dict(self.parts)
        for name, part in other.parts.items():
            if name in parts and type(parts[name]) is not type(part):
                kinds = f"{type(parts[name]).__name__} and {type(part).__name__}"
                raise Mismatch(f"{name.path!r} of {name.owner} is {kinds}: give them different owners")
            parts[name] = parts[name].plus(part) if name in parts else part
        return Delta(self.base, parts)

    def __mul__(self, factor: float) -> "Delta":
        return Delta(self.base, {name: part.times(factor) for name, part in self.parts.items()})

    __rmul__ = __mul__

    def __neg__(self) -> "Delta":
        return self * -1.0

    def __sub__(self, other: "Delta") -> "Delta":
        return self + -other

    def packed(self) -> PackedDelta:
        """Return the delta as plain data."""
        return PackedDelta(
            self.base,
            tuple(
                PackedPart(*name, type(part).__name__, part.settings(), part.tensors())
                for name, part in sorted(self.parts.items(), key=lambda item: item[0])
            ),
        )

    @classmethod
    def unpacked(cls, packed: PackedDelta) -> "Delta":
        """Return the delta that was packed. Raises Mismatch for an unknown kind of part, Malformed."""
        return cls(packed.base, dict(map(_unpacked, packed.parts)))

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        packed = self.packed()
        tensors = {
            f"{number}/{name}": tensor
            for number, part in enumerate(packed.parts)
            for name, tensor in part.tensors.items()
        }
        parts = tuple(_PartAbout(part.owner, part.path, part.kind, part.settings) for part in packed.parts)
        write_tensors(path, tensors, to_metadata(_About(self.base, parts)))

    @classmethod
    def load(cls, path: Path, base: str) -> "Delta":
        """Read a delta; Mismatch unless it belongs to `base`, BadInput or Damaged if it cannot be read."""
        delta = cls.read(path)
        delta.check(base)
        return delta

    @classmethod
    def read(cls, path: Path) -> "Delta":
        """Read a delta of whichever base. Raises BadInput or Damaged if it cannot be read."""
        metadata, tensors = read_tensors(path, "delta")
        about = from_metadata(_About, metadata, path, "delta")
        inner: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in tensors.items():
            number, _, name = full_name.partition("/")
            inner.setdefault(number, {})[name] = tensor
        parts = tuple(
            PackedPart(**vars(part), tensors=inner.get(str(number), {}))
            for number, part in enumerate(about.parts)
        )
        try:
            return cls.unpacked(PackedDelta(about.base, parts))
        except Malformed as error:
            raise Damaged(
                f"{path} is no readable delta ({error}): restore it from a copy, or make it anew"
            ) from None


def check_owner(owner: str) -> None:
    """Raise BadInput for what cannot be the name of who made a part."""
    if not owner.replace("-", "_").isidentifier():
        raise BadInput(f"owner {owner!r}: use letters, digits, _ and -")


def _unpacked(packed: PackedPart) -> tuple[Name, Part]:
    kind: type[Part] = kind_of(Part, packed.kind)
    return Name(packed.owner, packed.path), kind.restored(packed.tensors, packed.settings)
