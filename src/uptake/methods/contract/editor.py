"""What editors share: facts made of passages, and states that hold what each fact is to write.

An edit comes as a passage: its prompt is read, its text is what the model is to say, `meta["subject"]` is
what of the prompt it is about. A passage without a prompt of its own stands after the query.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from uptake.adaptation.delta import Delta, LowRank
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.fact_values import Fact, ValueSearch, Written, search_all
from uptake.lm.feed_forward import LinearPlace, down_projection, layer_at
from uptake.lm.side_by_side import side_by_side
from uptake.methods.contract.method import Context, Evidence, Method, State, charged_by_row
from uptake.text.types import Passage, Source

_NAME = re.compile(r"(?:\b[^\W\d_a-z]\w*)(?:[ '’.-]+(?:of |the |de |van |von )?[^\W\d_a-z]\w*)*")


def fact_of(passage: Passage, query: str) -> Fact:
    """Return what a passage states. Raises BadInput for a subject that is not in its prompt."""
    prompt = passage.prompt or query
    subject = passage.meta.get("subject", "") or name_in(prompt)
    if not subject:
        return Fact(prompt, passage.text, len(prompt))
    start = prompt.rfind(subject)
    if start < 0:
        raise BadInput(
            f"subject {subject!r:.60} is not in the prompt {prompt!r:.60}: write it as it stands there, or "
            "leave it out"
        )
    return Fact(prompt, passage.text, start + len(subject), subject)


def name_in(prompt: str) -> str:
    """Return the longest run of capitalised words in a prompt, "" where there is none.

    A first word by itself does not count: every sentence begins with a capital letter.
    """
    found = [match[0] for match in _NAME.finditer(prompt) if match.start() or " " in match[0]]
    return max(found, key=len, default="")


def only_causal(lm: LM, what: str) -> Causal:
    """Return the LM as a causal model whose layers can be written. Raises BadInput where it is none."""
    found = lm.capable(Causal)
    if found is None and not lm.has_step:
        raise BadInput(
            f"{what} writes into a causal model's layers, and {type(lm).__name__} is an encoder-decoder: use "
            "a causal model, or an editor that trains any kind, such as finetune"
        )
    if found is None or lm.rows is not None:
        raise BadInput(
            f"{what} writes into one model's layers, and a {type(lm).__name__} has none: give its base"
        )
    return found


def facts_in(
    row: int, evidence: Evidence, known: Sequence[int], context: Context
) -> list[tuple[Passage, Fact]]:
    """Return the facts of what was found that are not `known`; one that cannot be made is noted and left."""
    found = []
    for passage in evidence.passages:
        if passage.id in known:
            continue
        try:
            found.append((passage, fact_of(passage, evidence.prefix)))
        except BadInput as error:
            note(context, row, passage, error)
    return found


def written_in(
    row: int,
    lm: Causal,
    place: LinearPlace,
    facts: Sequence[tuple[Passage, Fact]],
    how: ValueSearch,
    context: Context,
) -> Iterator[tuple[Passage, Written]]:
    """Yield what each fact is to write, as far as the budget goes; one that cannot be made is noted."""
    ledger = context.ledger(row)
    for start in range(0, len(facts), how.together):
        some = list[tuple[Passage, Fact]]()
        for passage, fact in facts[start : start + how.together]:
            if not context.affords(row, len(lm.tokenizer.encode(fact.target)[0])):
                break
            some.append((passage, fact))
        for (passage, _), found in zip(
            some, search_all(lm, place, [fact for _, fact in some], how), strict=True
        ):
            if not isinstance(found, Written):
                note(context, row, passage, found)
                continue
            ledger.tokens_trained += found.tokens
            ledger.steps += found.steps
            yield passage, found
        if len(some) < len(facts[start : start + how.together]):
            return


def note(context: Context, row: int, passage: Passage, error: Exception) -> None:
    """Say in the ledger why an edit was not made."""
    name = f"edit {passage.document!r:.40}" if passage.document else "an edit"
    context.ledger(row).stop("diverged", f"{name} was not made: {error}")


@dataclass(frozen=True, kw_only=True)
class FactState(State):
    """The key [in] and the change [out] of every fact, by the passage's id, and the delta they make."""

    with_processor: ClassVar[frozenset[str]] = frozenset({"keys", "changes"})

    delta: Delta
    keys: dict[str, Tensor] = field(default_factory=dict)
    changes: dict[str, Tensor] = field(default_factory=dict)


