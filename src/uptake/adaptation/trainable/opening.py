"""How a private copy of a module is opened for training: some of its weights, parts of a delta, or both."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, Name, Overlay, Part, skeleton, wide
from uptake.adaptation.delta.delta import WEIGHTS
from uptake.adaptation.delta.dense import Dense
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput


def open_weights(module: nn.Module, names: Sequence[str], start: Delta) -> TrainableCopy:
    """Return a private copy that stands at `start`, ready to train these weights themselves."""
    own = _own_weights(names, start)
    rest = start.without(lambda name, _: name.owner == WEIGHTS and name.path in own)
    if names:
        _check_no_copies(rest)
    # What of the start is others' stays where it is, under the weights that are trained.
    under = rest.over(module, start.base) if rest.parts else module
    stand = dict(under.named_parameters())
    with torch.no_grad():
        # A start that was read from a file lies in the processor's memory, wherever the module is.
        at = {
            n: wide(stand[n]) + own[n].to(stand[n].device) if n in own else wide(stand[n]).clone()
            for n in names
        }
    parameters = {name: nn.Parameter(tensor) for name, tensor in at.items()}

    def delta() -> Delta:
        changed = {name: parameters[name].detach() - wide(stand[name]) for name in names}
        return rest + Delta.dense(start.base, changed)

    return TrainableCopy(skeleton(under, parameters), parameters, delta)


def open_parts(
    module: nn.Module, parts: Mapping[str, Part], owner: str, start: Delta, weights: Sequence[str] = ()
) -> TrainableCopy:
    """Return a private copy that stands at `start`, ready to train one owner's parts, of any kinds.

    Parts that the start has of this owner go on; `parts` says, by what they stand on, what others begin
    with. Beside them train `weights`, parameters of the model, as differences. Raises BadInput for a part
    that has nothing to train, or that is of other sizes in the start.
    """
    begun = going_on(parts, owner, start)
    own = _own_weights(weights, start)
    rest = start.without(lambda name, _: name in begun or (name.owner == WEIGHTS and name.path in own))
    if weights:
        _check_no_copies(rest)
    site = Overlay(module)
    whole = Delta(start.base, {**rest.parts, **begun})
    found = {name: leaves for name, leaves in whole.put(site, begun).items() if name in begun}
    for name, leaves in found.items():
        if not leaves:
            raise BadInput(
                f"{name.path!r}: nothing of a {type(begun[name]).__name__} trains as a part; use All, or LoRA"
            )
    stand = {name: site.parameter(name).detach() for name in weights}
    with torch.no_grad():
        for path, value in stand.items():
            begun_at = wide(value) + own[path].to(value.device) if path in own else wide(value).clone()
            site.replace(path, begun_at)
    known = {id(leaf) for leaves in found.values() for leaf in leaves.values()}
    known |= {id(site.parameter(name)) for name in weights}
    parameters = {name: leaf for name, leaf in site.module.named_parameters() if id(leaf) in known}
    for leaf in parameters.values():
        leaf.requires_grad_()

    def delta() -> Delta:
        now = {
            name: begun[name].holding({key: value_of(leaf) for key, leaf in leaves.items()})
            for name, leaves in found.items()
        }
        changed = {name: site.parameter(name).detach() - wide(value) for name, value in stand.items()}
        return Delta(start.base, {**rest.parts, **now, **Delta.dense(start.base, changed).parts})

    return TrainableCopy(site.module, parameters, delta)


def value_of(parameter: nn.Parameter) -> Tensor:
    """Return a copy of what a parameter holds now."""
    return parameter.detach().clone()


class _Frozen(Trainable):
    """No weight at all."""

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        return open_weights(module, [], start)


FROZEN: Trainable = _Frozen()  # for whoever wants a private copy to put something into


def _own_weights(names: Sequence[str], start: Delta) -> dict[str, Tensor]:
    wanted = set(names)
    return {path: part.values for path, part in start.parts_of(Dense, WEIGHTS).items() if path in wanted}


def _check_no_copies(rest: Delta) -> None:
    if any(part.holds_weights for part in rest.parts.values()):
        raise BadInput(
            "weights cannot be trained under a gated difference of weights: train first, then gate"
        )


def going_on(parts: Mapping[str, Part], owner: str, start: Delta) -> dict[Name, Part]:
    """Return an owner's parts by name: those of the start where it has them, else as they begin.

    Raises BadInput where one of the start is of other sizes.
    """
    begun = {}
    for name, fresh in Delta.of(start.base, parts, owner).parts.items():
        begun[name] = there = start.parts.get(name, fresh)
        sizes = [{key: tensor.shape for key, tensor in part.tensors().items()} for part in (fresh, there)]
        if type(there) is not type(fresh) or sizes[0] != sizes[1] or there.settings() != fresh.settings():
            raise BadInput(
                f"{name.path or 'the model'} has a {type(there).__name__} of {owner}'s that was made with "
                "other settings: train with those, or give this training an owner of its own, owner=second"
            )
    return begun
