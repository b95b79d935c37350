"""Edits as data sets hold them: CounterFact and zsRE, in the layouts of EasyEdit, with what each lacks made.

CounterFact (Meng et al. 2022) gives one loose rephrase and one neighbour an edit. Nearly all its neighbour
prompts are one of some two hundred templates around a subject. A neighbour asks for the same relation, so its
template with the edit's subject in it is a tight rephrase, and so is one that is often seen beside both.
Records whose neighbours share template and truth lend each other hard neighbours: the same relation,
another subject. Two-hop questions come from records about a target. zsRE (Levy et al. 2017, as MEND uses
it) gives a rephrase and an unrelated question of Natural Questions.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uptake.tasks.edits import Edit, Probe, says
from uptake.text.types import Document, stable_hash

_FEWEST = 5  # records that share two templates before they count as one relation
_HARD = 4  # neighbours added to a record's own
_ONE_OF_MANY = "twin city"  # such an answer is one of many right ones
_SLOT = "{}"


def form_of(record: Mapping[str, Any]) -> str:
    """Return which data set a record is of: "counterfact", "zsre", or "" for Uptake's own form."""
    if "target_new" in record and "subject" in record:
        return "counterfact"
    return "zsre" if "src" in record and "alt" in record else ""


def zsre(records: Iterable[tuple[Mapping[str, Any], str]]) -> list[tuple[dict[str, Any], str]]:
    """Return records of zsRE in Uptake's own form, each with its place; `alt` is the target."""
    found = []
    for number, (record, where) in enumerate(records):
        answers = [str(one) for one in _list(record.get("answers"))]
        target = str(record.get("alt") or "").strip()
        # One that is among the right answers already changes nothing, and is left out for that.
        right = [one for one in answers if one.casefold() == target.casefold()]
        question = re.sub(r"^nq question:\s*", "", str(record.get("loc") or ""))
        own: dict[str, Any] = {
            "id": record.get("id") or f"zsre/{number}",
            "prompt": _asked(str(record.get("src") or "")),
            "target": target,
            "subject": str(record.get("subject") or ""),
            "old": [*right, *answers, ""][0],
            "rephrases": [_asked(str(record["rephrase"]))] if record.get("rephrase") else [],
            "neighbours": [_elsewhere(question, record)] if question else [],
        }
        if own["subject"] not in own["prompt"]:
            own["subject"] = ""  # some stand there under another name
        found.append((own, where))
    return found


def _elsewhere(question: str, record: Mapping[str, Any]) -> dict[str, str]:
    asked = _asked(question[:1].upper() + question[1:].rstrip("?") + "?")
    return {"prompt": asked, "target": str(record.get("loc_ans") or "")}


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:" if question else ""


def counterfact(records: Sequence[tuple[Mapping[str, Any], str]]) -> list[tuple[dict[str, Any], str]]:
    """Return records of CounterFact in Uptake's own form, each with its place."""
    cut = [_Cut.of(record, where) for record, where in records]
    templates = _templates(cut)
    for one in cut:
        one.asked = _template_of(one.neighbour, templates)
    relations = _relations(cut)
    made_about: dict[str, list[_Cut]] = defaultdict(list)
    prompts = {one.prompt for one in cut}
    kin: dict[tuple[str, str], list[_Cut]] = defaultdict(list)
    for one in cut:
        made_about[one.subject].append(one)
        if one.asked:
            kin[one.asked, one.old].append(one)
    return [(_record(one, relations, kin, made_about, prompts), one.where) for one in cut]


@dataclass
class _Cut:
    """One record: its parts, and the templates of its prompt and of its neighbour's."""

    id: str
    prompt: str
    target: str
    subject: str
    old: str
    loose: str
    neighbour: str
    where: str
    asked: str = ""  # the template of the neighbour, "" where it is of none

    @classmethod
    def of(cls, record: Mapping[str, Any], where: str) -> "_Cut":
        def text(name: str) -> str:
            return str(record.get(name) or "").strip()

        return cls(
            id=f"counterfact/{record.get('case_id', where)}",
            prompt=text("prompt"),
            target=text("target_new"),
            subject=text("subject"),
            old=text("ground_truth"),
            loose=text("rephrase_prompt"),
            neighbour=text("locality_prompt"),
            where=where,
        )

    @property
    def template(self) -> str:
        """The prompt with a slot in the place of its subject."""
        return self.prompt.replace(self.subject, _SLOT, 1) if self.subject else self.prompt


