"""The recipe of streams on a real model, on toys: groups run and go on, figures are what they say."""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import recipe_modules
import toys
from uptake.adaptation.token_weights.network import aligned
from uptake.methods.contract.method import Context, Evidence
from uptake.tasks.asking import ask
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Found, Passage

PARTS = {"train": 9, "valid": 3, "test": 6}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from recipe_modules.imported("fresh_streams", monkeypatch)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(lzma.compress(text) if path.suffix == ".xz" else text)


def facts(folder: Path) -> None:
    """Write facts as fresh.py does: classes with a base each, asked for twice."""
    for part, count in PARTS.items():
        made: dict[str, list[dict[str, Any]]] = {"passages": [], "questions": [], "rephrased": []}
        for n in range(count):
            name, base = f"{part.title()}{n}", f"Base{n}"
            about = {"id": f"{part}/{n}.py", "group": f"{part}/{n}.py"}
            made["passages"].append({**about, "text": f"class {name}({base}): pass\n"})
            asked = {"answers": [base], "document": about["id"], "part": "store"}
            made["questions"].append({**asked, "id": f"{name}?0", "question": f"Base of {name}?"})
            made["rephrased"].append({**asked, "id": f"{name}?1", "question": f"What is {name} made of?"})
        for name, rows in made.items():
            write(folder / "fresh" / "facts" / part / f"{name}.jsonl", rows)
        text = "nothing of this has to do with any class at all. " * 20
        write(
            folder / "pile" / "books" / f"{part}.jsonl.xz", [{"id": f"{n}", "text": text} for n in range(2)]
        )


def given(recipe: Any, folder: Path) -> list[str]:
    """Return the options of a run of seconds, its data and models written."""
    common = recipe.methods.common
    facts(folder)
    common.save(toys.module(window=256), Tokenizer(toys.tokenizer()), folder / "model")
    words = common.toy_tokenizer(common.Names.syllables())
    common.save(common.small_model(words, 16, 1), words, folder / "small")
    places = {"model": "model", "small": "small", "data": "fresh", "minipile": "pile", "work": "work"}
    small = (
        "--length 8 --checkpoints 2 --control 2 --unrelated 1 --rates 1e-3 1e-2 --most-kl 9 --tokens 3 "
        "--teaching-rates 1e-3 --places-passes 1 --mac-reading 0 --mac-passes 1 --mac-documents 4 "
        "--mac-settings width=16 slots=1 blocks=1"
    )
    return [*small.split(), *(f"--{name}={folder / path}" for name, path in places.items())]


@pytest.mark.long
def test_every_group_runs_and_goes_on(recipe: Any, tmp_path: Path, capsys: Any) -> None:
    options = given(recipe, tmp_path)
    out = tmp_path / "out.json"
    assert recipe.main(["all", *options, f"--json={out}"]) == 0
    found = json.loads(out.read_text())
    methods, figures = recipe.methods, recipe.figures
    at = {(row["way"], row["taken"]): row for row in found["rows"]}
    assert [taken for name, taken in at if name == figures.FOUND] == [6, 8]
    for way in (methods.UNIFORM, methods.CAMELS, methods.MAC):
        assert [taken for name, taken in at if name == way] == [2, 6, 8], way
        assert at[way, 2]["questions"] == 2 and at[way, 8]["questions"] == 6
    for way in (methods.SALIENT, methods.TFIDF, methods.SHUFFLED, methods.ORACLE, methods.RESTATED):
        assert [taken for name, taken in at if name == way] == [2, 6], way
    for way in (methods.UNIFORM, methods.CAMELS, methods.MAC):
        mine, other = at[way, 2], at[f"{way}, other documents", 2]
        assert mine["beyond_control"][0] == pytest.approx(mine["gain"] - other["gain"])
    assert at[methods.UNIFORM, 8]["steps"] == 8 and at[methods.AGAIN, 2]["steps"] == 8
    assert at[figures.BARE, 6]["gain"] == 0 and at[methods.UNIFORM, 6]["gain"] != 0
    assert "| uniform | 8 |" in capsys.readouterr().out
    rows = figures.rows_folder(tmp_path / "work") / "uniform.jsonl"
    before = rows.read_bytes()
    assert recipe.main(["run", "--groups", "uniform", *options]) == 0
    assert rows.read_bytes() == before, "nothing is answered twice"
    assert recipe.main(["run", *options, "--length", "7"]) == 2, "another run's folder is refused"


