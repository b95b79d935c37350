"""The records of the data set: documents, questions on facts, edits, and a package's part of the manifest."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fresh_text.choose import File
from fresh_text.facts import Fact
from fresh_text.packages import Release
from fresh_text.twins import Nearest
from fresh_text.updates import Update
from fresh_text.wording import questions
from uptake.text.files import Skipped
from uptake.text.types import stable_hash

TESTED = 2_000  # bytes that a document of the test or validation part has at least

Row = dict[str, Any]


@dataclass
class Package:
    """One version of a package as it was read: all files of use, and those of the set."""

    release: Release
    files: list[File]
    text: list[File]
    skipped: Skipped
    first: str
    evidence: str

    def id(self, file: File) -> str:
        """The document's id."""
        return f"{self.release.name}/{file.path}"

    def keyed(self, files: Iterable[File]) -> list[tuple[str, File]]:
        """Return files with their documents' ids."""
        return [(self.id(file), file) for file in files]


def part_of(package: str, file: File) -> str:
    """Return the part a file belongs to: by a hash of its package and path, whatever else there is."""
    drawn = stable_hash("part", package, file.path) % 100
    if file.size < TESTED or drawn >= 22:
        return "store"
    return "test" if drawn < 15 else "valid"


def document(package: Package, file: File) -> Row:
    release = package.release
    return {
        "id": package.id(file),
        "text": file.text,
        "group": f"{release.package}/{file.path}",
        "package": release.package,
        "version": release.version,
        "licence": release.licence,
        "kind": file.kind,
    }


def twin(near: Nearest, store: Sequence[Row]) -> Row:
    shares = {"twin_containment": round(near.containment, 3), "twin_jaccard": round(near.jaccard, 3)}
    return {"twin": store[near.place]["id"] if near.twin else "", **shares}


def fact_part(fact: Fact) -> str:
    """Return the part a fact belongs to: files are not shared between parts."""
    drawn = stable_hash("facts", fact.file.partition("/")[2]) % 100
    return "test" if drawn < 30 else "valid" if drawn < 40 else "train"


def asked(fact: Fact, split: Mapping[str, str]) -> list[Row]:
    """Return a fact's question in every phrasing, in the form of `uptake.tasks.questions`."""
    said = [fact.answer]
    if fact.kind in ("raises", "base") and "." in fact.answer:
        said.append(fact.answer.rpartition(".")[2])
    return [
        {
            "id": f"{fact.id}?{number}",
            "question": asked,
            "answers": said,
            "document": fact.document,
            "fact": fact.id,
            "phrasing": number,
            "kind": fact.kind,
            "package": fact.package,
            "file": fact.file,
            "part": split.get(fact.file, "after"),
            "guess": fact.guess,
        }
        for number, asked in enumerate(
            questions(fact.kind, package=fact.package, name=fact.name, detail=fact.detail)
        )
    ]


def passages(found: Sequence[Fact | Update]) -> list[Row]:
    """Return what facts rest on as documents, each once; those of one file are one group."""
    rows = {
        each.document: {
            "id": each.document,
            "text": each.passage,
            "group": each.file,
            "package": each.package,
        }
        for each in found
    }
    return list(rows.values())


def edit(update: Update, before: str, after: str) -> Row:
    prompt, *rephrases = update.statements
    return {
        "id": update.id,
        "prompt": prompt,
        "target": update.new,
        "subject": update.name,
        "rephrases": rephrases,
        "neighbours": [{"prompt": said, "target": end} for said, end in update.neighbours],
        "old": update.old,
        "kind": update.kind,
        "document": update.document,
        "package": update.package,
        "before": before,
        "after": after,
    }


def entry(package: Package) -> Row:
    return {
        **asdict(package.release),
        "first": package.first,
        "evidence": package.evidence,
        "files": len(package.text),
        "bytes": sum(file.size for file in package.text),
        "kinds": dict(sorted(Counter(file.kind for file in package.text).items())),
        "left out": dict(sorted(package.skipped.counts.items())),
    }


def licences(packages: Sequence[Package]) -> str:
    """Return the table of what the data set is made of and under which licence."""
    lines = [
        "| package | version | licence | uploaded | first upload of the package | evidence |",
        "|---|---|---|---|---|---|",
    ]
    for package in packages:
        release = package.release
        cells = (
            release.package,
            release.version,
            release.licence,
            release.uploaded,
            package.first,
            package.evidence,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(["# Licences of the text", "", *lines, ""])
