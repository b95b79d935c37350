"""CaMeLS (Hu et al. 2023): online fine-tuning in which a trained network weights each token's loss.

A small language model, trained ahead of time, gives each token of a document a weight; the language
model then takes its gradient steps as fine-tuning does. arXiv 2305.15076.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import unroll
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.token_weights import Camels as CamelsWeights
from uptake.adaptation.token_weights import Uniform
from uptake.adaptation.token_weights import network as weighing
from uptake.adaptation.token_weights.base import covering
from uptake.adaptation.token_weights.network import Weighing
from uptake.adaptation.trainable import All
from uptake.adaptation.transforms import Losses, chain
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.examples import Piece, encode
from uptake.lm.loading import load
from uptake.lm.scoring import kl, losses, per_token
from uptake.methods.contract.composed import MethodWrapper
from uptake.methods.contract.learned import Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.select import Nothing
from uptake.text.types import Document, Passage


@dataclass(frozen=True)
class DocumentBatch:
    """Documents to adapt to one after another, questions about them, and a text that should not change."""

    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    unrelated: Document


BatchSequence = tuple[
    DocumentBatch, ...
]  # a sequence from the base: each batch continues from the one before


@dataclass(frozen=True)
class Camels(Learned[WeightState, BatchSequence], MethodWrapper[WeightState]):
    """Fine-tuning under learnt token weights; the steps it was trained with are the steps it takes.

    Training differentiates through the steps on `documents` documents at a time, and begins again
    from the base after `batches` of those. The loss of one batch is the negative log-likelihood of
    the answers, a token, plus `locality` times KL(base || adapted) on unrelated text, a token.
    `aim="places"` is a cheap training for that one to begin from, ours: the weights learn to foretell
    which tokens the answers are made of, and no step is taken.
    `reader` names the small model to begin from, a folder or a hub name; left out it is the base.
    """

    trains_weights_only: ClassVar[bool] = True

    steps: Finetune = field(default_factory=lambda: Finetune(optimizer=SGD(learning_rate=5e-4), clip=None))
    documents: int = 6
    batches: int = 4
    locality: float = 0.1
    reader: str = ""
    aim: Literal["answers", "places"] = "answers"  # what training optimises
    portable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.documents < 1 or self.batches < 1 or not 0 <= self.locality < float("inf"):
            raise BadInput(
                f"documents {self.documents}, batches {self.batches}, locality {self.locality}: "
                "use 1 or more, 1 or more, and a finite number, 0 or more"
            )
        if self.aim not in ("answers", "places"):
            raise BadInput(f"aim {self.aim!r}: use answers or places")
        if not isinstance(self.steps.token_weights, Uniform):
            raise BadInput(f"token_weights={self.steps.token_weights}: camels learns its own, leave it out")

    @property
    def wrapped(self) -> Finetune:
        return self.steps

    @classmethod
    def example(cls) -> Self:
        return cls(weights="untrained", steps=Finetune.example())

    def init(self, lm: LM) -> WeightState:
        self.network(lm)  # a missing file raises its error before anything is read
        return self.steps.init(lm)

    def adapt(
        self,
        states: Sequence[WeightState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[WeightState]:
        return self.weighed(self.network(lm)).adapt(states, lm, evidence, context, donate)

    def weighed(self, network: nn.Module) -> Finetune:
        """Return the fine-tuning whose token weights are the network's."""
        assert isinstance(network, Weighing)
        return replace(self.steps, token_weights=CamelsWeights(network=network))

    def build(self, lm: LM) -> Weighing:
        read = load(self.reader) if self.reader else lm
        _, opened = read.trainable_copy(All(), Delta(read.fingerprint), torch.Generator().manual_seed(0))
        reader = getattr(opened.module, "base_model", None)
        if reader is None or reader is opened.module:
            raise BadInput(f"{type(opened.module).__name__} cannot read for the weights: give another reader")
        network = Weighing(reader, read.tokenizer, read.window)
        self.restore(lm, self.about(network))  # what no file could restore raises its error before training
        return network

    def about(self, network: nn.Module) -> Mapping[str, str]:
        assert isinstance(network, Weighing)
        return network.about()

    def restore(self, lm: LM, about: Mapping[str, str]) -> Weighing:
        return weighing.restore(about)

    def episodes(self, lm: LM, material: TrainingData) -> list[BatchSequence]:
        """Return sequences over the documents in their order; texts not related come round in turn.

        Each question is asked once its document has been read. What does not fill a sequence is left out,
        unless there is no other. Raises BadInput where no question is on a document, unrelated text is
        lacking, or places are to be learnt and no document has an answer in it.
        """
        asked = material.questions_by_document()
        documents = [document for document in material.documents if document.id in asked]
        steps = self.aim == "answers"
        if steps and self.locality and not material.unrelated:
            raise BadInput(
                f"locality {self.locality} without unrelated text: give some, with --unrelated, or locality=0"
            )
        if not steps and not any(answer_places(each, asked[each.id]) for each in documents):
            raise BadInput("no answer stands in its document word for word: train with aim=answers alone")
        other = material.unrelated or (Document("", ""),)
        size = self.documents
        batches = [
            DocumentBatch(
                tuple(documents[at : at + size]),
                tuple(question for document in documents[at : at + size] for question in asked[document.id]),
                other[at // size % len(other)],
            )
            for at in range(0, len(documents), size)
        ]
        sequences = [tuple(batches[at : at + self.batches]) for at in range(0, len(batches), self.batches)]
        whole = [
            sequence
            for sequence in sequences
            if sum(len(b.documents) for b in sequence) == size * self.batches
        ]
        return whole or sequences

    def loss(self, network: nn.Module, lm: LM, episode: BatchSequence) -> Tensor:
        """Return the mean loss of a sequence's batches; of a network in evaluation mode the number alone."""
        return torch.stack([*self._losses(network, lm, episode)]).mean()

    def gradients(
        self, network: nn.Module, lm: LM, episode: BatchSequence
    ) -> tuple[float, Sequence[Tensor | None]]:
        # One batch's graph at a time: batches hang together by numbers, not by gradients.
        parameters = list(network.parameters())
        total, summed = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
        for loss in self._losses(network, lm, episode):
            total += loss.item() / len(episode)
            found = torch.autograd.grad(loss / len(episode), parameters, allow_unused=True)
            summed = [each if more is None else each + more for each, more in zip(summed, found, strict=True)]
        return total, summed

    def _losses(self, network: nn.Module, lm: LM, episode: BatchSequence) -> Iterator[Tensor]:
        """Yield each batch's loss, a function of the weights that the network gave to that batch."""
        assert isinstance(network, Weighing)
        if self.aim == "places":
            yield from (places_loss(network, batch) for batch in episode)
            return
        steps = self.weighed(network)
        private, opened = lm.trainable_copy(
            steps.trainable, Delta(lm.fingerprint), torch.Generator().manual_seed(0)
        )
        values: Mapping[str, Tensor] = opened.parameters
        optimizer_state: Mapping[str, Tensor] = steps.optimizer.known(opened.parameters, lm.fingerprint)

        def losses_of(values: Mapping[str, Tensor], piece: Piece) -> Losses:
            found = losses(private.with_parameters(values), [piece.example], [piece.weights])
            return Losses(found, (piece.document,))

        generator = torch.Generator().manual_seed(0)
        for batch in episode:
            passages = [Passage.whole(document) for document in batch.documents]
            values, optimizer_state = unroll(
                losses_of,
                values,
                steps.pieces(private, passages),
                steps.optimizer,
                2 if network.training else 0,
                chain(steps.clip, steps.transforms),
                optimizer_state,
                generator,
            )
            yield self.outer(lm, private.with_parameters(values), batch)
            values = {name: value.detach().requires_grad_() for name, value in values.items()}
            optimizer_state = {name: value.detach() for name, value in optimizer_state.items()}

    def outer(self, lm: LM, adapted: LM, batch: DocumentBatch) -> Tensor:
        """Return how badly the adapted model answers a batch's questions, and how far it has drifted."""
        loss = answer_loss(adapted, batch.questions)
        if self.locality:
            loss = loss + self.locality * drift(lm, adapted, batch.unrelated.text)
        return loss


def answer_loss(lm: LM, questions: Sequence[Question]) -> Tensor:
    """Return the negative log-likelihood of the questions' first answers, a token; differentiable."""
    asking, most = Asking(), lm.max_input_tokens(0)
    examples = [
        encode(lm.tokenizer, asking.prompt(question), asking.answer(question.answers[0])).ending(most)
        for question in questions
    ]
    # Answer tokens alone are there to be averaged: no padding among them.
    return per_token(losses(lm, examples), examples)


def places_loss(network: Weighing, batch: DocumentBatch) -> Tensor:
    """Return how badly weights foretell which tokens answers are made of: cross-entropy, nats a token.

    They foretell by the odds expm1(3 w)^2, so that a weight grows as the square root of small odds: weights
    as unequal as the odds themselves would leave next to nothing of most of a text.
    """
    losses = []
    for document in batch.documents:
        asked = [question for question in batch.questions if question.document == document.id]
        scores, spans = network.scores(document.text)
        marked = covering(spans, answer_places(document, asked)).to(scores)
        losses.append(functional.binary_cross_entropy_with_logits(6 * scores, marked, reduction="none"))
    return torch.cat(losses).mean()


def answer_places(document: Document, questions: Sequence[Question]) -> list[tuple[int, int]]:
    """Return the characters (start, end) where the document first states each question's first answer."""
    answers = [question.answers[0] for question in questions]
    found = [(document.text.find(answer), len(answer)) for answer in answers]
    return [(at, at + length) for at, length in found if at >= 0 and length]


def drift(lm: LM, adapted: LM, text: str) -> Tensor:
    """Return KL(base || adapted), in nats a token of the text's first window; differentiable."""
    whole = encode(lm.tokenizer, "", text)
    # Up to the place after the last token, where the text ends.
    most = min(lm.max_input_tokens(0), adapted.max_input_tokens(0))
    ended = replace(whole, target=(*whole.target, lm.tokenizer.opening)[:most])
    (found,) = kl(lm, adapted, [ended])
    return found.mean()


spec = MethodSpec(Camels(), Nothing())
