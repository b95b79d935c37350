"""A corpus replaced by a newer one, in place and under the same weights: do the answers follow?

The corpora are four packages' sources of early 2024 and of 2026 (docs/fresh.md); what changed between them is
asked after each. The table is like Atlas's: the corpus down, the version asked about across. With
`--definitions` a passage is a function or a class, and what changed is asked as the facts of
fresh_streams.py are, for the reader that has learnt their form.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fresh_text.archives import read_archive
from fresh_text.build import LONGEST_OLDER
from fresh_text.choose import choose
from fresh_text.definitions import definitions
from fresh_text.packages import OLDER
from fresh_text.wording import QUESTIONS
from retriever_figures import interval, marks

import uptake
from uptake.lm.loading import load
from uptake.retrievers.reader import Prompt
from uptake.retrievers.table import Entry, ReaderTable
from uptake.store import Datastore
from uptake.tasks.answers import exact, holds
from uptake.tasks.edit_files import read_edits
from uptake.tasks.edits import Edit
from uptake.tasks.questions import Question
from uptake.text.files import Skipped
from uptake.text.types import Chunking, Document, Passage, stable_hash

CORPORA = ("before", "after")
PROMPT = Prompt(template="{passage}\n\n{question}", characters=1600)


def of_definitions(archives: Path, later: bool) -> Iterator[Document]:
    """Yield the definitions in a version of all four packages, each behind a line of where it stands.

    Of the packages whole: before.jsonl and after.jsonl hold a part of their files, in which most of what the
    edits are about is not.
    """
    for older in OLDER:
        release = older.after if later else older.before
        sources = read_archive(archives / f"{release.name}.tar.gz")
        for file in choose(sources.files, Skipped(), LONGEST_OLDER):
            where = f"{release.name}/{file.path}"
            for each in definitions(file.text) if file.kind == "source" else ():
                text = f"# {release.package}, {file.path}: {each.name}\n{each.source}"
                yield Document(f"{where}#{each.line}:{each.name}", text, group=where)


def as_questions(edits: Iterable[Edit]) -> list[Edit]:
    """Return the edits of kinds that facts are asked about, in those questions' words, in a hash's order.

    Left out is what differs in capitals or signs alone: its two answers are one to whoever marks them.
    """
    found = []
    for edit in edits:
        name, _, rest = edit.id.partition("#")[2].partition(":")[2].partition(":")
        kind, _, detail = rest.partition(":")
        if kind in QUESTIONS and kind != "renamed" and not exact(edit.target, (edit.old,)):
            package = edit.id.partition("/")[0].rpartition("-")[0]
            asked = QUESTIONS[kind][0].format(package=package, name=name, detail=detail)
            found.append(replace(edit, prompt=asked))
    return sorted(found, key=lambda edit: stable_hash("asked", edit.id))


def versions(given: argparse.Namespace) -> dict[str, Any]:
    """Ask what changed after the older corpus, then replace it and ask again; return the table."""
    edits = list(read_edits([given.fresh / "updates" / "edits.jsonl"]))
    tokens = 24 if given.definitions else 12  # of an answer, at most
    if given.definitions:
        edits, chunking = as_questions(edits), Chunking(1_000_000)
        both = (list(of_definitions(given.fresh / "archives", later)) for later in (False, True))
    else:
        chunking = Chunking(1024)
        both = (list(uptake.read(given.fresh / f"{name}.jsonl")) for name in CORPORA)
    corpora = dict(zip(CORPORA, both, strict=True))
    edits = edits[: given.test]
    prompt = Prompt(template=given.template.replace("\\n", "\n")) if given.template else PROMPT
    lm = load(given.model, given.device, given.dtype)
    path = given.work / "versions.store"
    store = (
        Datastore.open(path)
        if path.exists()
        else Datastore.create(path, retriever="lexical", chunking=chunking)
    )
    table = ReaderTable(lm, prompt, given.work / "versions.table")
    groups = [edit.subject or edit.id for edit in edits]
    weights = lm.fingerprint
    found: dict[str, Any] = {"edits": len(edits), "model": weights, "corpora": {}}
    likelier: dict[str, np.ndarray] = {}
    marked: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name, documents in corpora.items():
        others = [d.id for other, some in corpora.items() if other != name for d in some]
        store.remove(others)
        store.add(documents)
        ids = [one.ids.tolist() for one in store.search([edit.prompt for edit in edits], given.read)]
        read: list[list[Passage]] = [store.passages(some) for some in ids]
        if not all(read):
            raise SystemExit(f"no passage found for {sum(not some for some in read)} edits after {name}")
        priors = [torch.zeros(len(some)) for some in read]
        table.fill(
            [
                Entry(edit.prompt, passage.text, answer)
                for edit, some in zip(edits, read, strict=True)
                for passage in some
                for answer in (edit.target, edit.old)
            ],
            given.batch_tokens,
        )

        def nats(answer: str, prompt: str, some: list[Passage]) -> float:
            tokens = torch.from_numpy(table.tokens(prompt, [p.text for p in some], answer))
            return -float((tokens.sum(1) - np.log(len(some))).logsumexp(0))

        new = np.array([nats(e.target, e.prompt, s) for e, s in zip(edits, read, strict=True)])
        old = np.array([nats(e.old, e.prompt, s) for e, s in zip(edits, read, strict=True)])
        passages = [[p.text for p in some] for some in read]
        said = table.reader.say([e.prompt for e in edits], passages, priors, "sequence", tokens, given.rows)
        texts = [one.text for one in said]
        likelier[name] = (new < old).astype(float)
        asked = {
            "new": [Question(e.id, e.prompt, (e.target,)) for e in edits],
            "old": [Question(e.id, e.prompt, (e.old,)) for e in edits],
        }
        marked[name] = {which: marks(texts, some) for which, some in asked.items()}
        found["corpora"][name] = {
            "version": store.version,
            "passages": store.count,
            "new_likelier_than_old": interval(likelier[name], groups),
            "nats_of_new_less_old": interval(new - old, groups),
            "said": {
                which: {key: interval(values, groups) for key, values in some.items()}
                for which, some in marked[name].items()
            },
            "passage_read_holds": {
                which: round(
                    float(
                        np.mean(
                            [
                                any(holds(p.text, q.answers) for p in some)
                                for q, some in zip(asked[which], read, strict=True)
                            ]
                        )
                    ),
                    4,
                )
                for which in asked
            },
        }
        print(name, found["corpora"][name], flush=True)
    found["followed"] = interval(likelier["after"] - likelier["before"], groups)
    found["said_after_less_before"] = {
        which: {key: interval(values - marked["before"][which][key], groups) for key, values in some.items()}
        for which, some in marked["after"].items()
    }
    found["weights_unchanged"] = lm.fingerprint == weights
    return found
