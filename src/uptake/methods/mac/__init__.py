"""MAC (Tack et al. 2024): documents become a few vectors each, and the model attends to all of them.

The language model is frozen. A trained network turns what it makes of a document into slots; before
a token is predicted, the text up to it attends to the slots of all documents, and what it finds is added
as keys and values in every layer. A document is forgotten by removing its slots.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Self

import torch
from torch import Tensor, nn

from uptake.errors import BadInput
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.capabilities import Layers, capability
from uptake.lm.examples import Example
from uptake.lm.read_again import predictions_again
from uptake.lm.rows import RowCaches, each_row
from uptake.lm.scoring import divergence
from uptake.lm.wrappers import Routed
from uptake.methods.contract.learned import UNTRAINED, Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, charged_by_row, same_base
from uptake.methods.mac.network import BaseShapes, ContextMemory
from uptake.methods.mac.reading import features, features_and_cache, features_of
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.select import Nothing
from uptake.text.types import Document


@dataclass(frozen=True, kw_only=True)
class MacState(State):
    """The slots of all that was read, [pieces, slots, width]; passage i of the history has `pieces[i]`."""

    slots: Tensor
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class MacEpisode:
    """Documents, and questions each of which may see some of them: token ids throughout.

    `own` is the document each question is on, `seen` is [questions, documents], `kept` the documents
    that gradients go back to.
    """

    documents: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    own: tuple[int, ...]
    seen: Tensor
    kept: tuple[int, ...]
    unrelated: tuple[int, ...] = ()


@dataclass(frozen=True)
class Mac(Learned[MacState, MacEpisode]):
    """A memory of documents as slots, read by attention; no weight of the model is trained.

    `width`, `slots`, `heads` and `blocks` are the network's; with `group` no more documents than that
    are attended to at once. The others are of training: the documents of an episode, the share of
    them that gradients go back to, the weights of finding the right document among all of them and of
    the divergence on unrelated text, and how a question is put.
    """

    width: int = 256
    slots: int = 4
    heads: int = 4
    blocks: int = 2
    group: int | None = None
    documents: int = 16
    backward: float = 1.0
    matching: float = 1.0
    locality: float = 0.0
    template: str = Asking.template

    def __post_init__(self) -> None:
        if min(self.slots, self.heads, self.blocks, self.documents) < 1 or self.width % self.heads:
            raise BadInput(
                f"width {self.width}, heads {self.heads}, slots {self.slots}, blocks {self.blocks}, "
                f"documents {self.documents}: use 1 or more of each, and a width that the heads divide"
            )
        if self.group is not None and self.group < 2:
            raise BadInput(f"group {self.group}: use 2 documents or more, or none")
        if not 0 <= self.backward <= 1 or min(self.matching, self.locality) < 0:
            raise BadInput(
                f"backward {self.backward}, matching {self.matching}, locality {self.locality}: "
                "use 0 to 1, and twice 0 or more"
            )
        Asking(self.template)

    @classmethod
    def example(cls) -> Self:
        return cls(weights=UNTRAINED, width=32, slots=2, heads=2, blocks=1)

    def build(self, lm: LM) -> nn.Module:
        first = torch.tensor([lm.tokenizer.opened("")], device=lm.device)
        layered = capability(lm, Layers)
        states, cache = layered.layers(first, layered.start())
        shapes = tuple((keys.shape[1], keys.shape[3], values.shape[3]) for keys, values, *_ in cache)
        sizes = BaseShapes(features_of(states).shape[-1], shapes)
        return ContextMemory(sizes, self.width, self.slots, self.heads, self.blocks)

    def init(self, lm: LM) -> MacState:
        network = self.network(lm)
        latents = network.latents
        return MacState(base=lm.fingerprint, slots=latents.new_zeros(0, *latents.shape))  # type: ignore[operator,misc]

    def adapt(
        self,
        states: Sequence[MacState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[MacState]:
        def learn(row: int, state: MacState, found: Evidence) -> MacState:
            return self._adapt(row, state, lm, found, context)

        return charged_by_row(learn, states, evidence, context, lm.device)

    def _adapt(self, row: int, state: MacState, lm: LM, evidence: Evidence, context: Context) -> MacState:
        if not evidence.passages:
            return state
        network = self.network(lm)
        made, pieces = [state.slots], list(state.pieces)
        for passage in evidence.passages:
            if not context.may_continue(row):
                return state
            ids = lm.tokenizer.opened(passage.prompt + passage.text)
            context.ledger(row).tokens_read += len(ids) - 1
            parts = [ids[start : start + lm.window] for start in range(0, len(ids), lm.window)]
            with torch.no_grad():
                # Each by itself, so that what a document becomes depends on nothing else.
                made += [_slots(network, lm, part) for part in parts]
            pieces.append(len(parts))
        return state.after(evidence, context, slots=torch.cat(made), pieces=tuple(pieces))

    def adapted(self, states: Sequence[MacState], lm: LM) -> LM:
        same_base(states, lm)
        network = self.network(lm)
        return Routed(
            [MacLM(lm, network, _in_order(state), self.group) if len(state.slots) else lm for state in states]
        )

    def forget(self, state: MacState, lm: LM, ids: Sequence[int], context: Context | None = None) -> MacState:
        """Return the state without these passages; the rest is not read again."""
        gone, history, kept = set(ids), [], []
        for reading in state.history:
            stays = [passage.id not in gone for passage in reading.passages]
            kept += stays
            if any(stays):
                passages = tuple(itertools.compress(reading.passages, stays))
                scores = tuple(itertools.compress(reading.scores, stays))
                history.append(replace(reading, passages=passages, scores=scores))
        rows = [stay for stay, count in zip(kept, state.pieces, strict=True) for _ in range(count)]
        pieces = tuple(itertools.compress(state.pieces, kept))
        return replace(
            state,
            history=tuple(history),
            slots=state.slots[torch.tensor(rows, dtype=torch.bool)],
            pieces=pieces,
        )

    def episodes(self, lm: LM, material: TrainingData) -> Sequence[MacEpisode]:
        """Return episodes of `documents` documents with all their questions, shuffled once.

        How many of them a question may see, its own always among them, is drawn from 1 to all, small
        numbers as often as large: few teach to read a document, many to find it.
        """
        random = Random(0)
        asked = material.questions_by_document()
        documents = [document for document in material.documents if document.id in asked]
        random.shuffle(documents)
        groups = [documents[i : i + self.documents] for i in range(0, len(documents), self.documents)]
        unrelated = [self._ids(lm, document.text) for document in material.unrelated]
        return [
            self._episode(lm, group, asked, random, random.choice(unrelated) if unrelated else ())
            for group in groups
        ]

    def _episode(
        self,
        lm: LM,
        documents: Sequence[Document],
        asked: Mapping[str, Sequence[Question]],
        random: Random,
        unrelated: tuple[int, ...],
    ) -> MacEpisode:
        count, asking = len(documents), Asking(self.template)
        prompts, answers, own, seen = [], [], [], []
        for place, document in enumerate(documents):
            for question in asked[document.id]:
                answer = self._answer(lm, asking, question.answers[0])[: lm.window // 2]
                opening, *prompt = lm.tokenizer.opened(asking.prompt(question))
                prompts.append((opening, *prompt[len(answer) - lm.window :]))
                answers.append(tuple(answer))
                own.append(place)
                others = [other for other in range(count) if other != place]
                visible = {place, *random.sample(others, round(count ** random.random()) - 1)}
                seen.append([other in visible for other in range(count)])
        kept = random.sample(range(count), round(self.backward * count))
        texts = tuple(self._ids(lm, document.text) for document in documents)
        return MacEpisode(
            texts, tuple(prompts), tuple(answers), tuple(own), torch.tensor(seen), tuple(kept), unrelated
        )

    def _answer(self, lm: LM, asking: Asking, text: str) -> list[int]:
        """Return the tokens of an answer and of its end: of the line, or, where it has none, of the text."""
        ids, line = (lm.tokenizer.encode(each)[0] for each in (asking.answer(text), asking.learnt(text)))
        return line if len(line) > len(ids) or lm.tokenizer.end is None else [*ids, lm.tokenizer.end]

    def _ids(self, lm: LM, text: str) -> tuple[int, ...]:
        return tuple(lm.tokenizer.opened(text)[: lm.window])

    def loss(self, network: nn.Module, lm: LM, episode: MacEpisode) -> Tensor:
        """Return the mean negative log-likelihood of the answers' tokens, and what else counts.

        That is, by `matching`, how unlikely each of these tokens is to attend to its own document among
        all of the episode's: what is asked for is soon learnt, and without this hardly ever whose it is.
        By `locality`, it is the divergence on unrelated text.
        """
        bank = _bank(network, lm, episode, network.training)
        texts = [
            (*prompt, *answer[:-1]) for prompt, answer in zip(episode.prompts, episode.answers, strict=True)
        ]
        longest = max(map(len, episode.answers))
        # The places an answer is predicted at; a short answer's last place is asked again, and not counted.
        starts = torch.tensor([len(prompt) - 1 for prompt in episode.prompts], device=lm.device)
        counts = torch.tensor([len(answer) for answer in episode.answers], device=lm.device)
        steps = torch.arange(longest, device=lm.device)
        places = starts[:, None] + torch.minimum(steps, counts[:, None] - 1)
        targets = _padded(episode.answers, lm)
        log_probs, asked = _recalled(network, lm, texts, places, bank, episode.seen.to(lm.device))
        counted = steps < counts[:, None]
        loss = -log_probs.gather(-1, targets[..., None])[..., 0][counted].mean()
        if self.matching:
            found = network.scores(asked, bank).log_softmax(-1)  # type: ignore[operator]
            own = torch.tensor(episode.own, device=lm.device)[:, None].expand_as(counted)
            loss = loss - self.matching * found.gather(-1, own[..., None])[..., 0][counted].mean()
        if self.locality and len(episode.unrelated) > 1:
            opening, *rest = episode.unrelated
            before = predictions_again(lm, Example((opening,), tuple(rest)))
            every = torch.arange(len(rest), device=lm.device)[None]
            after, _ = _recalled(network, lm, [episode.unrelated], every, bank)
            loss = loss + self.locality * divergence(before, after[0]).mean()
        return loss


class MacLM(Wrapper):
    """An LM each of whose predictions first attends to a bank of slots, [documents, slots, width], in order.

    Every token is read twice: once as the base reads it, to make the query; once with what was found.
    """

    def __init__(self, inner: LM, network: nn.Module, bank: Tensor, group: int | None = None) -> None:
        super().__init__(inner)
        self.layered = capability(inner, Layers)
        self.network, self.bank, self.group = network, bank, group

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.network, self.bank, self.group)

    def start(self) -> Cache:
        return self.layered.start(), None, None

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if isinstance(cache, RowCaches) or (lengths is not None and not self.layered.pads):
            return each_row(self, ids, cache, lengths)
        plain, before, gaps = self.start() if cache is None else cache
        if lengths is not None:
            gaps = ids.shape[1] - torch.tensor(lengths, device=ids.device)[:, None]
        states, plain = self.layered.layers(ids, plain, lengths)
        features = features_of(states)
        whole = features if before is None else torch.cat([before, features], 1)
        places = torch.arange(whole.shape[1] - ids.shape[1], whole.shape[1], device=ids.device)
        places = places.expand(len(ids), -1)
        network: Any = self.network
        asked = network.query(whole.to(self.bank.dtype), places, gaps)
        slots = network.prefix(network.aggregate(asked, self.bank, None, self.group))
        log_probs = self.layered.step_with_slots(ids, places, slots, plain)
        return log_probs, None if cache is None else (plain, whole, gaps)


def _recalled(
    network: Any,
    lm: LM,
    texts: Sequence[Sequence[int]],
    places: Tensor,
    bank: Tensor,
    seen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities at some places of texts, and what asked; gradients go to the network alone."""
    read, plain = features_and_cache(lm, texts)
    asked = network.query(read.to(bank.dtype), places)
    slots = network.prefix(network.aggregate(asked, bank, seen))
    ids = _padded(texts, lm).gather(1, places)
    return capability(lm, Layers).step_with_slots(ids, places, slots, plain), asked


