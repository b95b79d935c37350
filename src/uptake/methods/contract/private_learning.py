"""Training a method's network under differential privacy: units of text, the noisy sum of their gradients.

A unit is a document, or all of a user's, or an edit. Episodes are made of each unit by itself, so that none
mixes two: what a unit adds is the sum of its own episodes' gradients, clipped as one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.privacy.clipping import ClippedSum
from uptake.adaptation.privacy.dp import DP, Claim
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM
from uptake.lm.private_training import noised
from uptake.methods.contract.learned import Learner, TrainingData
from uptake.text.types import Document


@dataclass(frozen=True)
class Units:
    """The episodes of each unit; one of which none can be made has none, and counts nevertheless."""

    episodes: tuple[tuple[Any, ...], ...]
    claim: Claim
    # So that a training of them is described by how many there are.
    dp: DP = field(repr=False)

    def __len__(self) -> int:
        return len(self.episodes)


def units_of(learner: Learner[Any], lm: LM, material: TrainingData, dp: DP) -> Units:
    """Return the units of what is to be learnt in private, each with the episodes made of it alone.

    Raises BadInput where a store would be searched, no unit gives an episode, or the claim cannot be kept.
    """
    if material.sources is not None:
        raise BadInput(
            "a store under privacy: which neighbours a document has depends on the other documents; leave "
            "the store out"
        )
    made, reason = list[tuple[Any, ...]](), ""
    for part in _parts(material, dp):
        try:
            made.append(tuple(learner.episodes(lm, part)))
        except BadInput as error:
            reason = reason or str(error)
            made.append(())
    if not made:
        raise BadInput("no documents or edits to learn in private: give some")
    if not any(made):
        raise BadInput(
            f"under privacy episodes are made of one {dp.unit} alone, and no {dp.unit} gives one ({reason}): "
            "use privacy.unit=user with documents of a `group`, or train without privacy"
        )
    return Units(tuple(made), dp.claim(len(made)), dp)


def _parts(material: TrainingData, dp: DP) -> Iterator[TrainingData]:
    """Yield what each unit has of the material; unrelated text is public, and all of it there for each."""
    units: dict[str, list[Document]] = {}
    for document in material.documents:
        name = document.group if dp.unit == "user" else document.id
        if not name:
            raise BadInput(
                f"document {document.id!r} has no `group`, and privacy is kept for each user: name the user "
                "that each document is of"
            )
        units.setdefault(name, []).append(document)
    named = {question.document for question in material.questions}
    if lost := sorted(named - {document.id for document in material.documents}):
        raise BadInput(
            f"a question is about {lost[0]!r}, which is none of the documents, so it is no unit's: leave it "
            "out"
        )
    for documents in units.values():
        own = {document.id for document in documents}
        asked = tuple(question for question in material.questions if question.document in own)
        yield replace(material, documents=tuple(documents), questions=asked, edits=())
    for edit in material.edits:
        yield replace(material, documents=(), questions=(), edits=(edit,))


def private_gradients(
    learner: Learner[Any], network: nn.Module, lm: LM, units: Units, step: int
) -> Sequence[Tensor]:
    """Return one step's gradient of a network: of units drawn by themselves, clipped, with noise on the sum.

    Raises BadInput for a network whose training changes more than its parameters.
    """
    dp, claim, parameters = units.dp, units.claim, dict(network.named_parameters())
    randomness, summing = dp.randomness(step), ClippedSum(network, parameters, dp.clip)
    kept = {name: value.clone() for name, value in network.named_buffers()}
    for place in randomness.chosen(len(units), claim.sampling_rate):
        summing.add_gradients(_gradients(learner, network, lm, units.episodes[place]))
    if any(not torch.equal(value, kept[name]) for name, value in network.named_buffers()):
        raise BadInput(
            "its training counts statistics of the text, which no noise covers: it has no private form as it "
            "is set"
        )
    return [*noised(summing.take(), dp, claim, randomness).values()]


def _gradients(
    learner: Learner[Any], network: nn.Module, lm: LM, episodes: Sequence[Any]
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradients of a unit's episodes; one that diverges is a gradient of no number."""
    names = [name for name, _ in network.named_parameters()]
    for episode in episodes:
        try:
            _, found = learner.gradients(network, lm, episode)
        except Diverged:
            yield {name: torch.full_like(value, torch.nan) for name, value in network.named_parameters()}
            continue
        yield {name: own for name, own in zip(names, found, strict=True) if own is not None}