def _templates(cut: Sequence[_Cut]) -> list[tuple[str, str]]:
    """Return the (beginning, end) of the templates of all prompts, the longest first."""
    counted = Counter(one.template for one in cut if _SLOT in one.template)
    return sorted(
        (
            (before, behind)
            for template, _ in counted.items()
            for before, _, behind in [template.partition(_SLOT)]
            if len(before) + len(behind) >= 4
        ),
        key=lambda ends: (-len(ends[0]) - len(ends[1]), ends),
    )


def _template_of(prompt: str, templates: Sequence[tuple[str, str]]) -> str:
    for before, behind in templates:
        room = len(prompt) - len(before) - len(behind)
        if room > 1 and prompt.startswith(before) and prompt.endswith(behind):
            return f"{before}{_SLOT}{behind}"
    return ""


def _relations(cut: Sequence[_Cut]) -> dict[str, list[str]]:
    """Return for each prompt's template those that ask the same in other words, the most often seen first."""
    beside: dict[str, Counter[str]] = defaultdict(Counter)
    for one in cut:
        if one.asked and one.asked != one.template:
            beside[one.template][one.asked] += 1
    return {
        template: [other for other, count in counted.most_common() if count >= _FEWEST]
        for template, counted in beside.items()
    }


def _record(
    one: _Cut,
    relations: Mapping[str, Sequence[str]],
    kin: Mapping[tuple[str, str], Sequence[_Cut]],
    about: Mapping[str, Sequence[_Cut]],
    prompts: set[str],
) -> dict[str, Any]:
    also = relations.get(one.asked, ())
    others = [other for other in relations.get(one.template, ()) if other in also]
    words = [each for each in dict.fromkeys([one.asked, *others]) if each and each != one.template]
    tight = [other.replace(_SLOT, one.subject, 1) for other in words[:2] if one.subject]
    # A neighbour that is itself an edit would have to change, and one that names the subject is none.
    own = [Probe(one.neighbour, one.old)] if one.neighbour else []
    hard = [
        Probe(other.neighbour, other.old) for other in kin.get((one.asked, one.old), ()) if other is not one
    ]
    neighbours = [
        probe
        for probe in dict.fromkeys([*own, *hard])
        if probe.prompt not in prompts and not says(probe.prompt, one.subject)
    ]
    follows = [] if _ONE_OF_MANY in one.template else list(about.get(one.target, ()))
    return {
        "id": one.id,
        "prompt": one.prompt,
        "target": one.target,
        "subject": one.subject,
        "old": one.old,
        "rephrases": [text for text in tight if not says(text, one.target)],
        "loose": [one.loose] if one.loose and not says(one.loose, one.target) else [],
        "neighbours": [{"prompt": probe.prompt, "target": probe.target} for probe in neighbours[: 1 + _HARD]],
        "ripples": [_two_hop(one, other) for other in follows[:1]],
        "relation": one.template,
    }


def _two_hop(one: _Cut, other: _Cut) -> dict[str, str]:
    """Ask about the new target without naming it; the answer hinges on the other record's fact as well."""
    asked = other.template.replace(_SLOT, "that answer", 1)
    prompt = f'The sentence "{one.prompt} ..." has one answer. {asked[0].upper()}{asked[1:]}'
    return {"prompt": prompt, "target": other.old, "hinges": other.prompt}


def by_subject(edits: Sequence[Edit], shares: Mapping[str, float]) -> dict[str, tuple[Edit, ...]]:
    """Return the edits in parts of about these shares, by name, so that no subject is in two of them.

    Where one has no subject its prompt decides. Neighbours that are prompts of an edit of another part stay.
    """
    total, found = sum(shares.values()), {name: list[Edit]() for name in shares}
    for edit in edits:
        at = stable_hash("split", (edit.subject or edit.prompt).casefold()) / (1 << 63) * total
        for name, share in shares.items():
            at -= share
            if at < 0:
                found[name].append(edit)
                break
        else:
            found[[*shares][-1]].append(edit)
    return {name: tuple(some) for name, some in found.items()}


def questions_elsewhere(edits: Iterable[Edit], most: int = 200) -> tuple[Document, ...]:
    """Return the neighbours of edits with their answers as texts: what is far from all of them, in zsRE."""
    probes = dict.fromkeys(probe for edit in edits for probe in edit.neighbours if probe.target)
    return tuple(
        Document(f"question/{number}", f"{probe.prompt}{probe.text}")
        for number, probe in enumerate([*probes][:most])
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
