"""Methods with a network of their own, trained ahead of time by train.py, and that network on disk.

A trained network is a setting like any other: `weights=FILE`. `weights=untrained` is the network
as it is before training, the control of every learned method.
"""

import dataclasses
import threading
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from uptake.adaptation.draws import drawing_from
from uptake.adaptation.tensors import (
    NetworkAbout,
    fill,
    from_metadata,
    read_tensors,
    to_metadata,
    write_tensors,
)
from uptake.codec import Malformed, plain
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.lm.base import LM
from uptake.methods.contract.method import Method, MethodSpec, State
from uptake.settings import describe
from uptake.tasks.questions import Question
from uptake.text.types import Document, Source

StateT = TypeVar("StateT", bound=State)
EpisodeT = TypeVar("EpisodeT")
UNTRAINED = "untrained"
_loaded: OrderedDict[tuple[object, ...], nn.Module] = OrderedDict()
_loading = threading.RLock()
_KEPT = 4  # networks kept loaded


@dataclass(frozen=True)
class Material:
    """What there is to make episodes of: documents, questions about them, unrelated text.

    `sources` gives for a document where its neighbours are, under the filter that holds itself back.
    """

    documents: tuple[Document, ...]
    questions: tuple[Question, ...] = ()
    unrelated: tuple[Document, ...] = ()
    sources: Callable[[Document], Source] | None = None

    def asked(self) -> dict[str, list[Question]]:
        """Return the questions by the id of their document; BadInput where none is on a document here.

        Those on others come along, and a warning counts them.
        """
        if not self.questions:
            raise BadInput("no questions to learn from: give some on the documents, with --questions")
        if not self.documents:
            raise BadInput("no documents to learn from: give those the questions are on, with --documents")
        asked: dict[str, list[Question]] = {}
        for question in self.questions:
            asked.setdefault(question.document, []).append(question)
        there = {document.id for document in self.documents}
        left = sum(len(some) for document, some in asked.items() if document not in there)
        if left == len(self.questions):
            raise BadInput(
                "no question is on a document that is there: the first names "
                f"{self.questions[0].document!r}, the first document is {self.documents[0].id!r}; "
                "give each question the id of its `document`"
            )
        if left:
            warnings.warn(
                f"left out: {left:,} of {len(self.questions):,} questions are on no document that is there",
                stacklevel=2,
            )
        return asked


class Learner(ABC, Generic[EpisodeT]):
    """What `uptake train` trains or counts ahead; final classes are frozen dataclasses of settings."""

    portable: ClassVar[bool] = False  # True: a network trained beside one base serves another

    @abstractmethod
    def build(self, lm: LM) -> nn.Module:
        """Return the untrained network for this base model; what is random, `drawing_from` draws."""

    @abstractmethod
    def episodes(self, lm: LM, material: Material) -> Sequence[EpisodeT]:
        """Return what one training step each is made of. Raises BadInput for material that lacks it."""

    @abstractmethod
    def loss(self, network: nn.Module, lm: LM, episode: EpisodeT) -> Tensor:
        """Return the loss of one episode; train.py minimises it over the network's parameters."""

    def gradients(
        self, network: nn.Module, lm: LM, episode: EpisodeT
    ) -> tuple[float, Sequence[Tensor | None]]:
        """Return the loss of one episode and a gradient for each parameter: this one is autograd's.

        Where a method has a rule of its own (first order, parts whose graphs need not be held at
        once, statistics that are counted), it says so here.
        """
        loss = self.loss(network, lm, episode)
        parameters = list(network.parameters())
        return loss.item(), torch.autograd.grad(loss, parameters, allow_unused=True)

    def about(self, network: nn.Module) -> Mapping[str, str]:
        """Return what `restore` needs beside the tensors."""
        return {}

    def restore(self, lm: LM, about: Mapping[str, str]) -> nn.Module:
        """Return a network of the shape that a file's `about` tells of, ready for its tensors."""
        return self.build(lm)

    def fresh(self, lm: LM, seed: int = 0) -> nn.Module:
        """Return the untrained network that a seed gives."""
        with drawing_from(torch.Generator().manual_seed(seed)):
            return self.build(lm).to(lm.device)

    def save(self, network: nn.Module, lm: LM, path: Path) -> None:
        """Write a network, whole or not at all."""
        about = NetworkAbout(type(self).__name__, lm.fingerprint, describe(self), self.about(network))
        write_tensors(path, network.state_dict(), to_metadata(about))

    def load(self, path: Path, lm: LM) -> nn.Module:
        """Read a network. Raises BadInput, Damaged, or Mismatch where it is another method's or base's."""
        metadata, tensors = read_tensors(path, "network")
        about = from_metadata(NetworkAbout, metadata, path, "network")
        if about.kind != type(self).__name__:
            raise Mismatch(f"{path} is a network of {about.kind}, not of {type(self).__name__}: give its own")
        if not self.portable and about.base != lm.fingerprint:
            raise Mismatch(
                f"{path} was trained on model {about.base}, not {lm.fingerprint}: "
                "load that model, or train again on this one"
            )
        try:
            with drawing_from(torch.Generator()):
                network = self.restore(lm, about.about)
        except (KeyError, Malformed) as error:
            raise Damaged(f"{path} lacks what its network is made by ({error}): make it anew") from None
        try:
            fill(network, tensors, path)
        except Mismatch:
            others = ", ".join(_others(about.settings, plain(describe(self))))
            if not others:
                raise
            raise Mismatch(f"{path} was trained with {others}: give the same settings, with --set") from None
        return network.to(lm.device)


