"""Each belief is edited by itself, then all of them are asked: the graph of which one changes which.

Belief graphs of Hase et al. 2021 (SLAG, arXiv 2111.13654), for what a model says rather than whether it finds
a sentence true. A unit is one belief, made by every method from the base.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from uptake.errors import BadInput
from uptake.evaluation.edit_making import check_edits, check_lengths, make_edits
from uptake.evaluation.edit_replies import base_replies
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.protocol import Batch, Part, Protocol, Unit
from uptake.lm.base import LM
from uptake.methods.contract.method import Context
from uptake.report.beliefs import BELIEFS, Flipped, ShownBelief
from uptake.report.results import Row
from uptake.tasks.edit_asking import reply_to
from uptake.tasks.edit_marks import Asking, same_words
from uptake.tasks.edits import Edit
from uptake.text.types import stable_hash

if TYPE_CHECKING:
    from uptake.evaluation.plan import Plan
    from uptake.evaluation.runner import Runner


@dataclass(frozen=True)
class Believing(Unit):
    """One belief to edit, by its place among all of them."""

    place: int = field(kw_only=True)
    edits: tuple[Edit, ...] = field(kw_only=True)


@dataclass(frozen=True)
class Beliefs(Protocol):
    """Edit one belief alone, ask all: an edge to each whose answer, of at most `tokens` tokens, changed."""

    name: ClassVar[str] = "beliefs"
    report = BELIEFS
    wants: ClassVar[str] = "edits"
    data: ClassVar[Literal["documents", "edits"]] = "edits"
    options: ClassVar[dict[str, str]] = {"tokens": "answer_tokens"}
    tokens: int = 12
    prompts_side_by_side: int = 64

    def __post_init__(self) -> None:
        if min(self.tokens, self.prompts_side_by_side) < 1:
            raise BadInput(
                f"tokens {self.tokens}, side by side {self.prompts_side_by_side}: use 1 or more of each"
            )

    def units(self, plan: "Plan", inputs: Inputs) -> list[Unit]:
        if len(inputs.edits) < 2:
            raise BadInput(f"{len(inputs.edits)} beliefs: give two edits or more, one can change no other")
        check_edits(inputs.edits)
        if not any(spec.method.reads for spec in plan.methods.values()):
            raise BadInput("no method that edits: name one, such as finetune or slag")
        return [
            Believing(edit.id, place=place, edits=inputs.edits) for place, edit in enumerate(inputs.edits)
        ]

    def check(self, units: Sequence[Unit], lm: LM) -> None:
        check_lengths(_believing(units[0]).edits, lm, self.tokens)

    def run(self, batch: Batch, runner: "Runner") -> Iterator[Part]:
        for place, unit in zip(batch.places, batch.units, strict=True):
            belief, lm = _believing(unit), runner.lm
            asked = _asked(belief.edits)
            before = base_replies(lm, asked, self.tokens, self.prompts_side_by_side)
            edit, rows = belief.edits[belief.place], list[Row]()
            for name, spec in _editors(runner.plan):
                seed = stable_hash(str(runner.plan.seed), "belief", edit.id)
                state: Any = spec.method.init(lm)
                state, failed = make_edits(spec.method, state, lm, [edit], Context(seed, runner.plan.budget))
                if failed:
                    rows.append(Flipped(name, edit.id, False, (), failed[0][1]))
                    continue
                adapted = spec.method.adapted([state], lm)
                one = adapted if adapted.rows is None else adapted.at([0])
                now = reply_to(one, asked, self.tokens, self.prompts_side_by_side)
                others = tuple(
                    other.id
                    for number, (other, was, said) in enumerate(zip(belief.edits, before, now, strict=True))
                    if number != belief.place and not same_words(was.said, said.said)
                )
                rows.append(Flipped(name, edit.id, now[belief.place].right, others))
            shown = [ShownBelief(edit.id, edit.prompt, before[belief.place].said, edit.target)]
            yield Part(rows={place: rows}, showcases={place: list(shown)}, done=1, label=edit.id)

    def failed(self, unit: Unit, plan: "Plan", reason: str) -> list[Row]:
        belief = _believing(unit)
        return [Flipped(name, belief.edits[belief.place].id, False, (), reason) for name, _ in _editors(plan)]

    def describe(self, inputs: Inputs) -> dict[str, str | int | float]:
        return {"beliefs": len(inputs.edits), "answer_tokens": self.tokens}


def _editors(plan: "Plan") -> list[tuple[str, Any]]:
    return [(name, spec) for name, spec in plan.methods.items() if spec.method.reads]


def _asked(edits: tuple[Edit, ...]) -> list[Asking]:
    return [
        Asking(edit.id, place, "edit", 0, edit.prompt, edit.target, edit.old)
        for place, edit in enumerate(edits, 1)
    ]


def _believing(unit: Unit) -> Believing:
    assert isinstance(unit, Believing)
    return unit
