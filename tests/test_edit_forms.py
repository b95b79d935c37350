"""Edits out of CounterFact, zsRE and made-up worlds: what is made of each record, and what is refused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from uptake.errors import BadInput
from uptake.tasks.edit_files import read_edits
from uptake.tasks.edit_forms import by_subject, questions_elsewhere
from uptake.tasks.edits import Edit, Probe, independent, says
from uptake.tasks.made_up_edits import made_up_edits
from uptake.text.files import Skipped

SPEAKS, NATIVE, MOTHER = "{} speaks", "{} is a native speaker of", "The mother tongue of {} is"


def fact(number: int, template: str, asked: str, subject: str, other: str, **more: str) -> dict[str, Any]:
    return {
        "case_id": number,
        "prompt": template.format(subject),
        "target_new": "English",
        "subject": subject,
        "ground_truth": "French",
        "rephrase_prompt": f"Rain fell. {asked.format(subject)}",
        "locality_prompt": asked.format(other),
        "locality_ground_truth": "French",
        **more,
    }


FACTS = [
    *(fact(n, MOTHER, NATIVE, f"Anna{n}", f"Ben{n}") for n in range(6)),
    *(fact(n, NATIVE, SPEAKS, f"Anna{n}", f"Ben{n}") for n in range(6, 12)),
    *(fact(n, MOTHER, SPEAKS, f"Anna{n}", f"Ben{n}") for n in range(12, 18)),
    *(fact(n, SPEAKS, MOTHER, f"Anna{n}", f"Ben{n}") for n in range(18, 20)),
]


def read(
    folder: Path, records: Sequence[Mapping[str, Any]], skipped: Skipped | None = None
) -> tuple[Edit, ...]:
    (folder / "facts.json").write_text(json.dumps(records))
    return read_edits(folder / "facts.json", skipped)


def test_counterfact_gains_tight_rephrases_and_hard_neighbours(tmp_path: Path) -> None:
    edits = {edit.id: edit for edit in read(tmp_path, FACTS)}
    first = edits["counterfact/0"]
    assert (first.prompt, first.target, first.old) == ("The mother tongue of Anna0 is", "English", "French")
    # Its neighbour's template, and one often seen beside both.
    assert first.rephrases == ("Anna0 is a native speaker of", "Anna0 speaks")
    assert first.loose == ("Rain fell. Anna0 is a native speaker of",)
    assert first.relation == MOTHER
    assert first.neighbours[0] == Probe("Ben0 is a native speaker of", "French")
    assert [probe.prompt for probe in first.neighbours[1:]] == [
        f"Ben{n} is a native speaker of" for n in range(1, 5)
    ]
    # Seen beside it twice is not often: the template of its own neighbour alone.
    assert edits["counterfact/18"].rephrases == ("The mother tongue of Anna18 is",)


def test_what_is_an_edit_or_names_the_subject_is_no_neighbour(tmp_path: Path) -> None:
    facts = [*FACTS, fact(30, MOTHER, NATIVE, "Cleo", "Anna7"), fact(31, MOTHER, NATIVE, "Dora", "old Dora")]
    edits = {edit.id: edit for edit in read(tmp_path, facts)}
    for number, named in ((30, "Anna7"), (31, "Dora")):
        prompts = [probe.prompt for probe in edits[f"counterfact/{number}"].neighbours]
        assert prompts and not any(says(prompt, named) for prompt in prompts)


def test_two_hops_hinge_on_the_fact_about_the_target(tmp_path: Path) -> None:
    paris = fact(40, "The capital of {} is", "{} is ruled from", "English", "Spain", ground_truth="London")
    paris["target_new"] = "Rome"
    edits = read(tmp_path, [*FACTS, paris])
    (ripple,) = edits[0].ripples
    assert ripple.target == "London" and ripple.hinges == "The capital of English is"
    assert "English" not in ripple.prompt
    assert not independent(edits)[0].ripples, "both facts change: London is no longer right"
    assert independent(edits[:5])[0].ripples == (ripple,)
    twin = fact(41, "The twin city of {} is", "{} is a twin city of", "Oslo", "Bern")
    assert not read(tmp_path, [*FACTS, paris, twin])[-1].ripples


def test_conflicting_and_useless_records_are_counted(tmp_path: Path) -> None:
    other = fact(50, MOTHER, NATIVE, "Anna0", "Ben0", target_new="Dutch")
    none = fact(51, MOTHER, NATIVE, "Eva", "Ben0", target_new="French")
    held = fact(52, "English {} speaks", NATIVE, "Fay", "Ben0")
    skipped = Skipped()
    assert len(read(tmp_path, [*FACTS, other, none, held], skipped)) == len(FACTS)
    assert skipped.counts == {
        "contradicts an earlier edit": 1, "changes nothing": 1, "prompt holds its target": 1
    }  # fmt: skip


ZSRE = {
    "subject": "WEFS", "src": "When was WEFS established?", "pred": "1998", "rephrase": "When did WEFS "
    "begin?",
    "alt": "1997", "answers": ["1987"], "loc": "nq question: who sang it", "loc_ans": "Ann Lee",
}  # fmt: skip


def test_zsre(tmp_path: Path) -> None:
    skipped = Skipped()
    same = {**ZSRE, "alt": "1987 ", "src": "When?", "subject": "other"}
    (edit,) = read(tmp_path, [ZSRE, same], skipped)
    assert edit == Edit(
        "zsre/0",
        "Question: When was WEFS established?\nAnswer:",
        "1997",
        "WEFS",
        "1987",
        ("Question: When did WEFS begin?\nAnswer:",),
        neighbours=(Probe("Question: Who sang it?\nAnswer:", "Ann Lee"),),
    )
    assert skipped.counts == {"changes nothing": 1}
    (text,) = questions_elsewhere([edit])
    assert text.text == "Question: Who sang it?\nAnswer: Ann Lee"


def test_parts_share_no_subject() -> None:
    edits = [Edit(f"e{n}", f"{n}: S{n % 300} is", "x", f"S{n % 300}") for n in range(900)]
    parts = by_subject(edits, {"train": 0.7, "valid": 0.1, "test": 0.2})
    subjects = {name: {edit.subject for edit in some} for name, some in parts.items()}
    assert sum(map(len, parts.values())) == 900 and sum(map(len, subjects.values())) == 300
    assert 0.6 < len(parts["train"]) / 900 < 0.8 and len(parts["valid"]) > 45
    assert by_subject(edits[::-1], {"train": 0.7, "valid": 0.1, "test": 0.2})["test"] == parts["test"][::-1]


def test_made_up_edits() -> None:
    edits = made_up_edits(50, neighbours=2, seed=1)
    assert edits == made_up_edits(50, neighbours=2, seed=1) and len({edit.subject for edit in edits}) == 50
    for edit in edits:
        assert not edit.fault() and edit.subject in edit.prompt
        assert len(edit.rephrases) >= 3 and all(edit.subject in text for text in edit.rephrases)
        assert not any("VALUE" in text or "PERSON" in text for text in (edit.prompt, *edit.rephrases))
        assert len(edit.neighbours) == 2 and not any(
            edit.subject in probe.prompt for probe in edit.neighbours
        )
    assert not {edit.subject for edit in edits} & {edit.subject for edit in made_up_edits(50, split="train")}
    with pytest.raises(BadInput, match="0 edits"):
        made_up_edits(0)