@dataclass(frozen=True, kw_only=True)
class Learned(Learner[EpisodeT], Method[StateT], Generic[StateT, EpisodeT]):
    """A method with a network; final classes add their settings and what a learner needs."""

    weights: str = ""  # a file from `uptake train`, or "untrained"
    trained: nn.Module | None = field(
        default=None, repr=False, compare=False, metadata={"setting": False}
    )  # a network at hand, in place of a file

    def with_network(self, network: nn.Module) -> "Learned[StateT, EpisodeT]":
        """Return this method with a network at hand."""
        return dataclasses.replace(self, trained=network)

    def network(self, lm: LM) -> nn.Module:
        """Return the frozen network: the one at hand, or that of `weights`, which is read once.

        Raises BadInput where there is none, Mismatch where it belongs to something else.
        """
        if self.trained is not None:
            return self.trained
        if not self.weights:
            verb = type(self).__name__.lower()
            raise BadInput(
                f"{verb} has no trained network: make one with `uptake train`, give it with "
                "--set weights=FILE (weights=untrained is the control)"
            )
        stamp = () if self.weights == UNTRAINED else _stamp(Path(self.weights))
        key = (type(self), repr(self), lm.fingerprint, str(lm.device), *stamp)
        with _loading:  # one at a time: two threads share what either has loaded
            if key not in _loaded:
                made = self.fresh(lm) if self.weights == UNTRAINED else self.load(Path(self.weights), lm)
                _loaded[key] = made.requires_grad_(False).eval()
                while len(_loaded) > _KEPT:
                    _loaded.popitem(last=False)
            _loaded.move_to_end(key)
            return _loaded[key]


def learner_of(spec: MethodSpec) -> Learner[Any] | None:
    """Return what `uptake train` trains for a method, None where it has nothing to train."""
    found = spec.method if spec.learner is None else spec.learner
    return found if isinstance(found, Learner) else None


def _others(theirs: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the settings, as `describe` gives them, that are not mine; what files are named says nothing."""
    for name, value in theirs.items():
        own = mine.get(name)
        if isinstance(value, Mapping) and isinstance(own, Mapping) and value.get("kind") == own["kind"]:
            yield from _others(value, own, f"{prefix}{name}.")
        elif value != own and name not in ("kind", "weights", "start"):
            written = value.get("kind") if isinstance(value, Mapping) else value
            plainly = isinstance(value, str | int | float) and not isinstance(value, bool)
            yield f"{prefix}{name}={written if plainly else str(written).lower()}"


def _stamp(path: Path) -> tuple[object, ...]:
    if not path.is_file():
        raise BadInput(f"weights={path}: there is no such file; make one with `uptake train`")
    found = path.stat()
    return str(path.resolve()), found.st_mtime_ns, found.st_size
