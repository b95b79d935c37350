"""MEND: a trained network turns an edit's gradient into a change that stays local (Mitchell et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.editing.mend import MendNetwork
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
    asked_texts,
    edit_episodes,
    kept_texts,
    read_all,
    weighted_sum,
)
from uptake.methods.contract.editor import facts_in, note, only_causal
from uptake.methods.contract.learned import Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, charged_by_row

OWNER = "mend"


@dataclass(frozen=True, kw_only=True)
class MendState(State):
    """What the network made of each edit, by the passage's id, and their sum."""

    delta: Delta
    edits: dict[str, Delta] = field(default_factory=dict)


@dataclass(frozen=True)
class Mend(Learned[MendState, tuple[EditEpisode, ...]]):
    """Edits the feed-forward matrices of `blocks` blocks under the last `above`, by networks of rank `rank`.

    A step learns from `batch` edits. Of each the loss is `edit` times -log p(target), a token, over the
    prompt and its rephrases, `locality` times KL(base || edited) over all tokens of an unrelated text, and
    `near` times the same over its neighbours. Every edit is made of the base's own gradient, so edits add
    up in any order, and one that is forgotten was never made.
    """

    trains_weights_only: ClassVar[bool] = True

    blocks: int = 3
    above: int = 0
    rank: int = 128
    alpha: float = 1e-4  # the rate before training
    speed: float = 100.0  # how much faster than the rest of the network a rate learns
    standardise: bool = True
    batch: int = 10
    edit: float = 0.1
    locality: float = 1.0
    near: float = 1.0

    def __post_init__(self) -> None:
        if min(self.blocks, self.rank, self.batch) < 1 or self.above < 0:
            raise BadInput(
                f"blocks {self.blocks}, rank {self.rank}, batch {self.batch}, above {self.above}: use 1 or "
                "more of the first three, 0 or more of the last"
            )
        for name in ("alpha", "edit", "locality", "near"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise BadInput(f"{name} {getattr(self, name)}: use 0 or a positive number")
        if not 0 < self.speed < float("inf"):
            raise BadInput(f"speed {self.speed}: use a positive number")

    @classmethod
    def example(cls) -> Self:
        return cls(weights="untrained", blocks=1, rank=4, alpha=0.1)

    def init(self, lm: LM) -> MendState:
        self.network(only_causal(lm, "MEND"))
        return MendState(base=lm.fingerprint, delta=Delta(lm.fingerprint))

    def adapt(
        self,
        states: Sequence[MendState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[MendState]:
        causal = only_causal(lm, "MEND")

        def learn(row: int, state: MendState, read: Evidence) -> MendState:
            return self._adapt(row, state, causal, read, context)

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[MendState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def forget(
        self, state: MendState, lm: LM, ids: Sequence[int], context: Context | None = None
    ) -> MendState:
        gone = {str(each) for each in ids}
        edits = {name: edit for name, edit in state.edits.items() if name not in gone}
        return replace(state, history=state.history_without(ids), edits=edits, delta=_sum(lm, edits))

    def _adapt(
        self, row: int, state: MendState, lm: Causal, evidence: Evidence, context: Context
    ) -> MendState:
        network, ledger, edits = self.network(lm), context.ledger(row), dict(state.edits)
        for passage, fact in facts_in(row, evidence, [int(name) for name in edits], context):
            example = encode(lm.tokenizer, fact.prompt, fact.target)
            if not context.affords(row, len(example.target)):
                break
            try:
                made = self.delta_of(network, lm, example)
            except (BadInput, Diverged) as error:
                note(context, row, passage, error)
                continue
            edits[str(passage.id)] = made
            ledger.tokens_trained += len(example.target)
            ledger.steps += 1
        if not evidence.passages:
            return state
        return state.after(evidence, context, edits=edits, delta=_sum(lm, edits))

    def delta_of(self, network: nn.Module, lm: Causal, example: Example) -> Delta:
        """Return what the network makes of one edit. Raises BadInput where it does not fit, Diverged."""
        places = self.places(lm)
        with torch.no_grad():
            made = network(self._tokens(lm, example))
        parts = {
            place.weight: LowRank(up, down, 1.0, place.transposed)
            for place, (up, down) in zip(places, made, strict=True)
        }
        if not all(torch.isfinite(part.up).all() for part in parts.values()):
            raise Diverged("what the network makes of the edit is not finite: train it again")
        return Delta.of(lm.fingerprint, parts, OWNER)

    def build(self, lm: LM) -> MendNetwork:
        places = self.places(only_causal(lm, "MEND"))
        shapes = [(place.width_in, place.width_out) for place in places]
        return MendNetwork(shapes, self.rank, self.alpha, self.standardise, self.speed)

    def episodes(self, lm: LM, material: TrainingData) -> list[tuple[EditEpisode, ...]]:
        """Return `batch` edits for each step in their order; texts not related come round in turn."""
        made = edit_episodes(material, self.locality)
        return [tuple(made[start : start + self.batch]) for start in range(0, len(made), self.batch)]

    def loss(self, network: nn.Module, lm: LM, episode: tuple[EditEpisode, ...]) -> Tensor:
        """Return the mean loss of some edits; in training mode their tokens go into the statistics first.

        Inputs and gradients are constants, so this is exact with no second derivative.
        """
        assert isinstance(network, MendNetwork)
        causal = only_causal(lm, "MEND")
        places = self.places(causal)
        rows = causal.derived(("mend rows", self.blocks, self.above), lambda: EditedRows(causal, places))
        said = [encode(lm.tokenizer, each.prompt, each.target) for each in episode]
        found = rows.factors(rows.read(said, range(len(said))))
        tokens = [(factors.inputs, factors.gradients) for factors, _ in found]
        if network.training:
            network.see(tokens)
        owners = [owner for _, owner in found]
        changes = RowChanges(
            tuple(Change(up, down, own) for (up, down), own in zip(network(tokens), owners, strict=True))
        )
        wanted = asked_texts(lm, episode, -self.edit)
        loss = weighted_sum(rows.token_log_probs(read_all(rows, wanted), changes), wanted)
        same = kept_texts(lm, episode, self.locality, self.near)
        if same:
            loss = loss + weighted_sum(rows.divergences(read_all(rows, same), None, changes), same)
        return loss / len(episode)

    def _tokens(self, lm: Causal, example: Example) -> list[tuple[Tensor, Tensor]]:
        """Return inputs and output gradients of each matrix, without tokens of which either is all zero."""
        if not example.target or len(example.inputs) > lm.window:
            raise BadInput(
                f"{len(example.inputs):,} tokens, where the model reads {lm.window:,}: give a target, and a "
                "shorter prompt"
            )
        _, factors = gradient_factors(lm, self.places(lm), partial(_nll, example))
        return [tuple(each.tokens()) for each in factors]  # type: ignore[misc]

    def places(self, lm: Causal) -> list[LinearPlace]:
        """Return the matrices that are edited."""
        return feed_forward_places(lm.module, self.blocks, self.above)


def _nll(example: Example, lm: LM) -> Tensor:
    return -lm.token_log_probs([example])[0].mean()


def _sum(lm: LM, edits: dict[str, Delta]) -> Delta:
    """Return all edits' sum, in an order of its own."""
    total = Delta(lm.fingerprint)
    for name in sorted(edits, key=int):
        total = total + edits[name]
    return total


spec = MethodSpec(Mend())