def test_a_method_can_stop_behind_the_documents_that_are_asked_for(recipe: Any, tmp_path: Path) -> None:
    options = [*given(recipe, tmp_path), "--rates", "1e-3", "--to-the-end", "MAC"]
    args = recipe.parser().parse_args(["run", *options])
    ready = recipe.Prepared(args)
    vars(ready)["base"] = toys.lm(window=256)
    streams = recipe.Streams.of(args)
    assert len(streams.test.documents) == 8
    journal = recipe.Journal(args, "uniform")
    recipe.uniform(ready, streams, args, journal)
    job = recipe.Job(recipe.methods.UNIFORM, 1e-3, recipe.TEST)
    assert [record["taken"] for record in journal.of(job)] == [2, 6]
    assert recipe.last(recipe.methods.MAC, streams, args) == 8


def test_what_a_cut_off_run_answered_is_in_the_table(recipe: Any, tmp_path: Path, capsys: Any) -> None:
    options = [*given(recipe, tmp_path), "--rates", "1e-3"]
    figures = recipe.figures
    args = recipe.parser().parse_args(["run", *options])
    ready = recipe.Prepared(args)
    vars(ready)["base"] = toys.lm(window=256)
    streams = recipe.Streams.of(args)
    recipe.reading(ready, streams, args, recipe.Journal(args, "reading"))

    class Cut(recipe.Journal):  # type: ignore[misc, name-defined]
        def keep(self, job: Any, taken: int, last: bool, *rows: Any, **more: Any) -> None:
            if job.which == figures.TEST and taken > 2:
                raise KeyboardInterrupt
            super().keep(job, taken, last, *rows, **more)

    with pytest.raises(KeyboardInterrupt):
        recipe.uniform(ready, streams, args, Cut(args, "uniform"))
    found = figures.figures(tmp_path / "work")
    uniform = [row for row in found["rows"] if row["way"] == figures.UNIFORM]
    assert [row["taken"] for row in uniform] == [2]
    # What is kept is what the method answers: the loop, by hand.
    method, lm = recipe.methods.finetune(1e-3), ready.base
    state = method.init(lm)
    for document in streams.test.documents[:2]:
        evidence = Evidence(Found((Passage.whole(document),), (0.0,), (0.0,), (0.0,)))
        (state,) = method.adapt([state], lm, [evidence], Context())
    asked = [q for q in streams.facts.questions if q.document in [d.id for d in streams.test.documents[:2]]]
    nats = [row.nats for row in ask(method.adapted([state], lm), asked)]
    assert uniform[0]["bits"] == pytest.approx(sum(nats) / len(nats) / figures.LN2, rel=1e-5)
    assert recipe.main(["table", *options]) == 0
    assert "| uniform | 2 |" in capsys.readouterr().out


def test_known_facts_are_left_out_and_intervals_go_by_file(recipe: Any, tmp_path: Path) -> None:
    figures = recipe.figures
    args = recipe.parser().parse_args(["run", f"--work={tmp_path}"])

    def row(number: int, nats: float, exact: float = 0.0, failed: str = "") -> dict[str, Any]:
        name = {"question": f"q{number}", "group": f"f{number // 2}", "place": number + 1, "tokens": 2}
        return {
            **name,
            "nats": nats,
            "said": "",
            "exact": exact,
            "f1": exact,
            "held": bool(exact),
            "failed": failed,
        }

    def keep(group: str, way: str, rows: list[dict[str, Any]], which: str = "test", at: int = 4) -> None:
        job = recipe.Job(way, 0.1, which)
        more = {"drift": [[2.0, 4]], "steps": 1, "seconds": 0.0, "failures": []}
        recipe.Journal(args, group).keep(job, at, True, rows, **more)

    keep("reading", figures.BARE, [row(0, 1.0, exact=1.0), *(row(n, 4.0) for n in (1, 2, 3))])
    keep("uniform", figures.UNIFORM, [row(0, 9.0), row(1, 1.0, 1.0), row(2, 3.0), row(3, 0.0, failed="no")])
    keep("uniform", figures.UNIFORM, [row(n, 4.0) for n in range(4)], figures.CONTROL)
    found = figures.figures(tmp_path)
    assert (found["questions"], found["known"], found["files"]) == (4, 1, 2)
    told = next(each for each in found["rows"] if each["way"] == figures.UNIFORM)
    assert told["gain"] == pytest.approx(4 / 12) and told["gain"] == told["beyond_control"][0]
    # Files are drawn: of one file alone 3 of 4 nats are saved, of the other 1 of 8.
    assert told["gain_ci"] == pytest.approx([1 / 8, 3 / 4])
    assert told["exact"] == pytest.approx(1 / 3) and told["kl"] == pytest.approx(0.5)
    assert told["failed_questions"] == 1
    # Reading on: the first of these has lost 3 nats of the 12, the others are as they were.
    keep("uniform", figures.UNIFORM, [row(0, 9.0), row(1, 4.0), row(2, 3.0), row(3, 4.0)], at=8)
    later = figures.figures(tmp_path)["rows"]
    (on,) = [each for each in later if each["way"] == figures.UNIFORM and each["taken"] == 8]
    assert on["beyond_first"][0] == pytest.approx(-3 / 12)
    assert on["beyond_first"][1] == pytest.approx([-3 / 4, 0])
    assert all("beyond_first" not in each for each in later if each["taken"] == 4)


