"""RETRO (Borgeaud et al. 2021): cross-attention to the neighbours of the chunk before, in the model's blocks.

An encoder reads the neighbours, chunks of 64 tokens with what continued them; cross-attention in some of
the model's blocks reads what came of them. RETROfit trains these new parts alone, beside a model whose
weights stay as they are; from scratch, everything is trained together.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from uptake.adaptation.delta import wide
from uptake.adaptation.trainable.places import blocks
from uptake.codec import dumps, loads
from uptake.errors import BadInput
from uptake.lm.attention_hook import find
from uptake.lm.base import LM
from uptake.lm.wrappers import Routed
from uptake.methods.contract.composed import FrozenModelMethod
from uptake.methods.contract.learned import UNTRAINED, Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, same_base, same_length
from uptake.methods.retro.lm import ChunkNeighbours, NeighbourSource, RetroLM, chunks_in_memory
from uptake.methods.retro.network import RetroParts, RetroSizes
from uptake.methods.retro.retrofit import RetroNetwork, initialise_from_base, module_of
from uptake.tasks.asking import Asking
from uptake.text.select import Everywhere
from uptake.text.types import Chunks, Document, Source


@dataclass(frozen=True, kw_only=True)
class RetroState(State):
    """What is searched for neighbours: a store's chunks, or else the passages of the history."""

    chunks: Chunks | None = None


class TextEpisode(NamedTuple):
    """Windows of texts, [batch, time + 1], how long each is, and the neighbours of their chunks.

    `tokens` is [batch, chunks, k, r], -1 where there is none.
    """

    ids: Tensor
    lengths: Tensor
    tokens: Tensor


class QuestionEpisode(NamedTuple):
    """Questions with their answers, and how many tokens of each come before its answer, [batch]."""

    windows: TextEpisode
    asked: Tensor


Found = tuple[list[int], Tensor, int]  # tokens, their neighbours, and how many are not learnt


