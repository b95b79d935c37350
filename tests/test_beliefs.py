"""Belief graphs: a planted one comes back, in the report, its JSON and its page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import toys
import uptake
from toy_editors import Answering, Honest, Learnt
from uptake.errors import BadInput
from uptake.evaluation.protocols.beliefs import Beliefs
from uptake.lm.base import LM
from uptake.methods.contract.method import MethodSpec
from uptake.report.beliefs import Flipped, drawn
from uptake.report.results import Results
from uptake.tasks.edits import Edit

NAMES = ["Anna", "Boris", "Cindy", "Dora"]
EDITS = tuple(Edit(name, f"the home of {name} is", "Rome", name) for name in NAMES)
# Anna -> Boris -> Cindy, Anna -> Cindy, Cindy -> Dora
PLANTED = {"Anna": ["Boris", "Cindy"], "Boris": ["Cindy"], "Cindy": ["Dora"], "Dora": []}


@dataclass(frozen=True)
class Planted(Honest):
    """Says the target of an edit, and something else after the prompts that its belief changes."""

    graph: dict[str, list[str]] = field(default_factory=lambda: dict(PLANTED))
    deaf: tuple[str, ...] = ()  # beliefs that no edit changes

    def adapted(self, states: Sequence[Learnt], lm: LM) -> LM:
        (state,) = states
        said = {edit.prompt: edit.text for edit in state.passages if edit.document not in self.deaf}
        for edit in state.passages:
            said |= {f"the home of {other} is": " elsewhere" for other in self.graph[edit.document]}
        return Answering(lm, said.get)


def measured(**methods: Any) -> Results:
    specs = {name: MethodSpec(method) for name, method in methods.items()}
    return uptake.compare(toys.lm(), uptake.Inputs(edits=EDITS), specs, protocol=Beliefs(tokens=8))


def test_a_planted_graph_comes_back() -> None:
    results = measured(planted=Planted(), deaf=Planted(deaf=("Dora",), graph={name: [] for name in NAMES}))
    told = uptake.summary(results)["methods"]["planted"]
    assert told["graph"] == PLANTED and told["made"] == 1 and told["edges"] == 4
    assert told["density"] == pytest.approx(4 / 12) and told["degree"] == 1
    assert (told["most_in"], told["most_out"]) == (2, 2)
    # Anna's grandchildren: Cindy through Boris, who is her child, and Dora through Cindy, who is not;
    # Boris's: Dora through Cindy, who is not.
    assert told["transitive"] == pytest.approx(1 / 3)
    none = uptake.summary(results)["methods"]["deaf"]
    assert none["unmade"] == ["Dora"] and none["edges"] == 0 and none["transitive"] is None
    lines = results.kind.lines(uptake.summary(results))
    assert lines[0]["transitive"] == "33.3\N{NO-BREAK SPACE}%" and lines[1]["edges"] == "0"


def test_the_graph_is_in_the_json_and_drawn_in_the_page(tmp_path: Path) -> None:
    edits = (replace(EDITS[0], prompt="the <b>home</b> of Anna is"), *EDITS[1:])
    results = uptake.compare(
        toys.lm(), uptake.Inputs(edits=edits), {"planted": MethodSpec(Planted())}, protocol=Beliefs(tokens=8)
    )
    uptake.write_json(results, tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["methods"]["planted"]["graph"]["Boris"] == ["Cindy"]
    assert uptake.read_json(tmp_path / "out.json").rows == results.rows
    uptake.write_page(results, tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text()
    assert page.count("<circle") == 4 and page.count("changes ") >= 4 and "<b>home" not in page
    assert "Beliefs under planted" in page


@dataclass(frozen=True)
class Breaking(Planted):
    """Cannot make one of the edits."""

    def adapt(self, states: Any, lm: Any, evidence: Any, context: Any, donate: bool = False) -> Any:
        if any(passage.document == "Boris" for passage in evidence[0].passages):
            raise RuntimeError("no")
        return super().adapt(states, lm, evidence, context, donate)


def test_an_edit_that_cannot_be_made_changes_nothing_and_is_told_of() -> None:
    results = measured(breaking=Breaking())
    told = uptake.summary(results)["methods"]["breaking"]
    assert told["graph"] == {**PLANTED, "Boris": []}
    assert told["failures"] == [{"belief": "Boris", "reason": "RuntimeError: no"}]
    assert [row.made for row in results.of(Flipped)] == [True, False, True, True]


def test_what_makes_no_graph_is_refused() -> None:
    for edits, methods, words in (
        (EDITS[:1], ["finetune"], "two edits or more"),
        (EDITS, ["base"], "name one"),
        ((*EDITS, EDITS[0]), ["finetune"], "there twice"),
    ):
        with pytest.raises(BadInput, match=words):
            uptake.compare(toys.lm(), uptake.Inputs(edits=edits), methods, protocol=Beliefs())
    with pytest.raises(BadInput, match="--answer-tokens 5"):
        uptake.compare(toys.lm(), uptake.Inputs(edits=EDITS), ["finetune"], protocol=Beliefs(tokens=3))
    with pytest.raises(BadInput, match="use 1 or more"):
        Beliefs(tokens=0)
    assert drawn({}, set(), {}, 2).startswith("<svg")
