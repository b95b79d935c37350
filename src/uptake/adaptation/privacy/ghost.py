"""Gradients of many units, each clipped by itself, without ever forming one: two backward passes.

Taps on the layers that train measure, in a first backward pass, the norm of each unit's gradient from what
the layer holds anyway; the second one is of the losses, each times its unit's factor. It knows no language
model: the caller runs its module and brings losses.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.privacy import layers
from uptake.adaptation.privacy.layers import Rows, Tied
from uptake.adaptation.transforms import Gradients
from uptake.errors import BadInput

# How far a measured norm may be from the gradient's own, in what the layers compute in.
_AGREE = {torch.float64: 1e-9, torch.float32: 1e-3}


class Unsuited(BadInput):
    """What trains has no norm that can be measured this way; the message says what and why."""


@dataclass
class _Pass:
    """One forward pass that is watched."""

    rows: Rows
    carrier: Tensor  # [units] of zeros, whose gradient is the squared norms
    counting: bool = False
    seen: dict[int, int] = field(default_factory=dict)  # how often each layer was run, by its place
    ids: dict[int, Tensor] = field(default_factory=dict)  # what entered the embedding of a tied weight
    tied: dict[int, Tied] = field(default_factory=dict)


class _Tap(torch.autograd.Function):
    """Passes a layer's output on; its backward measures what the layer's parameters get."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, carrier: Tensor, entered: Tensor, measure: Any, watch: _Pass
    ) -> Tensor:
        ctx.save_for_backward(entered)
        ctx.measure, ctx.watch = measure, watch
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        squares = None
        if ctx.watch.counting:
            with torch.no_grad():
                squares = ctx.measure(ctx.saved_tensors[0], gradient.detach(), ctx.watch)
        return gradient, squares, None, None, None