@dataclass(frozen=True)
class Retro(Learned[RetroState, TextEpisode | QuestionEpisode], FrozenModelMethod[RetroState]):
    """Reads `neighbours` chunks of a store, or of the passages it is given, for every chunk of the text.

    With 0 neighbours it is the model without retrieval; `draw=random` reads chunks drawn at random, the
    control. The other settings are for training and are stored with the network: `chunk` tokens, `width` and
    `heads` of the new parts (the model's own if none), `encoder` layers that read a neighbour, which
    `layers` have cross-attention (1,2,...; from the middle on, every quarter of the depth, if none), and
    what becomes of the `base`: frozen (RETROfit), trained along, or initialised anew and trained (RETRO from
    scratch). An episode is `windows` windows of `episode_tokens`. `copied_share` is the share of a text's
    neighbours into which `insert_copies` puts text to copy. `initial_scale` is the size of the new parts'
    outputs before training; 0 leaves the model as it is. Given questions, it learns their answers alone,
    each with what was found for its question, whose prompt ends where a chunk ends (section 4.3; put
    questions in the same way at test time: `Asking.align`).
    """

    in_network: ClassVar[bool] = True
    tuning_choices: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("neighbours=1", "neighbours=4", "neighbours=10"),
    )

    neighbours: int = 2
    draw: Literal["nearest", "random"] = "nearest"
    chunk: int = 64
    width: int | None = None
    heads: int | None = None
    encoder: int = 2
    layers: str = ""
    base: Literal["frozen", "trained", "fresh"] = "frozen"
    episode_tokens: int = 512
    windows: int = 4
    copied_share: float = 0.0
    initial_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.neighbours < 0 or self.chunk < 1 or self.windows < 1 or self.episode_tokens <= self.chunk:
            raise BadInput(
                f"neighbours {self.neighbours}, chunk {self.chunk}, windows {self.windows}, episode_tokens "
                f"{self.episode_tokens}: use 0 or more, 1 or more, and an episode of more than a chunk"
            )
        if self.draw not in ("nearest", "random") or self.base not in ("frozen", "trained", "fresh"):
            raise BadInput(
                f"draw {self.draw!r}, base {self.base!r}: use nearest or random, and frozen, trained or fresh"
            )
        if self.encoder < 1 or not 0 <= self.copied_share <= 1:
            raise BadInput(
                f"encoder {self.encoder}, copied_share {self.copied_share}: use 1 or more, and 0 to 1"
            )
        if not 0 <= self.initial_scale < float("inf"):
            raise BadInput(f"initial_scale {self.initial_scale}: use 0, or a finite number")
        _ = self._layers

    @classmethod
    def example(cls) -> Self:
        return cls(weights=UNTRAINED, chunk=3, initial_scale=1.0)

    def build(self, lm: LM) -> RetroNetwork:
        module = module_of(lm)
        config, depth = module.config, len(blocks(module)[1])
        embedding = module.get_input_embeddings().weight.shape[1]
        width, heads = self.width or config.hidden_size, self.heads or config.num_attention_heads
        if width % heads:
            raise BadInput(f"width {width}, heads {heads}: use a width that the heads divide")
        every = tuple(range(max(1, depth // 2), depth + 1, max(1, depth // 4)))
        layers = tuple(layer - 1 for layer in self._layers or every)
        sizes = RetroSizes(config.hidden_size, embedding, layers, width, heads, self.chunk, self.encoder)
        network = self._made(lm, sizes, self.base)
        if self.base != "fresh":
            initialise_from_base(network)
        return network

    def _made(self, lm: LM, sizes: RetroSizes, base: str) -> RetroNetwork:
        dtype = wide(next(module_of(lm).parameters())).dtype
        return RetroNetwork(lm, RetroParts(sizes, self.initial_scale).to(dtype), base)

    def about(self, network: nn.Module) -> Mapping[str, str]:
        assert isinstance(network, RetroNetwork)
        return {"sizes": dumps(network.parts.sizes), "base": network.kind}

    def restore(self, lm: LM, about: Mapping[str, str]) -> RetroNetwork:
        return self._made(lm, loads(RetroSizes, about["sizes"]), about["base"])

    def episodes(self, lm: LM, material: TrainingData) -> list[TextEpisode | QuestionEpisode]:
        """Return episodes of windows of like length, each with its neighbours found.

        Where there are questions, of them alone. Raises BadInput without a store to find neighbours in,
        unless there are to be 0.
        """
        if self.neighbours and material.sources is None:
            raise BadInput("RETRO is trained with neighbours and there is no store: name one with --store")
        if not self.neighbours and self.base == "frozen":
            raise BadInput("neighbours 0 beside a frozen base leaves nothing to train: set base=trained")
        found = list((self._asked if material.questions else self._read)(lm, material))
        if not found:
            raise BadInput(f"no document of more than {self.chunk} tokens: give longer ones to train on")
        random.Random(0).shuffle(found)
        found.sort(key=lambda each: len(each[0]))
        parts = [found[at : at + self.windows] for at in range(0, len(found), self.windows)]
        if material.questions:
            return [_answering(part) for part in parts]
        generator = np.random.default_rng(0)
        return [insert_copies(_episode(part), self.chunk, self.copied_share, generator) for part in parts]

    def _read(self, lm: LM, material: TrainingData) -> Iterator[Found]:
        """Yield the windows of the documents."""
        step = min(self.episode_tokens, lm.window)
        for document in material.some_documents():
            ids = lm.tokenizer.opened(document.text)
            # One token of overlap: each is predicted once. Less than a chunk has no neighbours.
            pieces = [ids[at : at + step + 1] for at in range(0, len(ids) - 1, step)]
            pieces = [piece for piece in pieces if len(piece) > self.chunk]
            neighbours = self._neighbours(lm, material, document) if pieces else None
            yield from ((piece, self._found(piece, neighbours), 1) for piece in pieces)

    def _asked(self, lm: LM, material: TrainingData) -> Iterator[Found]:
        """Yield the questions, each with its first answer; what is found may be the text that answers it."""
        asking, most = Asking(align=self.chunk), min(self.episode_tokens, lm.window) + 1
        for question in material.questions:
            prompt = lm.tokenizer.opened(asking.aligned_prompt(question, lm.tokenizer))
            answer = lm.tokenizer.encode(asking.learnt(question.answers[0]))[0]
            # A question that is too long loses its first chunks.
            over = -(-max(0, len(prompt) + len(answer) - most) // self.chunk)
            prompt = prompt[min(over, len(prompt) // self.chunk - 1) * self.chunk :]
            piece = [*prompt, *answer][:most]
            neighbours = self._neighbours(lm, material, Document("", question.text))
            yield piece, self._found(piece, neighbours), len(prompt)

    def _neighbours(self, lm: LM, material: TrainingData, document: Document) -> ChunkNeighbours | None:
        if material.sources is None or not self.neighbours:
            return None
        return self._searched(lm, material.sources(document).chunks(lm.tokenizer.fingerprint), 0)

    def _found(self, piece: Sequence[int], neighbours: ChunkNeighbours | None) -> Tensor:
        """Return the tokens of the neighbours of every chunk that some place attends to, -1 for none."""
        count = (len(piece) - 1) // self.chunk
        if neighbours is None:
            return torch.zeros(count, 0, 0, dtype=torch.int32)
        tokens, seen = neighbours.of([piece[at * self.chunk :][: self.chunk] for at in range(count)])
        return tokens.masked_fill(~seen, -1).int()

    def loss(self, network: nn.Module, lm: LM, episode: TextEpisode | QuestionEpisode) -> Tensor:
        assert isinstance(network, RetroNetwork)
        windows, asked = _parts(episode)
        ids, lengths, tokens = (each.to(lm.device) for each in windows)
        log_probs, _ = network.fitted.step(ids[:, :-1], tokens.clamp(min=0).long(), tokens >= 0)
        nll = -log_probs.gather(-1, ids[:, 1:, None])[..., 0]
        places = torch.arange(nll.shape[1], device=lm.device)
        learnt = (places >= asked.to(lm.device)[:, None] - 1) & (places < lengths[:, None] - 1)
        return nll[learnt].mean()

    def gradients(
        self, network: nn.Module, lm: LM, episode: TextEpisode | QuestionEpisode
    ) -> tuple[float, Sequence[Tensor | None]]:
        assert isinstance(network, RetroNetwork)
        if network.kind == "frozen" and not (_parts(episode)[0].tokens >= 0).any():
            # Nothing was found for any chunk: no trainable weight has a part in the loss.
            with torch.no_grad():
                return self.loss(network, lm, episode).item(), [None for _ in network.parameters()]
        return super().gradients(network, lm, episode)

    @property
    def views(self) -> tuple[str, ...]:
        return ("chunks",)

    def check(self, lm: LM, source: Source | None = None) -> None:
        find(module_of(lm), ())  # a model that cannot read chunks needs none in its store
        chunks = None if source is None else source.chunks(lm.tokenizer.fingerprint)
        self.adapted([dataclasses.replace(self.init(lm), chunks=chunks)], lm)

    def init(self, lm: LM) -> RetroState:
        return RetroState(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[RetroState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[RetroState]:
        same_length(states, evidence)
        after = []
        for row, (state, found) in enumerate(zip(states, evidence, strict=True)):
            if found.source is not None:
                chunks = found.source.chunks(lm.tokenizer.fingerprint)
                state = state.after(found, context, chunks=chunks)
            elif found.passages:
                texts = [passage.text for passage in found.passages]
                context.ledger(row).tokens_read += sum(len(lm.tokenizer.encode(text)[0]) for text in texts)
                state = state.after(found, context)
            after.append(state)
        return after

    def under(self, lm: LM) -> LM:
        """Return the LM that the new parts stand in: `lm`, with the base as it was trained along."""
        return self._network(lm).under(lm)

    def around(self, states: Sequence[RetroState], lm: LM, base: LM) -> LM:
        """Return `lm`, `under(base)` or what became of it, with the new parts that read neighbours."""
        same_base(states, base)
        network = self._network(base)
        neighbours = [self._neighbours_of(state, base, network) for state in states]
        if lm.rows is None and all(neighbours):
            return RetroLM(lm, network.parts, network.places, neighbours)
        parts = []
        for row, one in enumerate(neighbours):
            own = lm.at([row])
            # A row without neighbours is the model itself, bit for bit.
            parts.append(own if one is None else RetroLM(own, network.parts, network.places, [one]))
        return Routed(parts)

    def forget(
        self, state: RetroState, lm: LM, ids: Sequence[int], context: Context | None = None
    ) -> RetroState:
        if state.chunks is None:
            return super().forget(state, lm, ids, context)
        return dataclasses.replace(state, chunks=state.chunks.without(ids))

    def _neighbours_of(self, state: RetroState, lm: LM, network: RetroNetwork) -> ChunkNeighbours | None:
        seed = state.history[-1].seed if state.history else 0
        if state.chunks is not None:
            return self._searched(lm, state.chunks, seed)
        if not state.passages:
            return None
        texts = [passage.text for passage in state.passages]
        table, chunk = network.fitted.embedding, network.parts.sizes.chunk
        return self._searched(lm, chunks_in_memory(texts, lm.tokenizer, table, chunk), seed)

    def _searched(self, lm: LM, source: NeighbourSource | None, seed: int) -> ChunkNeighbours | None:
        if source is None or not self.neighbours:
            return None
        return ChunkNeighbours(source, lm.tokenizer, self.neighbours, seed if self.draw == "random" else None)

    def _network(self, lm: LM) -> RetroNetwork:
        network = self.network(lm)
        assert isinstance(network, RetroNetwork)
        return network

    @property
    def _layers(self) -> tuple[int, ...]:
        parts = [part.strip() for part in self.layers.split(",") if part.strip()]
        if not all(part.isdecimal() and int(part) for part in parts):
            raise BadInput(f"layers {self.layers!r}: write numbers from 1 on, such as 6,9,12")
        return tuple(sorted({int(part) for part in parts}))


def _episode(windows: Sequence[Found]) -> TextEpisode:
    lengths = torch.tensor([len(ids) for ids, *_ in windows])
    ids = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids, *_ in windows], batch_first=True)
    # A shorter window has neighbours for its own chunks alone; the places of others read nothing.
    found = [tokens for _, tokens, _ in windows]
    return TextEpisode(ids, lengths, nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1))


def _answering(windows: Sequence[Found]) -> QuestionEpisode:
    return QuestionEpisode(_episode(windows), torch.tensor([asked for *_, asked in windows]))


def _parts(episode: TextEpisode | QuestionEpisode) -> QuestionEpisode:
    """Return an episode as one of questions; of a text nothing but the first token is asked."""
    if isinstance(episode, QuestionEpisode):
        return episode
    return QuestionEpisode(episode, torch.ones_like(episode.lengths))


def insert_copies(
    episode: TextEpisode, chunk: int, share: float, generator: np.random.Generator
) -> TextEpisode:
    """Return the episode with a stretch of what comes next put into this share of the neighbours.

    A stretch is at least 4 tokens (fewer where a chunk has fewer) of the chunk that is to be predicted
    beside the neighbour, and takes the place of as many of its tokens, anywhere in it: what is to be
    learnt from it is to find the words read last and copy what came after them. Ordinary text
    has few such places, and a network that cannot copy yet learns little from them. This is ours, not
    the paper's.
    """
    tokens, least = episode.tokens.clone(), min(4, chunk)
    for window, chunk_at, neighbour in np.argwhere(generator.random(tokens.shape[:3]) < share).tolist():
        own = tokens[window, chunk_at, neighbour]
        length = int(episode.lengths[window])
        coming = episode.ids[window, (chunk_at + 1) * chunk : min((chunk_at + 2) * chunk, length)]
        room = min(len(coming), int((own >= 0).sum()))
        if room < least:
            continue
        size = int(generator.integers(least, room, endpoint=True))
        start = int(generator.integers(len(coming) - size, endpoint=True))
        places = torch.nonzero(own >= 0)[:, 0]
        at = int(generator.integers(len(places) - size, endpoint=True))
        own[places[at : at + size]] = coming[start : start + size].to(own.dtype)
    return episode._replace(tokens=tokens)


spec = MethodSpec(Retro(), Everywhere())
