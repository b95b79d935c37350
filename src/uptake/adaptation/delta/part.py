"""What every kind of part of a delta is: how it is put on a module, added, scaled, stored.

A kind is a frozen dataclass of tensors and settings in a file of its own, here or in a package that is
imported; it is found by the name of its class, and nothing else has to be edited.
"""

import dataclasses
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, get_type_hints

from cattrs import Converter
from torch import Tensor, nn

from uptake.adaptation.delta.overlay import Overlay, wide
from uptake.codec import Malformed, converter, load, plain
from uptake.errors import BadInput, Mismatch

StoredT = TypeVar("StoredT", bound="Stored")


class Name(NamedTuple):
    """The name of a part: who made it, and the parameter or module it stands on ("" for the whole)."""

    owner: str
    path: str


class Stored:
    """A frozen dataclass that a file can hold: of tensors, mappings of them, such dataclasses, plain data."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        found: dict[str, Tensor] = {}
        for name, value in self._fields():
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, Stored):
                found |= {f"{name}/{inner}": tensor for inner, tensor in value.tensors().items()}
            elif _tensors(value):
                found |= {f"{name}/{inner}": tensor for inner, tensor in value.items()}
        return found

    def settings(self) -> dict[str, Any]:
        """Return all else as JSON data, with the kinds of what is within."""
        out: dict[str, Any] = {}
        for name, value in self._fields():
            if isinstance(value, Stored):
                out[name] = {"kind": type(value).__name__, "settings": value.settings()}
            elif not isinstance(value, Tensor) and not _tensors(value):
                out[name] = plain(value)
        return out

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """Return what has these tensors and settings. Raises Mismatch for an unknown kind, Malformed."""
        found: dict[str, Any] = {}
        hints = get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # every final class is one
        for name in settings.keys() - set(names):
            raise Malformed(f"a {cls.__name__} has no {name!r}")
        for name in names:
            start = f"{name}/"
            inner = {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
            if name in settings:
                found[name] = _setting(hints[name], settings[name], inner, f"{name} of a {cls.__name__}")
            elif name in tensors or inner:
                found[name] = tensors.get(name, inner)
            else:
                raise Malformed(f"no tensor {name} of a {cls.__name__}")
        try:
            return cls(**found)
        except BadInput as error:
            raise Malformed(f"no {cls.__name__}: {error}") from None

    def _fields(self) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            yield field.name, getattr(self, field.name)


@dataclass(frozen=True)
class _Within:
    """What stands in the settings for a part within another."""

    kind: str
    settings: Mapping[str, Any]


def _setting(hint: Any, data: Any, tensors: Mapping[str, Tensor], called: str) -> Any:
    try:
        if isinstance(hint, type) and issubclass(hint, Stored):
            within = load(_Within, data)
            return kind_of(hint, within.kind).restored(tensors, within.settings)
        return load(hint, data, _plain_data())
    except Malformed as error:
        raise Malformed(f"{called}: {error}") from None


@cache
def _plain_data() -> Converter:
    made = converter(str)

    def refuse(data: Any, _: Any) -> Tensor:
        raise Malformed(f"is {data!r:.60}, not a tensor")

    made.register_structure_hook(Tensor, refuse)
    return made


class Part(Stored, ABC):
    """One part of a delta. What a kind cannot do it refuses with the reason."""

    # Weights are scaled (-1), then changed (0), then hooks are set (1); gates copy what is there (2).
    order: ClassVar[int] = 1

    @abstractmethod
    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        """Put the part on a private module; return what of it can be trained, by its own tensors.

        Raises Mismatch where the module lacks what it stands on.
        """

    def lead(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        """Put the part on a private module to be trained there: as `apply`, unless that leaves nothing to."""
        return self.apply(site, name)

    @property
    def input_tokens(self) -> int:
        """How many of the model's max input tokens it uses."""
        return 0

    @property
    def holds_weights(self) -> bool:
        """Whether it keeps changed copies of weights, which do not follow when the weights are trained."""
        return False

    def plus(self, other: Self) -> Self:
        """Return the sum with another part of the same kind and name. Raises Mismatch where there is none."""
        raise Mismatch(f"{self._called} cannot be added: give the two different owners, then both apply")

    def times(self, factor: float) -> Self:
        """Return the part scaled; -1 negates it. Raises Mismatch where that means nothing."""
        raise Mismatch(f"{self._called} cannot be scaled or subtracted: leave it out of the delta instead")

    def holding(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return the part with other values of the tensors it has by these names."""
        return self.restored({**self.tensors(), **tensors}, self.settings())

    @property
    def _called(self) -> str:
        return f"a part of kind {type(self).__name__}"


class WeightPart(Part):
    """A part that is a difference of one parameter: differences of one parameter add."""

    order = 0

    @abstractmethod
    def difference(self) -> Tensor:
        """Return what to add to the parameter."""

    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        """Change the parameter, which becomes float32 or wider: a small step on bfloat16 is not lost."""
        weight = site.parameter(name.path)
        stands = wide(weight.detach())
        difference = self.difference().to(stands.device)
        if difference.shape != weight.shape:
            raise Mismatch(
                f"delta has {name.path!r} of shape {tuple(difference.shape)}, the model of "
                f"{tuple(weight.shape)}: use the base it was made on"
            )
        # A difference in float64 is added in float64: it may give a weight back to the bit.
        site.replace(name.path, (stands + difference).to(stands.dtype))
        return {}


def kind_of(family: type[StoredT], kind: str) -> type[StoredT]:
    """Return the class of this name. Raises Mismatch where none is known."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    found = {each.__name__: each for each in _final(family)}
    if kind not in found:
        raise Mismatch(
            f"parts of kind {kind!r} are not known here (known are {', '.join(sorted(found))}): import the "
            "module that defines it"
        )
    return found[kind]


def _final(family: type[StoredT]) -> Iterator[type[StoredT]]:
    for each in family.__subclasses__():
        if not getattr(each, "__abstractmethods__", None):
            yield each
        yield from _final(each)


def _tensors(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(each, Tensor) for each in value.values())
    )