class Ghost:
    """Clips the gradients of units over the layers of one private module, which it hangs taps on.

    Linear layers, GPT-2's Conv1D, embeddings, a weight that is both an embedding and the output layer, and
    layers with vectors alone, such as normalisations. Raises Unsuited for anything else.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self._watch: _Pass | None = None
        self._checked = False
        self._layers = [*_layers(module, self.parameters)]
        self._handles = [
            layer.module.register_forward_hook(self._hook(place, layer))
            for place, layer in enumerate(self._layers)
        ]

    def close(self) -> None:
        """Take the taps off."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def watching(self, owners: Sequence[int]) -> Iterator[None]:
        """Watch the one forward pass of the block; `owners[i]` is the unit of row i, from 0 on."""
        device = next(iter(self.parameters.values())).device
        rows = Rows(tuple(owners))
        carrier = torch.zeros(rows.count, dtype=torch.float64, device=device, requires_grad=True)
        self._watch = _Pass(rows, carrier)
        try:
            yield
        finally:
            self._watch = None

    def clipped(
        self, run: Callable[[], Tensor], owners: Sequence[int], factor: Callable[[Tensor], Tensor]
    ) -> tuple[Gradients, Tensor]:
        """Return the sum of the units' gradients, each times its factor, and their norms, [units].

        `run` does one forward pass and returns the loss of each of its rows; those of one unit are summed.
        `factor` makes factors of norms, [units] to [units]. Raises Unsuited where a layer did not run once,
        or, the first time, where a measured norm is not that of the gradient.
        """
        with self.watching(owners):
            watch = self._watch
            assert watch is not None
            losses = run()
            self._check_runs(watch)
            of_units = losses.new_zeros(watch.rows.count)
            of_units = of_units.index_add(0, watch.rows.index(losses.device), losses)
            norms = self._norms(of_units, watch)
            if not self._checked:
                self._check_norm(of_units[0], norms[0])
            factors = factor(norms).to(of_units)
            found = torch.autograd.grad(
                (factors * of_units).sum(), [*self.parameters.values()], allow_unused=True
            )
        pairs = zip(self.parameters, found, strict=True)
        return {name: gradient for name, gradient in pairs if gradient is not None}, norms

    def _norms(self, losses: Tensor, watch: _Pass) -> Tensor:
        watch.counting = True
        try:
            (squares,) = torch.autograd.grad(losses.sum(), watch.carrier, retain_graph=True)
        finally:
            watch.counting = False
        return squares.clamp(min=0).sqrt()

    def _check_runs(self, watch: _Pass) -> None:
        for place, layer in enumerate(self._layers):
            if place not in watch.seen:
                raise Unsuited(f"{layer.name} trains and does not run: it may be used by another way")

    def _check_norm(self, loss: Tensor, measured: Tensor) -> None:
        """Compare the first norm with autograd's: a parameter that is used elsewhere too is seen here."""
        found = torch.autograd.grad(loss, [*self.parameters.values()], retain_graph=True, allow_unused=True)
        squares = [each.double().square().sum() for each in found if each is not None]
        right = torch.stack(squares).sum().sqrt() if squares else measured.new_zeros(())
        apart = _AGREE.get(loss.dtype, 1e-2)
        if not torch.isfinite(right):
            return  # nothing is known by it: the next pass is compared
        if not torch.isclose(measured, right, rtol=apart, atol=1e-12):
            raise Unsuited(
                f"a unit's gradient has norm {right.item():.6g} and {measured.item():.6g} was measured: some "
                "parameter is used outside of its layer"
            )
        self._checked = True

    def _hook(self, place: int, layer: "_Layer") -> Callable[..., Any]:
        def tapped(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            watch = self._watch
            if watch is None or not torch.is_grad_enabled():
                return None
            if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
                raise Unsuited(f"{layer.name} takes or gives more than one tensor")
            (entered,) = inputs
            watch.seen[place] = watch.seen.get(place, 0) + 1
            count = len(watch.rows.owners)
            if watch.seen[place] > 1:
                raise Unsuited(f"{layer.name} runs more than once in a pass: its terms would be lost")
            if entered.numel() // entered.shape[-1] % count and not isinstance(module, nn.Embedding):
                raise Unsuited(f"{layer.name} is given {len(entered)} rows of {count}")
            if len(entered) == 1 < count and isinstance(module, nn.Embedding):  # positions, for all rows
                entered = entered.expand(count, *entered.shape[1:])
                output = output.expand(count, *output.shape[1:])
            if isinstance(module, nn.Embedding) and layer.tied is not None:
                watch.ids[layer.tied] = entered
            return _Tap.apply(output, watch.carrier, entered, layer.measure, watch)  # type: ignore[no-untyped-call]

        return tapped


@dataclass(frozen=True)
class _Layer:
    """A layer that owns parameters that train, and which of them, by their names in it.

    `tied` is the number of the weight it shares with another layer, None where it shares none.
    """

    name: str
    module: nn.Module
    owned: tuple[str, ...]
    tied: int | None = None

    def measure(self, entered: Tensor, gradient: Tensor, watch: _Pass) -> Tensor:
        """Return the squared norm of each unit's gradient of what this layer owns, [units]."""
        rows, module = watch.rows, self.module
        if isinstance(module, nn.Embedding):
            found = layers.embedding(entered, gradient, rows, module.padding_idx)
            if self.tied is not None:
                kept = (
                    torch.ones_like(entered) if module.padding_idx is None else entered != module.padding_idx
                )
                found = found + watch.tied.pop(self.tied).cross(gradient, rows, kept)
            return found
        if _is_matrix(module):
            found = torch.zeros(rows.count, dtype=torch.float64, device=gradient.device)
            if "weight" in self.owned:
                found = found + layers.matrix(entered, gradient, rows)
            if "bias" in self.owned:
                found = found + layers.bias(gradient, rows)
            if self.tied is not None:
                watch.tied[self.tied] = Tied.of(watch.ids[self.tied], entered, gradient, rows)
            return found
        try:
            return layers.own(module, entered, gradient, self.owned, rows)
        except ValueError as error:
            raise Unsuited(f"{self.name} {error}") from None


def _layers(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[_Layer]:
    """Yield the layers that own the parameters. Raises Unsuited for what cannot be measured."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    owners: dict[int, list[tuple[str, nn.Module, str]]] = {key: [] for key in names}
    for path, part in module.named_modules():
        for key, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in owners:
                owners[id(parameter)].append((path, part, key))
    tied: dict[int, int] = {}
    owned: dict[int, list[str]] = {}
    found: dict[int, tuple[str, nn.Module]] = {}
    for number, (key, places) in enumerate(owners.items()):
        if not places:
            raise Unsuited(f"{names[key]} is in no layer of the module")
        if len(places) > 1:
            _check_tied(names[key], places)
            tied |= {id(part): number for _, part, _ in places}
        for path, part, own in places:
            owned.setdefault(id(part), []).append(own)
            found[id(part)] = path, part
    for key, (path, part) in found.items():
        _check_layer(path, part, owned[key])
        yield _Layer(path, part, tuple(owned[key]), tied.get(key))


def _check_tied(name: str, places: Sequence[tuple[str, nn.Module, str]]) -> None:
    kinds = sorted(type(part).__name__ for _, part, _ in places)
    if kinds != ["Embedding", "Linear"] or any(own != "weight" for _, _, own in places):
        raise Unsuited(f"{name} is shared by {len(places)} layers: {', '.join(kinds)}")


def _check_layer(path: str, part: nn.Module, owned: Sequence[str]) -> None:
    if isinstance(part, nn.Embedding):
        if part.max_norm is not None or part.scale_grad_by_freq or part.sparse:
            raise Unsuited(f"{path} is an embedding with a norm, a scale or sparse gradients of its own")
    elif _is_matrix(part):
        if odd := set(owned) - {"weight", "bias"}:
            raise Unsuited(f"{path} has {sorted(odd)[0]}, which is used by a hook")
    elif any(part.get_parameter(own).ndim > 1 for own in owned):
        raise Unsuited(f"{path} is a {type(part).__name__}, of which no norm is known")


def _is_matrix(part: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return type(part) in (nn.Linear, Conv1D)