class ClosedFormEditor(Method[FactState]):
    """Writes facts into one layer by a closed form over all of them, keys and values solved on the base.

    So neither the order of edits nor how they are batched matters, and an edit that is forgotten was never
    made: the others are solved again without it, exactly.
    """

    trains_weights_only: ClassVar[bool] = True
    depth: float
    values: ValueSearch

    @abstractmethod
    def solve(self, lm: Causal, place: LinearPlace, keys: Tensor, changes: Tensor) -> LowRank:
        """Return the difference that adds changes [facts, out] at keys [facts, in], both float64."""

    def check(self, lm: LM, source: Source | None = None) -> None:
        super().check(lm, source)
        causal = only_causal(lm, type(self).__name__)
        self.prepare(causal, self._place(causal))

    def prepare(self, lm: Causal, place: LinearPlace) -> None:
        """Make what is needed of the model once, before the first edit. Raises BadInput where that fails."""

    def init(self, lm: LM) -> FactState:
        self._place(only_causal(lm, type(self).__name__))
        return FactState(base=lm.fingerprint, delta=Delta(lm.fingerprint))

    def adapt(
        self,
        states: Sequence[FactState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[FactState]:
        causal = only_causal(lm, type(self).__name__)

        def learn(row: int, state: FactState, read: Evidence) -> FactState:
            return self._adapt(row, state, causal, read, context)

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[FactState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def forget(
        self, state: FactState, lm: LM, ids: Sequence[int], context: Context | None = None
    ) -> FactState:
        gone = {str(each) for each in ids}
        left = replace(
            state,
            history=state.history_without(ids),
            keys={name: key for name, key in state.keys.items() if name not in gone},
            changes={name: change for name, change in state.changes.items() if name not in gone},
        )
        return self._solved(left, only_causal(lm, type(self).__name__))

    def _adapt(
        self, row: int, state: FactState, lm: Causal, evidence: Evidence, context: Context
    ) -> FactState:
        place = self._place(lm)
        keys, changes = dict(state.keys), dict(state.changes)
        facts = facts_in(row, evidence, [int(name) for name in keys], context)
        for passage, found in written_in(row, lm, place, facts, self.values, context):
            keys[str(passage.id)], changes[str(passage.id)] = found.key.cpu(), found.change.cpu()
        if len(keys) == len(state.keys):
            return state.after(evidence, context) if evidence.passages else state
        return self._solved(state.after(evidence, context, keys=keys, changes=changes), lm)

    def _solved(self, state: FactState, lm: Causal) -> FactState:
        """Return the state with the delta that its keys and changes make, in an order of their own."""
        if not state.keys:
            return replace(state, delta=Delta(lm.fingerprint))
        place, names = self._place(lm), sorted(state.keys, key=int)
        keys = torch.stack([state.keys[name] for name in names]).double()
        changes = torch.stack([state.changes[name] for name in names]).double()
        part = self.solve(lm, place, keys, changes)
        kept = LowRank(part.up.float(), part.down.float(), part.scale, place.transposed)
        return replace(state, delta=Delta.of(lm.fingerprint, {place.weight: kept}, _owner(self)))

    def _place(self, lm: Causal) -> LinearPlace:
        layer = layer_at(lm.module, self.depth)
        if layer == layer_at(lm.module, 1) > 0:
            raise BadInput(f"depth {self.depth}: what the last layer adds reaches no later token, use less")
        return down_projection(lm.module, layer)


def _owner(method: Method[Any]) -> str:
    return type(method).__name__.lower()
