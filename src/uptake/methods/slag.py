"""SLAG: a network that reads an edit makes its change, trained along sequences of them (Hase et al. 2021)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.editing.slag import SlagNetwork, Tokens
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.edited_rows import Change, EditedRows, RowChanges
from uptake.lm.examples import Example, encode
from uptake.lm.feed_forward import LinearPlace, feed_forward_places
from uptake.lm.gradient_factors import gradient_factors
from uptake.lm.side_by_side import side_by_side
from uptake.methods.contract.edit_training import (
    EditEpisode,
    Weighted,
    edit_episodes,
    kept_texts,
    read_all,
    weighted_sum,
    whole,
)
from uptake.methods.contract.editor import facts_in, note, only_causal
from uptake.methods.contract.learned import Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, charged_by_row
from uptake.text.types import Passage

OWNER = "slag"
Sequences = tuple[tuple[EditEpisode, ...], ...]


@dataclass(frozen=True, kw_only=True)
class SlagState(State):
    """What all edits changed, one after another."""

    delta: Delta


@dataclass(frozen=True)
class Slag(Learned[SlagState, Sequences]):
    """Edits the feed-forwards of `blocks` blocks under the last `above`, each edit on top of those before it.

    An edit is made in up to `steps` steps, until the model says its target. Training makes `length` edits one
    after another, `batch` such sequences side by side; after each step its loss is the mean of
    -log p(target) a token (`edit`), the same after rephrases, which share `paraphrases`, and of what is
    entailed (`entailed`); of -log p of the edits before it in its sequence (`kept`); and of
    KL(before || after) a token on neighbours (`near`), on the other edits of the step (`others`) and on
    unrelated text (`locality`). Weights are divided by their sum. What earlier steps changed is constant.
    """

    trains_weights_only: ClassVar[bool] = True

    blocks: int = 3
    above: int = 0
    condition: int = 512
    hidden: int = 128
    rate: float = 0.1  # of the gradient step that an edit is before training
    text: float = 1.0  # how much B counts, which the text alone gives
    steps: int = 5
    length: int = 1
    batch: int = 8
    edit: float = 1.0
    paraphrases: float = 1.0
    entailed: float = 0.0
    kept: float = 1.0
    near: float = 1.0
    others: float = 1.0
    locality: float = 1.0

    def __post_init__(self) -> None:
        sizes = ("blocks", "condition", "hidden", "steps", "length", "batch")
        for name in sizes:
            if getattr(self, name) < 1:
                raise BadInput(f"{name} {getattr(self, name)}: use 1 or more")
        if self.condition % 2 or self.above < 0:
            raise BadInput(
                f"condition {self.condition}, above {self.above}: use an even number, and 0 or more"
            )
        for name in (
            "rate", "text", "edit", "paraphrases", "entailed", "kept", "near", "others", "locality"
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise BadInput(f"{name} {getattr(self, name)}: use 0 or a positive number")
        if not self.edit:
            raise BadInput("edit 0: what is to be said needs a weight")

    @classmethod
    def example(cls) -> Self:
        return cls(weights="untrained", blocks=1, condition=4, hidden=4, rate=2.0, steps=1)

    def init(self, lm: LM) -> SlagState:
        self.network(only_causal(lm, "SLAG"))
        return SlagState(base=lm.fingerprint, delta=Delta(lm.fingerprint))

    def adapt(
        self,
        states: Sequence[SlagState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[SlagState]:
        causal = only_causal(lm, "SLAG")

        def learn(row: int, state: SlagState, read: Evidence) -> SlagState:
            return self._adapt(row, state, causal, read, context)

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[SlagState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def _adapt(
        self, row: int, state: SlagState, lm: Causal, evidence: Evidence, context: Context
    ) -> SlagState:
        network, ledger, delta = self.network(lm), context.ledger(row), state.delta
        known = [passage.id for passage in state.passages]
        for passage, fact in facts_in(row, evidence, known, context):
            example = encode(lm.tokenizer, fact.prompt, fact.target)
            if not context.affords(row, len(example.target)):
                break
            try:
                delta, steps = self.edited(network, lm, delta, example, _text(passage, fact.prompt))
            except (BadInput, Diverged) as error:
                note(context, row, passage, error)
                continue
            ledger.tokens_trained += steps * len(example.target)
            ledger.steps += steps
        if not evidence.passages:
            return state
        return state.after(evidence, context, delta=delta)

    def edited(
        self, network: nn.Module, lm: Causal, delta: Delta, example: Example, text: str
    ) -> tuple[Delta, int]:
        """Return a delta with one edit more, and how many steps it took.

        Raises BadInput where it does not fit, Diverged.
        """
        assert isinstance(network, SlagNetwork)
        if not example.target or len(example.inputs) > lm.window:
            raise BadInput(
                f"{len(example.inputs):,} tokens, where the model reads {lm.window:,}: give a target, and a "
                "shorter prompt"
            )
        places = self.places(lm)
        with torch.no_grad():
            condition = _conditions(network, lm, [text])
        steps = 0
        while steps < self.steps:
            steps += 1
            model = lm.overlay(delta) if delta.parts else lm
            _, factors = gradient_factors(model, places, partial(_nll, example))
            found: list[Tokens] = []
            for each in factors:
                u, gradient = each.tokens()
                found.append((u, gradient, torch.zeros(len(u), dtype=torch.long, device=u.device)))
            with torch.no_grad():
                made = network(found, condition)
            if not all(torch.isfinite(up).all() and torch.isfinite(down).all() for up, down, _ in made):
                raise Diverged("what the network makes of the edit is not finite: train it again")
            parts = {
                place.weight: LowRank(up, down, 1.0, place.transposed)
                for place, (up, down, _) in zip(places, made, strict=True)
            }
            delta = _compact(delta + Delta.of(lm.fingerprint, parts, OWNER))
            if _said(lm.overlay(delta), example):
                break
        return delta, steps

    def build(self, lm: LM) -> SlagNetwork:
        causal = only_causal(lm, "SLAG")
        shapes = [(place.width_in, place.width_out) for place in self.places(causal)]
        width = _embeddings(causal).weight.shape[1]
        return SlagNetwork(width, shapes, self.condition, self.hidden, self.rate, self.text)

    def episodes(self, lm: LM, material: TrainingData) -> list[Sequences]:
        """Return steps of `batch` sequences of `length` edits each, in their order; a rest is left out."""
        made, size = edit_episodes(material, self.locality), self.batch * self.length
        if len(made) < size:
            raise BadInput(
                f"{len(made):,} edits, fewer than batch {self.batch} times length {self.length}: give more, "
                "or smaller settings"
            )
        # Neighbours in the data stand in different sequences.
        return [
            tuple(tuple(made[start + row : start + size : self.batch]) for row in range(self.batch))
            for start in range(0, len(made) - size + 1, size)
        ]

    def loss(self, network: nn.Module, lm: LM, episode: Sequences) -> Tensor:
        """Return the sum of the losses after all steps of all edits of some sequences, by their number."""
        return torch.stack([*self._losses(network, lm, episode)]).sum()

    def gradients(
        self, network: nn.Module, lm: LM, episode: Sequences
    ) -> tuple[float, Sequence[Tensor | None]]:
        """Return the loss and its gradients, which no step passes to another: one graph at a time."""
        total, parameters = 0.0, list(network.parameters())
        summed: list[Tensor | None] = [None] * len(parameters)
        for loss in self._losses(network, lm, episode):
            total += loss.item()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            summed = [
                own if one is None else one if own is None else own + one
                for own, one in zip(summed, found, strict=True)
            ]
        return total, summed

    def _losses(self, network: nn.Module, lm: LM, sequences: Sequences) -> Iterator[Tensor]:
        """Yield the loss after each step of each edit, divided by the number of edits."""
        assert isinstance(network, SlagNetwork)
        causal = only_causal(lm, "SLAG")
        places = self.places(causal)
        rows = causal.derived(("slag rows", self.blocks, self.above), lambda: EditedRows(causal, places))
        changes: RowChanges | None = None
        for turn in range(len(sequences[0])):
            edits = [sequence[turn] for sequence in sequences]
            said = [encode(lm.tokenizer, each.prompt, each.target) for each in edits]
            read = rows.read(said, range(len(said)))
            wanted, same = self._wanted(lm, sequences, turn), self._same(lm, edits)
            wanted_rows, same_rows = read_all(rows, wanted), read_all(rows, same) if same else None
            left = list(range(len(edits)))
            for step in range(1, self.steps + 1):
                now = read.at(left)
                made = self._made(
                    network, causal, rows.factors(now, changes), [edits[at] for at in left], left
                )
                after = made if changes is None else changes.plus(made)
                loss = weighted_sum(rows.token_log_probs(wanted_rows, after), wanted)
                if same_rows is not None:
                    loss = loss + weighted_sum(rows.divergences(same_rows, changes, after), same)
                yield loss / (len(sequences) * len(sequences[0]))
                changes = after.detach()
                if step == self.steps:
                    break
                with torch.no_grad():
                    found = rows.predictions(read.at(left), changes)
                left = [at for at, own in zip(left, found, strict=True) if not _likeliest(own, said[at])]
                if not left:
                    break

    def _made(
        self,
        network: SlagNetwork,
        lm: Causal,
        found: Sequence[tuple[Any, Tensor]],
        edits: Sequence[EditEpisode],
        owners: Sequence[int],
    ) -> RowChanges:
        """Return what the network makes of some edits' factors, for rows of these owners."""
        conditions = _conditions(network, lm, [_told(each.old, each.target, each.prompt) for each in edits])
        numbers = torch.tensor(owners, device=lm.device)
        places = torch.zeros(max(owners) + 1, dtype=torch.long, device=lm.device)
        places[numbers] = torch.arange(len(owners), device=lm.device)
        tokens = [(factors.inputs, factors.gradients, places[owner]) for factors, owner in found]
        made = network(tokens, conditions)
        return RowChanges(tuple(Change(up, down, numbers[place]) for up, down, place in made))

    def _wanted(self, lm: LM, sequences: Sequences, turn: int) -> list[Weighted]:
        """Return what is to be said once edit `turn` of each sequence is made, and how much it counts."""
        total, found = self._total, list[Weighted]()
        for place, sequence in enumerate(sequences):
            edit = sequence[turn]
            found.append((encode(lm.tokenizer, edit.prompt, edit.target), place, -self.edit / total))
            words = edit.asked[1:]
            for prompt in words if self.paraphrases else ():
                example = encode(lm.tokenizer, prompt, edit.target).ending(lm.window)
                found.append((example, place, -self.paraphrases / total / len(words)))
            for prompt, text in edit.entailed if self.entailed else ():
                example = encode(lm.tokenizer, prompt, text).ending(lm.window)
                found.append((example, place, -self.entailed / total / len(edit.entailed)))
            for earlier in sequence[:turn] if self.kept else ():
                example = encode(lm.tokenizer, earlier.prompt, earlier.target)
                found.append((example, place, -self.kept / total / turn))
        return found

    def _same(self, lm: LM, edits: Sequence[EditEpisode]) -> list[Weighted]:
        """Return what is to stay as it was before the edits of a turn, and how much it counts."""
        total = self._total
        found = kept_texts(lm, edits, self.locality / total, self.near / total)
        for place in range(len(edits)) if self.others else ():
            others = [*edits[:place], *edits[place + 1 :]]
            found += [
                (whole(lm, other.prompt + other.target), place, self.others / total / len(others))
                for other in others
            ]
        return found

    @property
    def _total(self) -> float:
        return (
            self.edit + self.paraphrases + self.entailed + self.kept + self.near + self.others + self.locality
        )

    def places(self, lm: Causal) -> list[LinearPlace]:
        """Return the matrices that are edited."""
        return feed_forward_places(lm.module, self.blocks, self.above)


