"""Documents that a protocol can make no query of: each is counted by its reason, in every report."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_world import Run, World, made_fixture, run_fixture, world_fixture  # noqa: F401
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.protocol import Protocol
from uptake.evaluation.protocols.holes import Holes
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.protocols.running import Running
from uptake.evaluation.protocols.whole import Whole
from uptake.evaluation.queries import QueryProtocol
from uptake.text.types import Document

PROTOCOLS = [
    PerQuery(),
    PerQuery(prefix=3, suffix=2, windows=3),
    Whole(),
    Running(segment=4),
    Holes(),
    Holes("line"),
]
texts = st.text(max_size=12) | st.sampled_from(
    ["x = 1\ny = x + 1\n", "def f(:", "#", "x", "if x:\n    y(x)\n"]
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(some=st.lists(texts, max_size=6))
def test_documents_in_are_scored_or_counted(protocol: QueryProtocol, some: list[str]) -> None:
    documents = tuple(Document(f"d{number}", text) for number, text in enumerate(some))
    scored = {document.id for document in documents if list(protocol.queries(document))}
    left = protocol.left_out(Inputs(documents))
    names = [name for names in left.values() for name in names]
    assert len(names) == len(set(names)) and {*names} | scored == {document.id for document in documents}
    assert not scored & {*names}


def test_a_protocol_that_asks_questions_leaves_no_document_out() -> None:
    class Asks(Protocol):
        units = run = failed = None  # type: ignore[assignment]

    Asks.__abstractmethods__ = frozenset()
    assert Asks().left_out(Inputs((Document("a", ""),))) == {}


def test_a_document_of_one_character_is_counted_in_table_and_report(
    run: Run,
    world: World,
    tmp_path: Path,
) -> None:
    lines = [{"id": "short", "text": "x"}, {"id": "long", "text": "The pump is reset by holding the button."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ("eval", "-m", world.model, "--data", tmp_path / "a.jsonl", "--method", "base")
    said = "not scored: 1 of 2 documents, 1 shorter than two characters (short)"
    shown = run(*asked, "--json", tmp_path / "out.json").out
    assert f"note: {said}" in " ".join(shown.split())
    assert json.loads((tmp_path / "out.json").read_text())["notes"] == [said]
    code = run(*asked, "--protocol", "holes")
    assert code.code == 2 and "no document can be scored" in code.err
