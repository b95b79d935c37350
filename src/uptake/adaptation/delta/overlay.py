"""A private copy of a module that shares every tensor nobody changed, for parts of a delta to be put on."""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from uptake.adaptation.tensors import digest
from uptake.errors import BadInput, Mismatch

ModuleT = TypeVar("ModuleT", bound=nn.Module)
NOTED = "parts_put_on"  # of a module: what parts stand on it
TAKEN = "input_tokens_taken"  # of a module: how many of its input tokens parts use


class Overlay(Generic[ModuleT]):
    """A private copy of a module on which parts are put; the module itself is never touched.

    What a part brings along is registered under names of its own, so that no parameter of the base changes
    its name, and reached by hooks that find it by name at every pass: a tensor given in its place
    (`LM.with_parameters`) counts. Raises Mismatch for a name the module lacks.
    """

    def __init__(self, module: ModuleT) -> None:
        self.module = skeleton(module)

    @cached_property
    def _places(self) -> dict[int, list[tuple[nn.Module, str]]]:
        """Where each parameter stands, by its identity: tied ones in several places."""
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for part in self.module.modules():
            for key, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
                places.setdefault(id(parameter), []).append((part, key))
        return places

    def parameter(self, name: str) -> nn.Parameter:
        """Return a parameter as it is now."""
        try:
            return self.module.get_parameter(name)
        except AttributeError:
            raise Mismatch(_lacks(name)) from None

    def submodule(self, name: str) -> nn.Module:
        """Return a module within, or the whole for ""."""
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            raise Mismatch(_lacks(name)) from None

    def replace(self, name: str, value: Tensor) -> None:
        """Put a value in the place of a parameter, and of all that are tied to it."""
        old = self.parameter(name)
        if old.shape != value.shape:
            raise Mismatch(
                f"delta has {name!r} of shape {tuple(value.shape)}, the model of {tuple(old.shape)}: use the "
                "base it was made on"
            )
        new = nn.Parameter(value, requires_grad=False)
        places = self._places.pop(id(old))
        for part, key in places:
            part.register_parameter(key, new)
        self._places[id(new)] = places

    def register(self, module: nn.Module, key: str, value: Tensor) -> nn.Parameter:
        """Give a module within one more parameter, a copy of `value`; Mismatch where the key is taken."""
        check_free(module, key)
        new = nn.Parameter(self.alike(value), requires_grad=False)
        module.register_parameter(key, new)
        return new

    def alike(self, value: Tensor) -> Tensor:
        """Return a copy of a value where the module's parameters are, of their type but float32 or wider."""
        return value.detach().to(wide(next(self.module.parameters()).detach()), copy=True)

    def take_input_tokens(self, count: int) -> None:
        """Note that a part uses so many of the max input tokens."""
        setattr(self.module, TAKEN, input_tokens_taken(self.module) + count)

    def note(self, words: Iterable[str]) -> None:
        """Note what `fingerprint` must include of parts beyond parameters, such as how hooks use them."""
        setattr(self.module, NOTED, [*getattr(self.module, NOTED, ()), *words])


def input_tokens_taken(module: nn.Module) -> int:
    """Return how many of a module's max input tokens parts on it use."""
    taken: int = getattr(module, TAKEN, 0)
    return taken


def check_free(module: nn.Module, key: str) -> None:
    """Raise Mismatch where a module has something by this name."""
    if hasattr(module, key):
        raise Mismatch(f"two parts would both be {key!r} of one module: give them different owners")


class Hook:
    """A forward hook: it holds names and settings, no tensor of its own, so copies of a module share it."""

    def __deepcopy__(self, memo: object) -> "Hook":
        return self


def on_output(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a module's output, a tensor or a tuple that begins with one, with that tensor changed."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return (change(output[0]), *output[1:])
    raise BadInput(
        f"a part is on a module that returns a {type(output).__name__}: put it on one that returns a tensor"
    )


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def skeleton(module: ModuleT, replaced: Mapping[str, nn.Parameter] | None = None) -> ModuleT:
    """Copy a module tree, sharing every tensor but the `replaced` parameters; ties between weights stay."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    parameters = dict(module.named_parameters())
    for name, new in (replaced or {}).items():
        memo[id(parameters[name])] = new
    # As deepcopy has it, in a quarter of its time: of the many dictionaries of a module most are empty.
    usual = [each for each in module.modules() if _copied_as_usual(type(each))]
    memo |= {id(each): type(each).__new__(type(each)) for each in usual}
    for each in usual:
        made = {name: _copied(name, value, memo) for name, value in vars(each).items()}
        memo[id(each)].__dict__.update(made)
    return copy.deepcopy(module, memo)


_OWN = frozenset(vars(nn.Module()))  # what every module has
_HOLDING = ("_parameters", "_buffers", "_modules")
_PLAIN = (type(None), bool, int, float, str, type, torch.dtype)
_COPYING = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__")


def _copied_as_usual(kind: type[nn.Module]) -> bool:
    """Whether deepcopy takes a module of this kind for an object with attributes and nothing more."""
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in _COPYING)


def _copied(name: str, value: Any, memo: dict[int, Any]) -> Any:
    """Return the copy of a module's attribute."""
    if type(value) in _PLAIN:
        return value
    if name in _OWN and not value:
        return type(value)()
    if name in _HOLDING and type(value) is dict:
        return {key: copy.deepcopy(each, memo) for key, each in value.items()}
    return copy.deepcopy(value, memo)


def fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that change whenever a weight, name, type or part put on it does."""
    parts = [(f"part {word}", torch.zeros(0)) for word in getattr(module, NOTED, ())]
    return digest((*sorted((*module.named_parameters(), *module.named_buffers())), *parts))


def _lacks(name: str) -> str:
    return f"delta changes {name!r}, which the model lacks: use the base it was made on"
