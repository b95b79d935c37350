"""What is done to a gradient before its step: a chain of transforms, for each document if one needs it.

Clipping, masks, noise. A transform is a frozen dataclass of settings, found by its class name; a new one
is a new file. What is done to each document's gradient apart costs a backward pass a document, and is
computed only where a transform of the chain needs it.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uptake.errors import BadInput, Diverged

Gradients = dict[str, Tensor]  # by the parameter's name; a parameter that is not here takes no step


@dataclass(frozen=True)
class Losses:
    """What one step descends: the sum of `values` [examples], each the loss of one example.

    `documents` says which document each example came from, by any value of its own.
    Raises BadInput where there is not one of each.
    """

    values: Tensor
    documents: Sequence[Hashable]

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.documents),):
            raise BadInput(
                f"losses of shape {tuple(self.values.shape)} for {len(self.documents)} documents: give one "
                "loss an example, and its document"
            )

    @classmethod
    def one(cls, value: Tensor, document: Hashable) -> "Losses":
        """Return the losses of a step on one example, whose loss is a scalar."""
        return cls(value[None], (document,))

    def by_document(self) -> list[Tensor]:
        """Return the loss of each document, the sum over its examples, in the order documents first come."""
        places: dict[Hashable, list[int]] = {}
        for place, document in enumerate(self.documents):
            places.setdefault(document, []).append(place)
        return [self.values[some].sum() for some in places.values()]


class GradientTransform(ABC):
    """What is done to a gradient before the optimizer sees it.

    With `per_document` it is done to the gradient of each document of the batch, before they are summed;
    otherwise to their sum. `random` says that it draws, from the generator of the loop.
    """

    per_document: bool = False
    random: bool = False

    @abstractmethod
    def apply(self, gradients: Gradients, generator: torch.Generator | None) -> Gradients:
        """Return the gradients to go on with; `generator` is None only where `random` is False.

        The mapping is the transform's to change, the tensors are not: two parameters may share one.
        Differentiable wherever the gradients are. Raises Diverged where they are not finite and it matters.
        """


@dataclass(frozen=True)
class Clip(GradientTransform):
    """Scales gradients down together so that their joint norm is at most `norm`."""

    norm: float = 1.0
    per_document: bool = False

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise BadInput(f"clip {self.norm}: use a positive norm, or none")

    def apply(self, gradients: Gradients, generator: torch.Generator | None) -> Gradients:
        if not gradients:
            return gradients
        norm = _joint_norm(list(gradients.values()))
        if not torch.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm.item()}: use a smaller learning rate")
        # As nn.utils.clip_grad_norm_, small addend and all.
        factor = self.norm / (norm + 1e-6)
        if factor < 1:
            for name in gradients:  # one at a time: a second copy of all of them is never held
                gradients[name] = gradients[name] * factor
        return gradients


@dataclass(frozen=True)
class Mask(GradientTransform):
    """Keeps the gradients of parameters whose name holds `part`; no other parameter takes a step.

    Of a parameter in `entries` only the entries that are true there keep theirs, the others get zero.
    """

    part: str = ""
    entries: Mapping[str, Tensor] = field(
        default_factory=dict, repr=False, compare=False, metadata={"setting": False}
    )
    per_document: bool = False

    def apply(self, gradients: Gradients, generator: torch.Generator | None) -> Gradients:
        masked = {name: gradient for name, gradient in gradients.items() if self.part in name}
        if gradients and not masked:
            raise BadInput(
                f"mask part {self.part!r}: no parameter that trains is called so, use a part of "
                f"{', '.join(list(gradients)[:3])}"
            )
        for name, some in self.entries.items():
            if name not in masked:
                raise BadInput(f"mask entries of {name!r}, which has no gradient: name one that trains")
            masked[name] = masked[name] * some
        return masked


def chain(clip: float | None, transforms: Sequence[GradientTransform] = ()) -> tuple[GradientTransform, ...]:
    """Return the transforms, then clipping of what comes out of them to the norm `clip`, if there is one.

    Raises BadInput for a norm that is not positive, and for transforms in an order that cannot be run.
    """
    links = (*transforms, *(() if clip is None else (Clip(clip),)))
    _check_order(links)
    return links


def check(transforms: Sequence[GradientTransform], generator: torch.Generator | None) -> None:
    """Raise BadInput for a chain that cannot be run: in this order, or without a generator."""
    _check_order(transforms)
    for transform in transforms:
        if transform.random and generator is None:
            raise BadInput(f"transform {_name(transform)} draws random numbers: give the loop a generator")


def _check_order(transforms: Sequence[GradientTransform]) -> None:
    summed = ""
    for transform in transforms:
        if not transform.per_document:
            summed = _name(transform)
        elif summed:
            raise BadInput(
                f"transform {_name(transform)} of each document's gradient after {summed}, which sees their "
                f"sum: put {_name(transform)} first"
            )


def _name(transform: GradientTransform) -> str:
    return type(transform).__name__.lower()


def gradients_of(
    losses: Losses,
    parameters: Mapping[str, Tensor],
    transforms: Sequence[GradientTransform] = (),
    generator: torch.Generator | None = None,
    create_graph: bool = False,
) -> Gradients:
    """Return the gradient of a step, through the chain.

    One backward pass, unless a transform needs each document's gradient: then one a document.
    A parameter that no loss depends on has none. With `create_graph` the result can be differentiated.
    """
    if not any(transform.per_document for transform in transforms):
        found = _gradients(losses.values.sum(), parameters, create_graph, create_graph)
        return transformed(found, transforms, generator)
    each = [transform for transform in transforms if transform.per_document]
    whole = [transform for transform in transforms if not transform.per_document]
    summed: Gradients = {}
    parts = losses.by_document()
    for number, loss in enumerate(parts):
        # The graph is shared by all documents of the batch: the last one may use it up.
        keep = create_graph or number + 1 < len(parts)
        found = transformed(_gradients(loss, parameters, create_graph, keep), each, generator)
        for name, gradient in found.items():
            summed[name] = summed[name] + gradient if name in summed else gradient
    return transformed(summed, whole, generator)


def transformed(
    gradients: Gradients, transforms: Sequence[GradientTransform], generator: torch.Generator | None
) -> Gradients:
    """Return a gradient after the transforms, in their order; of one document it is each and sum in one."""
    for transform in transforms:
        gradients = transform.apply(gradients, generator)
    return gradients


def _gradients(
    loss: Tensor, parameters: Mapping[str, Tensor], create_graph: bool, retain_graph: bool
) -> Gradients:
    found = torch.autograd.grad(
        loss,
        list(parameters.values()),
        retain_graph=retain_graph,
        create_graph=create_graph,
        allow_unused=True,
    )
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def _joint_norm(gradients: Sequence[Tensor]) -> Tensor:
    if not any(gradient.requires_grad for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    # The root of a sum that is never zero: a norm of zero has no second derivative.
    squares = torch.stack([gradient.pow(2).sum() for gradient in gradients])
    return squares.sum().clamp(min=1e-30).sqrt()
