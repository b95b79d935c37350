"""recipes/trainable.py: what its tables make of rows, and that it runs, resumes and ends on a toy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trainable
import trainable_kinds
import trainable_tasks
from trainable_table import stream, tasks, tried, ttt

import toys
from uptake.errors import BadInput
from uptake.tasks.few_shot import Shot, Task

torch.set_num_threads(1)


def marked(nats: list[float], said: bool = False) -> dict[str, Any]:
    count = len(nats)
    return {"marks": {"nats": nats, "tokens": [2] * count, "said": [said] * count, "picked": [1.0] * count}}


def test_a_kind_s_share_is_of_what_lora_saves_on_the_same_documents() -> None:
    def row(bits: float, cpu: float = 1.0) -> dict[str, float]:
        return {"bits": bits, "cpu": cpu, "wall": 2 * cpu, "kl": 0.5}

    rows = {f"ttt/test/base/{n}": row(10.0) for n in range(3)}
    rows |= {f"ttt/test/lora/{n}": row(6.0, 4.0) for n in range(3)}
    rows |= {f"ttt/test/ia3/{n}": row(7.0, 2.0) for n in range(2)}  # one is yet to be measured
    rows["ttt/about/ia3"] = {"parameters": 12, "rate": 0.1}
    found = ttt(rows)
    assert found["lora"]["gain"] == pytest.approx(0.4) and found["ia3"]["gain"] == pytest.approx(0.3)
    assert found["ia3"]["documents"] == 2 and found["ia3"]["parameters"] == 12
    assert found["ia3"]["share_of_lora"] == pytest.approx(0.75)
    assert found["ia3"]["cpu_of_lora"] == pytest.approx(0.5) == found["ia3"]["wall_of_lora"]


def test_what_was_tried_on_validation_text_is_told_by_rate() -> None:
    rows = {f"ttt/valid/base/{n}": {"bits": 10.0} for n in range(2)} | {"ttt/test/base/a": {"bits": 1.0}}
    rows["ttt/valid/ia3, nearest 3/0.01"] = {"bits": 15.0, "cpu": 2.0}
    assert tried(rows) == {"ia3, nearest 3": {"0.01": {"gain": 0.25, "cpu": 2.0}}}


def test_answers_are_compared_within_tasks_whatever_their_lengths() -> None:
    base = {"tasks/test/base/0 a": marked([4.0, 4.0]), "tasks/test/base/0 b": marked([40.0, 40.0, 40.0])}
    mine = {"tasks/test/ia3/1/0 a": marked([2.0, 2.0]), "tasks/test/ia3/1/0 b": marked([20.0, 20.0, 20.0])}
    lora = {"tasks/test/lora/1/0 a": marked([4.0, 4.0], True), "tasks/test/lora/1/0 b": marked([40.0] * 3)}
    shown = {"tasks/test/in-context/0 a": marked([3.0, 3.0]), "tasks/test/in-context/0 b": marked([30.0] * 3)}
    found = tasks({**base, **mine, **lora, **shown})
    assert found["ia3, 1 steps"]["against_in_context"]["saved"] == pytest.approx(1 / 3)
    assert found["ia3, 1 steps"]["saved"] == pytest.approx(0.5)
    assert found["ia3, 1 steps"]["against_lora"]["saved"] == pytest.approx(0.5)
    assert found["lora, 1 steps"]["saved"] == pytest.approx(0.0)
    assert found["lora, 1 steps"]["said"] == pytest.approx(0.4)
    # A mean over tasks of nats a token: (2 + 20) / 2.
    assert found["base"]["nll"] == pytest.approx(11.0)
    told = stream({"stream/test/base": marked([4.0, 4.0]), "stream/test/ia3": marked([1.0, 3.0])})
    assert told["ia3"]["saved"] == pytest.approx(0.5) and told["ia3"]["picked"] == 1.0
    both = {"stream/test/base": marked([4.0, 4.0]), "stream/test/lora": marked([2.0, 2.0])}
    told = stream(
        {**both, "stream/test/in-context": marked([3.0, 3.0]), "stream/test/ia3": marked([1.0, 1.0])}
    )
    assert told["ia3"]["against_lora"]["saved"] == pytest.approx(0.5)
    assert told["ia3"]["against_in_context"]["saved"] == pytest.approx(2 / 3)
    assert "against_lora" not in told["lora"] and told["lora"]["against_in_context"]["saved"] > 0


def test_rows_are_measured_once_and_none_begins_after_the_minutes(tmp_path: Path) -> None:
    file, told = tmp_path / "rows.json", []
    work = trainable.Work.at(file, 1.0)
    assert work.row("a", lambda value: told.append(value) or value, 3) == 3
    again = trainable.Work.at(file, 1.0)
    assert again.row("a", lambda value: told.append(value) or value, 4) == 3 and told == [3]
    late = trainable.Work.at(file, 0.0)
    assert late.row("b", lambda: 5) is None and "b" not in late.rows
    assert (
        trainable.best_rate(
            [0.1, 0.2], None, lambda rate: again.row(f"{rate}", float, rate) if rate < 0.2 else None
        )
        is None
    )
    file.with_name("more.json").write_text("{}")
    asked = trainable.parsed(["table", "--out", str(file), str(file.with_name("more.json"))])
    assert asked.more == [file.with_name("more.json")] and asked.out == file
    with pytest.raises(BadInput, match="no such file"):
        trainable.table([tmp_path / "other.json"], None)


def test_rates_are_climbed_from_the_middle_and_each_is_tried_once() -> None:
    told: list[float] = []

    def cost(rate: float) -> float:
        told.append(rate)
        return abs(rate - 5)

    assert trainable_kinds.best_rate([1, 2, 3, 4, 5, 6], 2, cost) == 5 and told == [3, 4, 5, 6]
    assert trainable_kinds.best_rate([1, 2, 3], 1, lambda rate: rate) == 1
    assert trainable_kinds.best_rate([6, 1, 5], None, cost) == 5
    assert trainable_kinds.best_rate([1, 2, 3, 4, 5, 6], 2, cost, climb=False) == 4
    assert trainable_kinds.best_rate([1, 2, 3], 1, lambda _: None, climb=False) == 2  # none to choose among
    assert trainable_kinds.best_rate([0.1, 0.2], None, lambda rate: rate if rate < 0.2 else None) is None


def test_a_task_takes_the_rate_that_the_stream_chose(tmp_path: Path) -> None:
    work = trainable.Work.at(tmp_path / "rows.json", 1.0)
    work.rows |= {"stream/valid/lora/0.1": marked([3.0, 1.0]), "stream/valid/lora/0.01": marked([1.0, 1.0])}
    work.rows["stream/valid/lora upper/0.2"] = marked([0.0, 0.0])
    assert trainable_tasks.of_stream(work, "lora") == 0.01
    assert trainable_tasks.of_stream(work, "ia3") is None


def test_some_tasks_of_each_sort_are_others_for_another_seed() -> None:
    def task(name: str, *wrong: str) -> Task:
        return Task(name, (), (Shot("", "a", wrong),))

    found = [task("a", "b"), task("b", "c"), task("p"), task("q"), task("r")]
    names = [[each.name for each in trainable_tasks.some_of(found, 1, seed)] for seed in range(3)]
    assert names == [["a", "p"], ["b", "q"], ["a", "r"]]
    assert trainable_tasks.some_of(found, None, 1) == found
    assert trainable_tasks.unpicked(found[0]) == task("a") and trainable_tasks.unpicked(found[2]) == found[2]


def fresh(folder: Path) -> Path:
    """Made-up data in the form of recipes/fresh.py: packages of small files, passages with questions."""
    code = "import os\n\n\ndef read_{n}(name):\n    value = os.path.join(name, {n})\n    return value\n"

    def written(path: Path, rows: list[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")

    for part, first in (("store", 0), ("valid", 100), ("test", 200)):
        count = 56 if part == "store" else 2
        rows = [
            {"id": f"p{n % 14:02}-1/{n}.py", "text": f"# file {n}\n" + 3 * code.format(n=first + n)}
            for n in range(count)
        ]
        written(folder / f"{part}.jsonl", rows)
    for part in ("train", "valid", "test"):
        names = [f"{part}-{n}" for n in range(4)]
        passages = [{"id": each, "text": f"# {each}: it is blue.", "group": each} for each in names]
        questions = [
            {"question": f"What is {each}?", "answers": ["blue"], "document": each} for each in names
        ]
        written(folder / "facts" / part / "passages.jsonl", passages)
        written(folder / "facts" / part / "questions.jsonl", questions)
    return folder


@pytest.mark.long
def test_the_bed_runs_to_its_end_resumes_and_gives_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = fresh(tmp_path / "fresh"), tmp_path / "rows.json"
    lm = toys.lm(window=512)
    monkeypatch.setattr("uptake.load", lambda *_: lm)
    few = {name: replace(kind, rates=kind.rates[:1]) for name, kind in trainable.KINDS.items()}
    viewed = "ia3 of 1 from view"
    few[viewed] = trainable_kinds.Kind("ia3(layers=1)", (1e-2,), 3, 1, (trainable_kinds.HALF,))
    for module in (trainable, trainable_kinds, trainable_tasks):
        monkeypatch.setattr(module, "KINDS", few)
    monkeypatch.setattr(
        trainable_tasks, "RATES", {name: rates[:1] for name, rates in trainable_tasks.RATES.items()}
    )
    monkeypatch.setattr(trainable_tasks, "RATES_OF_MIXTURES", (1e-3,))
    monkeypatch.setattr(trainable_tasks, "SOURCE_SHOTS", 4)
    common = ["--data", str(data), "--out", str(out), "--kinds", "lora", "ia3", trainable_kinds.EQUAL]
    small = ["--shots", "4", "--asked", "2", "--seeds", "1", "--steps", "1", "--episodes", "2"]
    small += ["--sources", "2", "--source-steps", "1"]

    def run() -> None:
        nearest = ["--kinds", "lora", "ia3", trainable_kinds.EQUAL, "ia3, nearest 3", viewed]
        trainable.main(["ttt", *common, *nearest, "--valid", "1", "--test", "2", "--k", "4"])
        trainable.main(["stream", *common])
        trainable.main(["tasks", *common, *small])

    run()
    rows = json.loads(out.read_text())
    capsys.readouterr()
    run()
    assert capsys.readouterr().out == "" and json.loads(out.read_text()) == rows
    trainable.main(["table", "--out", str(out), "--json", str(tmp_path / "figures.json")])
    found = json.loads((tmp_path / "figures.json").read_text())
    assert {"base", "in-context", "lora", "ia3", trainable_kinds.EQUAL} == found["stream"].keys()
    assert found["ttt"].keys() - found["stream"].keys() == {
        "lora, random passages",
        "ia3, nearest 3",
        viewed,
    }
    assert found["ttt"]["lora"]["peak_bytes"] > 0 and found["ttt"]["ia3"]["kl"] > 0
    wanted = (
        "mltd", "mltd untrained", "lora by the same loop", "mixture", "mixture average", "lora on all tasks",
        "attempt", "best source", "attempt, drawn sources", "t-few", "lora", "ia3", trainable_kinds.EQUAL,
    )  # fmt: skip
    assert {f"{name}, 1 steps" for name in wanted} | {"base", "in-context"} == found["tasks"].keys()
    assert found["tasks"]["attempt, 1 steps"]["against_best_source"]["other"] == "best source, 1 steps"
    told = capsys.readouterr().out
    assert "of LoRA's" in told and "mltd, 1 steps against lora:" in told
