"""The data set as a whole: archives in, JSON lines and a manifest out.

A package that cannot be had or used costs one line, and the rest goes on. Archives stay in a folder
beside the data, so a build that broke off fetches only what is not there yet.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fresh_text.archives import Sources, read_archive
from fresh_text.choose import File, choose, within
from fresh_text.definitions import definitions
from fresh_text.facts import Fact, facts, guarded
from fresh_text.index import Fetched
from fresh_text.packages import FRESH, OLDER, Older, Release
from fresh_text.records import (
    Package,
    Row,
    asked,
    document,
    edit,
    entry,
    fact_part,
    licences,
    part_of,
    passages,
    twin,
)
from fresh_text.twins import near_copies, nearest
from fresh_text.updates import updates
from uptake.errors import BadInput, UptakeError
from uptake.sealed import write_whole
from uptake.text import overlap
from uptake.text.files import Skipped
from uptake.text.overlap import Shingles

NEW_FROM = "2025-01-01"
MOST_BYTES = 600_000  # of text of one version of a package
LONGEST_OLDER = 1 << 20  # bytes of a file of an older package: some define all they have in one
PARTS = ("store", "valid", "test")
FACT_PARTS = ("train", "valid", "test")

Fetch = Callable[[Release], Fetched]
Say = Callable[[str], None]


@dataclass
class Made:
    """What a build has so far: files by name, what was left out of facts and updates, what is missing."""

    files: dict[str, list[Row]] = field(default_factory=dict)
    packages: list[Package] = field(default_factory=list)
    skipped: dict[str, Skipped] = field(default_factory=lambda: {"facts": Skipped(), "updates": Skipped()})
    missing: list[str] = field(default_factory=list)


def build(
    out: Path, fetch: Fetch, say: Say, fresh: Sequence[Release] = FRESH, older: Sequence[Older] = OLDER
) -> Row:
    """Make the data set in `out` and return its manifest; one that is there, whole and by this recipe stays.

    Raises BadInput where no package at all can be had, or `out` cannot be written.
    """
    key = _key(fresh, older)
    if (known := _whole(out, key)) is not None:
        return known
    made = Made()
    first = [package for release in fresh if (package := _taken(release, fetch, made, say, new=True))]
    pairs = [
        (before, after)
        for each in older
        if (before := _taken(each.before, fetch, made, say))
        and (after := _taken(each.after, fetch, made, say))
    ]
    if not first and not pairs:
        raise BadInput(f"no package of {len(fresh) + len(older)} can be had: {made.missing[0]}")
    split = _text(first, made)
    _older_text(pairs, made)
    _facts(first, pairs, split, made)
    _updates(pairs, made)
    made.packages = [*first, *(package for pair in pairs for package in pair)]
    return _written(out, key, made)


def _taken(release: Release, fetch: Fetch, made: Made, say: Say, new: bool = False) -> Package | None:
    """Return a package, or None where it cannot be had or used; then one line says why."""
    skipped = Skipped()
    try:
        fetched = fetch(release)
        first = fetched.first or release.first
        if new and first < NEW_FROM:
            raise BadInput(f"{release.package}: first uploaded {first}; the model may have read it")
        sources = read_archive(fetched.path, skipped)
        _same_licence(release, sources)
    except UptakeError as error:
        line = f"{release.name} is left out: {error}"
        made.missing.append(line)
        say(line)
        return None
    files = choose(sources.files, skipped, *(() if new else (LONGEST_OLDER,)))
    for place in (copies := near_copies([Shingles(file.text) for file in files])):
        skipped.add("near copy of another file", files[place].path)
    files = [file for place, file in enumerate(files) if place not in copies]
    text = within(files, MOST_BYTES, release.package, skipped)
    evidence = "upload times in the index" if fetched.first else "recorded with the pin"
    say(f"{release.name}: {len(text)} files, {sum(file.size for file in text):,} bytes")
    return Package(release, files, text, skipped, first, evidence)


def _same_licence(release: Release, sources: Sources) -> None:
    if sources.licence != release.licence:
        raise BadInput(
            f"the archive names the licence {sources.licence!r}, the recipe {release.licence}: compare them"
        )


def _text(packages: Sequence[Package], made: Made) -> dict[str, str]:
    """Split the text of fresh packages by file; return {document id: its part}."""
    every = [(package, file) for package in packages for file in package.text]
    copies = near_copies([Shingles(file.text) for _, file in every])
    rows: dict[str, list[Row]] = {part: [] for part in PARTS}
    shingles: dict[str, list[Shingles]] = {part: [] for part in PARTS}
    for place, (package, file) in enumerate(every):
        if place in copies:
            package.skipped.add("near copy of another package's file", file.path)
            package.text.remove(file)
            continue
        part = part_of(package.release.package, file)
        rows[part].append(document(package, file))
        shingles[part].append(Shingles(file.text))
    for part in ("valid", "test"):
        for row, near in zip(rows[part], nearest(shingles[part], shingles["store"]), strict=True):
            row |= twin(near, rows["store"])
    made.files |= {f"{part}.jsonl": rows[part] for part in PARTS}
    return {row["id"]: part for part in PARTS for row in rows[part]}


def _older_text(pairs: Sequence[tuple[Package, Package]], made: Made) -> None:
    before = [document(old, file) for old, _ in pairs for file in old.text]
    after = []
    for old, new in pairs:
        known = [Shingles(file.text) for file in old.files]
        found = nearest([Shingles(file.text) for file in new.text], known)
        for file, near in zip(new.text, found, strict=True):
            after.append(document(new, file) | {"in_before": round(near.containment, 3)})
    made.files |= {"before.jsonl": before, "after.jsonl": after}


def _facts(
    fresh: Sequence[Package], pairs: Sequence[tuple[Package, Package]], split: Mapping[str, str], made: Made
) -> None:
    skipped = made.skipped["facts"]
    found: list[Fact] = []
    for package in fresh:
        found += facts(package.release.package, package.keyed(package.text), skipped)
    for old, new in pairs:
        known = frozenset(each.name for file in old.files for each in _defined(file))
        found += facts(new.release.package, new.keyed(new.text), skipped, known)
    found = guarded(found, skipped)
    for part in FACT_PARTS:
        mine = [fact for fact in found if fact_part(fact) == part]
        folder = f"facts/{part}"
        made.files[f"{folder}/questions.jsonl"] = [row for fact in mine for row in asked(fact, split)[:1]]
        made.files[f"{folder}/rephrased.jsonl"] = [row for fact in mine for row in asked(fact, split)[1:]]
        made.files[f"{folder}/passages.jsonl"] = passages(mine)


def _defined(file: File) -> list[Any]:
    return definitions(file.text) if file.kind == "source" else []


def _updates(pairs: Sequence[tuple[Package, Package]], made: Made) -> None:
    found = [
        update
        for old, new in pairs
        for update in updates(
            new.release.package, old.keyed(old.files), new.keyed(new.files), made.skipped["updates"]
        )
    ]
    versions = {new.release.package: (old.release.version, new.release.version) for old, new in pairs}
    made.files["updates/edits.jsonl"] = [edit(update, *versions[update.package]) for update in found]
    made.files["updates/passages.jsonl"] = passages(found)


def _written(out: Path, key: str, made: Made) -> Row:
    for name, rows in made.files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(out / name, _lines(rows))
    write_whole(out / "licences.md", licences(made.packages).encode())
    manifest = {
        "key": key,
        "missing": made.missing,
        "files": {name: {**_sized(out / name), "records": len(rows)} for name, rows in made.files.items()},
        "packages": [entry(package) for package in made.packages],
        "twins": {part: _twins(made.files[f"{part}.jsonl"]) for part in ("valid", "test")},
        "facts": _counted(made),
        "updates": dict(sorted(Counter(row["kind"] for row in made.files["updates/edits.jsonl"]).items())),
        "left out": {what: dict(sorted(skipped.counts.items())) for what, skipped in made.skipped.items()},
    }
    write_whole(out / "manifest.json", json.dumps(manifest, indent=1).encode() + b"\n")
    return manifest


def _lines(rows: Iterable[Row]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode("utf8", "replace") + b"\n" for row in rows)


def _sized(path: Path) -> Row:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _twins(rows: Sequence[Row]) -> Row:
    return {"documents": len(rows), "with a near twin in the store": sum(bool(row["twin"]) for row in rows)}


def _counted(made: Made) -> Row:
    """Return for each kind how many facts each part has, and how many of all the guess gets right."""
    found: dict[str, Row] = {}
    for part in FACT_PARTS:
        for row in made.files[f"facts/{part}/questions.jsonl"]:
            counts = found.setdefault(row["kind"], {**dict.fromkeys(FACT_PARTS, 0), "guessed": 0})
            counts[part] += 1
            counts["guessed"] += row["guess"] in row["answers"]
    return dict(sorted(found.items()))


def _key(fresh: Sequence[Release], older: Sequence[Older]) -> str:
    """Return what names this recipe: its pins, and the source of all that decides what is written."""
    digest = hashlib.sha256(json.dumps([asdict(each) for each in (*fresh, *older)]).encode())
    for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(overlap.__file__)]:
        if path.name != "measures.py":  # it reads what is written
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _whole(out: Path, key: str) -> Row | None:
    """Return the manifest of a data set that lacks nothing and was made by this recipe, else None."""
    try:
        manifest: Row = json.loads((out / "manifest.json").read_bytes())
        if manifest["key"] != key or manifest["missing"]:
            return None
        entries = manifest["files"].items()
        whole = all(_sized(out / name)["sha256"] == entry["sha256"] for name, entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None