def _told(old: str, target: str, prompt: str) -> str:
    return f"{old.strip()} >> {target.strip()} || {prompt}"


def _text(passage: Passage, prompt: str) -> str:
    return _told(passage.meta.get("old", ""), passage.text, prompt)


def _embeddings(lm: Causal) -> nn.Embedding:
    found = lm.module.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(found, nn.Embedding)
    return found


def _conditions(network: SlagNetwork, lm: Causal, texts: Sequence[str]) -> Tensor:
    ids = [torch.tensor(lm.tokenizer.encode(text)[0], device=lm.device) for text in texts]
    matrix = _embeddings(lm)
    with torch.no_grad():
        read = nn.utils.rnn.pad_sequence([matrix(own) for own in ids], batch_first=True)
    return network.conditions(read.to(network.condition.weight.dtype), [len(own) for own in ids])


def _nll(example: Example, lm: LM) -> Tensor:
    return -lm.token_log_probs([example])[0].mean()


def _said(lm: LM, example: Example) -> bool:
    with torch.no_grad():
        return _likeliest(lm.predictions([example])[0], example)


def _likeliest(log_probs: Tensor, example: Example) -> bool:
    return log_probs.argmax(-1).tolist() == list(example.target)


def _compact(delta: Delta) -> Delta:
    """Return a delta whose ranks are no more than the widths they stand between."""
    parts = {}
    for path, part in delta.parts_of(LowRank).items():
        if part.up.shape[1] > min(len(part.up), part.down.shape[1]):
            # W = Q R of the longer side: the same product by fewer columns.
            product = part.up @ part.down * part.scale
            wide = len(part.up) > part.down.shape[1]
            unit = torch.eye(min(product.shape), dtype=product.dtype, device=product.device)
            up, down = (product, unit) if wide else (unit, product)
            part = LowRank(up, down, 1.0, part.transposed)
        parts[path] = part
    return Delta.of(delta.base, parts, OWNER)


spec = MethodSpec(Slag())