def _encode(network: Any, lm: LM, documents: Sequence[Sequence[int]]) -> Tensor:
    read, lengths = features(lm, documents)
    return network.encode(read.to(network.latents.dtype), lengths)  # type: ignore[no-any-return]


def _slots(network: Any, lm: LM, document: Sequence[int]) -> Tensor:
    """Return the slots of a document that nobody reads again."""
    ids = torch.tensor([document], device=lm.device)
    read = features_of(capability(lm, Layers).layers(ids)[0])
    length = torch.tensor([len(document)], device=lm.device)
    return network.encode(read.to(network.latents.dtype), length)  # type: ignore[no-any-return]


def _bank(network: nn.Module, lm: LM, episode: MacEpisode, training: bool) -> Tensor:
    """Return the slots of the episode's documents; in training some of them are constants."""
    if not training or len(episode.kept) == len(episode.documents):
        return _encode(network, lm, episode.documents)
    with torch.no_grad():
        bank = _encode(network, lm, episode.documents)
    if not episode.kept:
        return bank
    live = _encode(network, lm, [episode.documents[place] for place in episode.kept])
    return bank.index_copy(0, torch.tensor(episode.kept, device=bank.device), live)


def _padded(rows: Sequence[Sequence[int]], lm: LM) -> Tensor:
    """Return ids, [rows, longest], zeros to the right."""
    ids = [torch.tensor(row, dtype=torch.long, device=lm.device) for row in rows]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True)


def _in_order(state: MacState) -> Tensor:
    """Return the slots ordered by passage, so that the order of reading changes no bit."""
    ids = [passage.id for reading in state.history for passage in reading.passages]
    rows = [key for key, count in zip(ids, state.pieces, strict=True) for _ in range(count)]
    return state.slots[torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))]


spec = MethodSpec(Mac(), Nothing())
