"""The protocol of edits: all are made, then everything is asked once; three cheats are found out."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
import uptake
from toy_editors import Fragile, Honest, KnowsTheLast, ReturnsTheBase, SaysItAlways
from uptake.adaptation.delta import Delta
from uptake.adaptation.optimizers import SGD
from uptake.cache import cache_root
from uptake.errors import BadInput
from uptake.evaluation import edit_replies
from uptake.evaluation.edit_making import make_edits
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.protocols.edits import Edits
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec
from uptake.methods.finetune import Finetune
from uptake.report.edited.rows import Cost, EditFailed, Elsewhere, Told
from uptake.report.page import page
from uptake.report.results import Results
from uptake.tasks.asking import divergence, generate
from uptake.tasks.edits import Edit, Probe
from uptake.text.types import Document, Found

COLOURS = {"cat": "red", "dog": "blue", "fish": "grey", "hen": "black", "cow": "white"}
EDITS = tuple(
    Edit(
        f"e{n}",
        f"the {what} is",
        colour,
        what,
        old="so",
        rephrases=(f"what is the {what}?", f"a {what} is"),
        neighbours=(Probe(f"the old {what} is"), Probe(f"{what}s are")),
        ripples=(Probe(f"not the {what} but", "mouse"),),
    )
    for n, (what, colour) in enumerate(COLOURS.items())
)
ALIASES = {text: edit.prompt for edit in EDITS for text in edit.rephrases}
UNRELATED = (Document("u1", "one fish, two fish"), Document("u2", "a bat sat"))
PROTOCOL = Edits(turn=1, tokens=7, save_every=2)


@pytest.fixture(name="model", scope="module")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> Causal:
    folder = tmp_path_factory.mktemp("model")
    toys.module(window=128).save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return uptake.load(str(folder))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))


def measured(
    model: Causal, methods: Mapping[str, Method[Any]], protocol: Edits = PROTOCOL, **more: Any
) -> Results:
    specs = {name: MethodSpec(method) for name, method in methods.items()}
    inputs = Inputs(edits=EDITS, unrelated=UNRELATED)
    return uptake.compare(model, inputs, specs, protocol=protocol, **more)


def told(results: Results, name: str) -> dict[str, Any]:
    found: dict[str, Any] = uptake.summary(results)["methods"][name]
    return found


def holds(found: Mapping[str, Any]) -> bool:
    """Whether an editor is a good one by its figures."""
    return (
        found["success"] >= 0.9 and found["tight"] >= 0.9 and found["leak"] <= 0.05 and found["same"] >= 0.9
    )


@pytest.mark.parametrize("turn", [0, 1, 3])
def test_an_honest_editor_holds_and_the_cheats_do_not(model: Causal, turn: int) -> None:
    editors = {
        "honest": Honest(ALIASES), "base-again": ReturnsTheBase(ALIASES), "always": SaysItAlways(ALIASES),
        "last": KnowsTheLast(ALIASES),
    }  # fmt: skip
    results = measured(model, editors, replace(PROTOCOL, turn=turn, controls=False))
    found = uptake.summary(results)["methods"]
    assert [holds(found[name]) for name in editors] == [True, False, False, False]
    assert found["base-again"]["success"] == found["base-again"]["kl"] == 0
    always = found["always"]
    assert always["success"] == always["leak"] == always["denied"] == 1 and always["same"] == 0
    assert found["last"]["success"] == 1 / len(EDITS), "an edit was asked before the last was made"
    assert [band["success"] for band in found["last"]["retention"]] == [0, 0, 0, 0, 1]


def test_asked_right_after_each_edit_the_forgetful_one_would_pass(model: Causal) -> None:
    method = KnowsTheLast(ALIASES)
    state = method.init(model)
    right = []
    for edit in EDITS:  # as an evaluation would that scores each edit as soon as it is made
        (state,) = method.adapt([state], model, [Evidence(Found((edit.passage(),), (0.0,)))], Context())
        (said,) = generate(method.adapted([state], model), [edit.prompt], 7)
        right.append(said == edit.target)
    assert all(right)
    at_each = measured(model, {"last": method}, replace(PROTOCOL, checkpoints=(1, 2, 3, 4)))
    assert [at["success"] for at in told(at_each, "last")["at"]] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]


def test_rows_are_what_a_naive_loop_gives(model: Causal) -> None:
    method = Finetune(optimizer=SGD(0.5))
    results = measured(model, {"learner": method})
    state = method.init(model)
    for edit in EDITS:
        (state,) = method.adapt([state], model, [Evidence(Found((edit.passage(),), (0.0,)))], Context())
    adapted = method.adapted([state], model).at([0])
    rows = [row for row in results.of(Told) if row.method == "learner"]
    own = {row.edit: row for row in rows if row.kind == "edit"}
    for edit in EDITS:
        (scores,) = adapted.score([Segment(edit.text, edit.prompt)])
        assert own[edit.id].nats == pytest.approx(-float(scores.log_probs.mean()), abs=1e-5)
        (said,) = generate(adapted, [edit.prompt], 7)
        assert own[edit.id].said == said
    assert len(rows) == len(EDITS) * (1 + 2 + 1 + 2 + 1 + 1)
    elsewhere = [row for row in results.of(Elsewhere) if row.method == "learner"]
    for row, text in zip(elsewhere, UNRELATED, strict=True):
        nats, tokens = divergence(model, method.adapted([state], model), text.text)
        assert (sum(row.kl), len(row.kl)) == (pytest.approx(nats, rel=1e-4), tokens)
        assert row.base_bits == pytest.approx(model.score([Segment(text.text)])[0].bits)
        assert row.bits == pytest.approx(adapted.score([Segment(text.text)])[0].bits)
    (cost,) = [row for row in results.of(Cost) if row.method == "learner"]
    assert cost.made == 5 and cost.bytes > 1000 and cost.asked == len(rows) and cost.steps == 5


def test_controls_stand_beside(model: Causal) -> None:
    found = uptake.summary(measured(model, {"honest": Honest()}))
    assert list(found["methods"]) == ["oracle", "other-edit", "honest"]
    assert found["methods"]["honest"]["tight"] == found["base"]["tight"]
    assert found["methods"]["oracle"]["kl"] is None and found["methods"]["oracle"]["edit_seconds"] == 0
    gaps = {(pair["method"], pair["less"]) for pair in found["pairs"]}
    assert gaps == {("other-edit", "oracle"), ("honest", "oracle"), ("honest", "other-edit")}
    others = edit_replies.other_edits(EDITS, 0)
    assert sorted(edit.id for edit in others) == sorted(edit.id for edit in EDITS)
    assert all(one.id != other.id for one, other in zip(EDITS, others, strict=True))


def test_the_oracle_reads_each_edit_alone(model: Causal) -> None:
    rows = {
        row.edit: row
        for row in measured(model, {"honest": Honest()}).of(Told)
        if row.method == "oracle" and row.kind == "edit"
    }
    for edit in EDITS:
        before = f"{edit.prompt}{edit.text}\n\n{edit.prompt}"
        (said,) = generate(model, [before], 7)
        assert rows[edit.id].said == said


def measured_alone(model: Causal) -> Results:
    return measured(model, {"honest": Honest()}, replace(PROTOCOL, controls=False))


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_an_edit_that_cannot_be_made_is_named_and_the_others_are_made(model: Causal, turn: int) -> None:
    results = measured(model, {"fragile": Fragile()}, replace(PROTOCOL, turn=turn))
    failed = [(row.edit, row.place, row.reason) for row in results.of(EditFailed)]
    assert failed == [("e1", 2, "RuntimeError: no dogs"), ("e2", 3, "the loss is nan")]
    assert told(results, "fragile")["success"] == 3 / 5
    assert "2 edits failed under fragile" in str(uptake.table(results).caption)
    assert "e1: RuntimeError: no dogs" in page(results)


def test_weights_too_large_to_compute_with_are_no_edit(model: Causal) -> None:
    class Huge(Finetune):
        def adapt(self, states: Any, lm: Any, evidence: Any, context: Any, donate: bool = False) -> Any:
            name = "model.norm.weight"
            values = torch.full_like(lm.module.get_parameter(name), 3e38)
            return [replace(states[0], delta=Delta.dense(lm.fingerprint, {name: values}))]

    state, failed = make_edits(Huge(), Huge().init(model), model, EDITS[:1], Context())
    assert not state.delta.parts and failed[0][1].startswith("the edited model gives no numbers")


def test_edits_that_fail_together_alone_are_all_told_of(model: Causal) -> None:
    class Lonely(Honest):
        def adapt(self, states: Any, lm: Any, evidence: Any, *rest: Any, **more: Any) -> Any:
            if len(evidence[0].passages) > 1:
                raise RuntimeError("one at a time")
            return super().adapt(states, lm, evidence, *rest, **more)

    state, failed = make_edits(Lonely(), Lonely().init(model), model, EDITS, Context())
    assert failed == [(place, "RuntimeError: one at a time") for place in range(5)] and not state.history


def test_what_is_wrong_with_every_edit_ends_the_run_at_once(model: Causal) -> None:
    class Wrong(Honest):
        def adapt(self, *_: Any, **__: Any) -> Any:
            raise BadInput("layers 9: the model has 2")

    with pytest.raises(BadInput, match="layers 9"):
        measured(model, {"wrong": Wrong()})


@pytest.mark.parametrize(
    ("inputs", "protocol", "message"),
    [
        (Inputs(), PROTOCOL, "no edit to make"),
        (Inputs(edits=(EDITS[0], EDITS[0])), PROTOCOL, "'e0' is there twice"),
        (Inputs(edits=(replace(EDITS[0], target=""),)), PROTOCOL, "empty target"),
        (Inputs(edits=EDITS), replace(PROTOCOL, checkpoints=(9,)), "checkpoint 9: 5 edits are"),
        (Inputs(edits=EDITS), replace(PROTOCOL, tokens=3), "use --answer-tokens 4 or more"),
        (Inputs(edits=(replace(EDITS[0], prompt="x" * 200, subject=""),)), PROTOCOL, "the model reads 128"),
    ],
)
def test_a_set_up_that_is_wrong_is_refused(
    model: Causal, inputs: Inputs, protocol: Edits, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        uptake.compare(model, inputs, {"honest": MethodSpec(Honest())}, protocol=protocol)


def test_the_base_is_asked_once_and_remembered(model: Causal, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured_alone(model)

    def never(*_: Any) -> Any:
        raise AssertionError("the base was asked again")

    with monkeypatch.context() as patch:
        patch.setattr(edit_replies, "reply_to", never)
        assert measured_alone(model).rows[:40] == first.rows[:40]
    for kept in cache_root().rglob("*.json"):
        kept.write_bytes(kept.read_bytes().replace(b"false", b"true ", 1))
    assert measured_alone(model).of(Told) == first.of(Told), "a damaged reply was believed"


def test_known_facts_are_told_apart(model: Causal) -> None:
    (said,) = generate(model, [EDITS[0].prompt], 7)
    edits = (replace(EDITS[0], old=said), *EDITS[1:])
    results = uptake.compare(model, Inputs(edits=edits), {"honest": MethodSpec(Honest())}, protocol=PROTOCOL)
    found = uptake.summary(results)
    assert found["known"] == 1 and found["methods"]["honest"]["known"]["success"] == 1


def test_file_table_and_page(model: Causal, tmp_path: Path) -> None:
    results = measured(model, {"honest": Honest(ALIASES)}, replace(PROTOCOL, checkpoints=(2,)))
    uptake.write_json(results, tmp_path / "edits.json")
    back = uptake.read_json(tmp_path / "edits.json")
    assert back.rows == results.rows and back.showcases == results.showcases
    assert uptake.summary(back) == uptake.summary(results)
    assert json.loads(json.dumps(uptake.summary(results), allow_nan=False))
    html = page(results)
    for words in ("Success against drift", "What is left, by age", "Success as edits grow", "the cat is"):
        assert words in html
    assert "All edits were made first" in html and "says 100" in html
    assert uptake.table(results).row_count == 4
    *tables, calibration = results.kind.details(uptake.summary(results))
    assert len(tables) == 2 and "How sure the answers are" in html
    assert [line["calibration"] for line in calibration] == ["base", "oracle", "other-edit", "honest"]


class StoppedError(Exception):
    pass


def without_cost(results: Results) -> tuple[Any, ...]:
    # How many prompts stand side by side, fewer where a run goes on, can change a prediction's last bit.
    return tuple(
        replace(row, edit_seconds=0.0, ask_seconds=0.0, gpu_seconds=0.0, prepare_seconds=0.0)
        if isinstance(row, Cost)
        else replace(row, said_nats=round(row.said_nats, 4))
        if isinstance(row, Told)
        else row
        for row in results.rows
    )


LEARNERS = {"learner": Finetune(optimizer=SGD(0.5)), "fragile": Fragile()}


@pytest.fixture(name="whole", scope="module")
def whole_fixture(model: Causal) -> Results:
    return measured(model, LEARNERS, replace(PROTOCOL, checkpoints=(3,)))


@pytest.mark.parametrize("stop", [3, 6, 9, 12, 19, 22, 25, 30])
def test_stopped_anywhere_it_goes_on(model: Causal, whole: Results, tmp_path: Path, stop: int) -> None:
    methods, protocol = LEARNERS, replace(PROTOCOL, checkpoints=(3,))

    def interrupt(done: int, total: int, label: str) -> None:
        assert total == 3 * 5 + 2 * (5 + 5 + 3) and done <= total
        if done >= stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        measured(model, methods, protocol, journal=tmp_path / "j", progress=interrupt)
    seen: list[int] = []
    again = measured(
        model,
        methods,
        protocol,
        journal=tmp_path / "j",
        progress=lambda done, total, label: seen.append(done),
    )
    assert without_cost(again) == without_cost(whole)
    assert seen[0] > stop - 5, "what was done was done again"