def test_the_control_keeps_the_questions_and_changes_the_texts(recipe: Any, tmp_path: Path) -> None:
    facts(tmp_path)
    args = recipe.parser().parse_args(
        [
            "run",
            f"--data={tmp_path / 'fresh'}",
            f"--minipile={tmp_path / 'pile'}",
            "--length=8",
            "--control=6",
        ]
    )
    streams = recipe.Streams.of(args)
    assert streams.stops == (6, 8) and streams.known_at == 6
    other = recipe.control(streams, args)
    assert [each.id for each in other.documents] == [each.id for each in streams.test.documents[:6]]
    assert other.questions == streams.test.questions
    assert not {each.text for each in other.documents} & {each.text for each in streams.facts.documents}
    teaching, meta = recipe.data.teaching_and_meta(recipe.data.facts(args.data, "train"))
    assert not {each.group for each in teaching.documents} & {each.group for each in meta.documents}
    closed = [recipe.data.in_context([question], [""])[0].text for question in teaching.all_questions]
    longest = max(len(each.text) for each in teaching.documents)
    form = [each.text for each in recipe.data.form(teaching, longest)]
    assert form[: len(closed)] == closed and closed == [
        each.text for each in recipe.data.form(teaching, longest - 1)
    ]
    opened = [text.split("\n")[0] for text in form[len(closed) :]]
    assert sorted(opened) == sorted(each.text.strip() for each in teaching.documents)
    restated = recipe.data.told_as_questions(streams.test, streams.facts)
    for before, after in zip(streams.test.documents[:6], restated.documents[:6], strict=True):
        asked = [q for q in streams.facts.questions if q.document == before.id]
        assert all(q.answers[0] in after.text and q.text not in after.text for q in asked)


def test_a_small_run_reads_short_documents_alone(recipe: Any, tmp_path: Path) -> None:
    facts(tmp_path)
    folder = tmp_path / "fresh"
    path = folder / "facts" / "test" / "passages.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["text"] += "# and so on\n" * 9
    write(path, rows)
    whole = recipe.data.facts(folder, "test")
    longest = max(len(each.text) for each in whole.documents if each.id != "test/2.py")
    assert recipe.data.facts(folder, "test", longest=longest + 500) == whole
    short = recipe.data.facts(folder, "test", longest=longest)
    assert short.documents == tuple(each for each in whole.documents if each.id != "test/2.py")
    assert {each.document for each in short.all_questions} == {each.id for each in short.documents}
    options = ["run", f"--data={folder}", f"--minipile={tmp_path / 'pile'}", f"--longest={longest}"]
    streams = recipe.Streams.of(recipe.parser().parse_args(options))
    assert streams.known_at == len(short.documents)
    # Nobody asks for long ones: their beginnings stand behind all others.
    read, texts = streams.test.documents, {each.id: each.text for each in whole.documents}
    count = len(short.documents) + len(streams.filler)
    assert "test/2.py" not in {each.id for each in read[:count]}
    (cut,) = (each for each in read[count:] if each.id == "test/2.py")
    assert cut.text == texts["test/2.py"][:longest]


def test_weights_of_another_tokenizer_stay_where_they_are() -> None:
    spans = [(0, 2), (2, 5)]
    found = aligned(torch.ones(3, device="meta"), [(0, 1), (1, 3), (3, 5)], spans)
    assert found.device.type == "meta" and found.shape == (2,)
