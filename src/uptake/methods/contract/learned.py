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
from typing import Any, ClassVar, Generic, Self, TypeVar

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
from uptake.lm.base import LM, Wrapper
from uptake.methods.contract.method import Method, MethodSpec, State
from uptake.preparation import preparing
from uptake.settings import describe
from uptake.tasks.edits import Edit
from uptake.tasks.questions import Question
from uptake.text.types import Document, Source

StateT = TypeVar("StateT", bound=State)
EpisodeT = TypeVar("EpisodeT")
UNTRAINED = "untrained"
_loaded: OrderedDict[tuple[object, ...], nn.Module] = OrderedDict()
_loading = threading.RLock()
_CACHED = 4  # networks that stay loaded


@dataclass(frozen=True)
class TrainingData:
    """The data that training episodes are made from: documents, questions about them, unrelated text, edits.

    `sources` returns, for a document, the store to search for its neighbours, without the document itself.
    """

    documents: tuple[Document, ...]
    questions: tuple[Question, ...] = ()
    unrelated: tuple[Document, ...] = ()
    sources: Callable[[Document], Source] | None = None
    edits: tuple[Edit, ...] = ()

    def some_documents(self) -> tuple[Document, ...]:
        """Return the documents; BadInput where there are none."""
        if not self.documents:
            raise BadInput("no documents to learn from: give some, with --documents")
        return self.documents

    def questions_by_document(self) -> dict[str, list[Question]]:
        """Return the questions by the id of their document; BadInput where none is about one here.

        Questions about other documents are included, and a warning counts them.
        """
        if not self.questions:
            raise BadInput("no questions to learn from: give questions about the documents, with --questions")
        if not self.documents:
            raise BadInput(
                "no documents to learn from: give those that the questions are about, with --documents"
            )
        asked: dict[str, list[Question]] = {}
        for question in self.questions:
            asked.setdefault(question.document, []).append(question)
        there = {document.id for document in self.documents}
        left = sum(len(some) for document, some in asked.items() if document not in there)
        if left == len(self.questions):
            raise BadInput(
                "no question is about one of the documents: the first question names "
                f"{self.questions[0].document!r}, the first document is {self.documents[0].id!r}; "
                "give each question the id of its `document`"
            )
        if left:
            warnings.warn(
                f"left out: {left:,} of {len(self.questions):,} questions are about none of the documents",
                stacklevel=2,
            )
        return asked


class Learner(ABC, Generic[EpisodeT]):
    """What `uptake train` trains, or counts, ahead of time; final classes are frozen dataclasses."""

    portable: ClassVar[bool] = False  # True: a network trained with one base model works with another
    used_as: ClassVar[str] = "weights={}"  # the setting that uses it, with its file in the braces

    @abstractmethod
    def build(self, lm: LM) -> nn.Module:
        """Return the untrained network for this base model; what is random, `drawing_from` draws."""

    @abstractmethod
    def episodes(self, lm: LM, material: TrainingData) -> Sequence[EpisodeT]:
        """Return the episodes, one for each training step. Raises BadInput where data are missing."""

    @abstractmethod
    def loss(self, network: nn.Module, lm: LM, episode: EpisodeT) -> Tensor:
        """Return the loss of one episode; train.py minimises it over the network's parameters."""

    def gradients(
        self, network: nn.Module, lm: LM, episode: EpisodeT
    ) -> tuple[float, Sequence[Tensor | None]]:
        """Return the loss of one episode and a gradient for each parameter: this one is autograd's.

        A method that computes gradients otherwise (first order only, several graphs one after another,
        counted statistics) overrides this.
        """
        loss = self.loss(network, lm, episode)
        parameters = list(network.parameters())
        return loss.item(), torch.autograd.grad(loss, parameters, allow_unused=True)

    def about(self, network: nn.Module) -> Mapping[str, str]:
        """Return what `restore` needs beside the tensors."""
        return {}

    def restore(self, lm: LM, about: Mapping[str, str]) -> nn.Module:
        """Return a network of the shape that a file's `about` describes, before its tensors are loaded."""
        return self.build(lm)

    def fresh(self, lm: LM, seed: int = 0) -> nn.Module:
        """Return the untrained network that a seed gives."""
        with drawing_from(torch.Generator().manual_seed(seed)):
            return _beside(self.build(lm), lm)

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
                network = _beside(self.restore(lm, about.about), lm)
        except (KeyError, Malformed) as error:
            raise Damaged(f"{path} lacks what its network is made by ({error}): make it anew") from None
        try:
            fill(network, tensors, path)
        except Mismatch:
            others = ", ".join(_others(about.settings, plain(describe(self))))
            if not others:
                raise
            raise Mismatch(f"{path} was trained with {others}: give the same settings, with --set") from None
        return network


def _beside(network: nn.Module, lm: LM) -> nn.Module:
    """Return a network on the base's device; in float64 where the base is, else as it is."""
    return network.to(lm.device, torch.float64 if _is_double(lm) else None)


def _is_double(lm: LM) -> bool:
    while isinstance(lm, Wrapper):
        lm = lm.inner
    return getattr(lm, "dtype", None) == torch.float64


@dataclass(frozen=True, kw_only=True)
class WithNetwork(Learner[EpisodeT]):
    """A learner that uses its network: one in memory, or that of a file."""

    weights: str = ""  # a file from `uptake train`, or "untrained"
    trained: nn.Module | None = field(
        default=None, repr=False, compare=False, metadata={"setting": False}
    )  # a network in memory, instead of a file

    def with_network(self, network: nn.Module) -> Self:
        """Return this learner with a network in memory."""
        return dataclasses.replace(self, trained=network)

    def network(self, lm: LM) -> nn.Module:
        """Return the frozen network: the one in memory, or that of the file `weights`, which is read once.

        Raises BadInput where there is none, Mismatch where it belongs to something else.
        """
        if self.trained is not None:
            narrow = next((each.dtype for each in self.trained.parameters() if each.dtype.itemsize < 8), None)
            if narrow is not None and _is_double(lm):
                raise BadInput(
                    f"a network of {narrow} in memory beside a model of torch.float64: give network.double()"
                )
            return self.trained
        if not self.weights:
            self.fresh(lm)  # refuses a model for which nobody could train one
            verb = type(self).__name__.lower()
            raise BadInput(
                f"{verb} has no trained network: make one with `uptake train`, give it with "
                "--set weights=FILE (weights=untrained is the control)"
            )
        stamp = () if self.weights == UNTRAINED else _stamp(Path(self.weights))
        key = (type(self), repr(self), lm.fingerprint, str(lm.device), *stamp)
        with _loading:  # one at a time: two threads share what either has loaded
            if key not in _loaded:
                with preparing():
                    made = self.fresh(lm) if self.weights == UNTRAINED else self.load(Path(self.weights), lm)
                _loaded[key] = made.requires_grad_(False).eval()
                while len(_loaded) > _CACHED:
                    _loaded.popitem(last=False)
            _loaded.move_to_end(key)
            return _loaded[key]


@dataclass(frozen=True, kw_only=True)
class Learned(WithNetwork[EpisodeT], Method[StateT], Generic[StateT, EpisodeT]):
    """A method with a network; final classes add their settings and what a learner needs."""


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
