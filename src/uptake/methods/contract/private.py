"""Fine-tuning under differential privacy: what may stand beside it, which units there are, one training.

A unit that comes back in a later reading is refused: its epsilon is spent. So the claims of several readings
are about different units, and the weakest one holds for all.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.privacy.dp import DP
from uptake.adaptation.token_weights.tfidf import TfIdf
from uptake.adaptation.transforms import chain
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.private_training import train_privately
from uptake.lm.size import settled
from uptake.lm.upper_blocks import above_frozen
from uptake.methods.contract.composed import MethodWrapper
from uptake.methods.contract.method import Context, Evidence, Method, charged_by_row
from uptake.methods.contract.weight_state import WeightState
from uptake.text.types import Document, Passage

if TYPE_CHECKING:
    from uptake.methods.finetune import Finetune


def check(method: "Finetune") -> None:
    """Raise BadInput for settings under which the claim would not hold, where there is one."""
    if method.privacy is None:
        return
    wrong = {
        "reference": method.reference,
        "dropout": method.dropout,
        "key_penalty": bool(method.key_penalty),
        "own_prefix": method.own_prefix,
        "after_context": method.after_context,
        "passes": method.passes != 1,
        "least_drop": method.least_drop is not None,
        "max_tokens": method.max_tokens is not None,
        "max_steps": method.max_steps is not None,
        "optimizer=rms": method.optimizer.informed,
    }
    reasons = {
        "passes": "the number of steps decides what is spent; set privacy.steps",
        "max_tokens": "a stop that depends on the text tells of it; set privacy.steps",
        "least_drop": "a stop that depends on the text tells of it; set privacy.steps",
        "max_steps": "set privacy.steps",
        "optimizer=rms": "its statistics count text that is not accounted for; use adamw or sgd",
    }
    if found := [name for name, set_ in wrong.items() if set_]:
        why = reasons.get(found[0], "it has no private form; leave it out")
        raise BadInput(f"{found[0]} under privacy: {why}")
    if isinstance(method.token_weights, TfIdf) and not method.token_weights.corpus:
        raise BadInput(
            "token_weights=tfidf under privacy: it counts words of the other documents; give a public corpus"
        )
    if any(transform.per_document for transform in method.transforms):
        raise BadInput("transforms of each document's gradient under privacy: only its clipped sum is seen")


def dp_of(method: Method[Any]) -> DP | None:
    """Return a method's settings of privacy, those of one that it wraps included."""
    found = getattr(method, "privacy", None)
    if isinstance(found, DP):
        return found
    return dp_of(method.wrapped) if isinstance(method, MethodWrapper) else None


def check_blocks(name: str, method: Method[Any], blocks: Sequence[Sequence[Document]]) -> None:
    """Raise BadInput where documents, a block after another, cannot be read as the method's claim says."""
    dp, known = dp_of(method), set[str]()
    if dp is None:
        return
    for block in blocks:
        units = _units([Passage.whole(document) for document in block], dp)
        if again := [unit for unit in units if unit in known]:
            raise BadInput(
                f"{name}: {dp.unit} {again[0]!r} stands on both sides of a checkpoint, and may be learnt "
                "once: leave the checkpoint out"
            )
        known.update(units)
        try:
            dp.claim(len(units))
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None


def adapt(
    method: "Finetune", states: Sequence[WeightState], lm: LM, evidence: Sequence[Evidence], context: Context
) -> list[WeightState]:
    """Return the states after reading, each row trained by itself on all units of its evidence together."""

    def learn(row: int, state: WeightState, read: Evidence) -> WeightState:
        return _learn(method, row, state, lm, read, context) if read.passages else state

    return charged_by_row(learn, states, evidence, context, lm.device)


def _learn(
    method: "Finetune", row: int, state: WeightState, lm: LM, evidence: Evidence, context: Context
) -> WeightState:
    dp = method.privacy
    assert dp is not None
    budget = context.budget
    if budget.tokens is not None or budget.steps is not None or budget.timed:
        raise BadInput(
            "a budget under privacy: a stop that depends on the text tells of it; set privacy.steps"
        )
    units = _units(evidence.passages, dp)
    known = {_unit(passage, dp) for passage in state.passages}
    if again := [unit for unit in units if unit in known]:
        raise BadInput(
            f"{dp.unit} {again[0]!r} was learnt before, its epsilon is spent: give all text of a {dp.unit} "
            "at once (no checkpoint between), or leave it out"
        )
    claim = dp.claim(len(units))
    private, opened = lm.trainable_copy(method.trainable, state.delta, context.generator("moves"))
    opened.module.eval()
    private = above_frozen(lm, private, opened, state.delta)
    descent = GradientDescent(
        opened.parameters,
        settled(method.optimizer, lm),  # by the model's size alone: nothing is chosen on what is private
        chain(method.clip, method.transforms),
        state.resumed(),
        context.generator("transforms", evidence.query, str(len(state.history))),
    )
    # Each passage by itself: what others hold must not weigh its tokens.
    texts = [
        [piece for passage in unit for piece in method.pieces(private, [passage])] for unit in units.values()
    ]
    trained = train_privately(private, opened, texts, dp, claim, descent, len(state.history))
    ledger = context.ledger(row)
    ledger.tokens_trained += trained.tokens
    ledger.steps += trained.steps
    return state.after_training(evidence, context, opened.delta(), descent.optimizer_state, claims=(claim,))


def _units(passages: Sequence[Passage], dp: DP) -> dict[str, list[Passage]]:
    """Return the passages of each unit, in the order in which units first come."""
    found: dict[str, list[Passage]] = {}
    for passage in passages:
        found.setdefault(_unit(passage, dp), []).append(passage)
    return found


def _unit(passage: Passage, dp: DP) -> str:
    name = passage.group if dp.unit == "user" else passage.document
    if not name:
        what = "user: give each document the `group` that it is of" if dp.unit == "user" else "document"
        raise BadInput(
            f"privacy is kept for each {dp.unit}, and the text {passage.text[:40]!r} names no {what}"
        )
    return name
