"""A corpus replaced by a newer one, in place and under the same weights: do the answers follow?

The corpora are four packages' sources of early 2024 and of 2026 (docs/fresh.md); what changed between them is
asked after each. The table is like Atlas's: the corpus down, the version asked about across. With
`--definitions` a passage is a function or a class, and what changed is asked as the facts of
fresh_streams.py are, for the reader that has learnt their form; a question is searched by the names in it,
and how far the first passage is trusted is chosen on the changes that are not asked.
"""

import argparse
import re
import time
from collections.abc import Iterable, Iterator, Sequence
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
from retriever_asking import Answers
from retriever_figures import interval, marks
from retriever_mixtures import PRIORS, TOGETHER, prior_temperature
from retriever_worlds import World

import uptake
from uptake.adaptation.delta import fingerprint
from uptake.lm.loading import load
from uptake.retrievers.reader import Prompt, Said
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


def names_in(question: str) -> str:
    """Return the package and what stands between backticks: what a question on definitions is searched by."""
    package = re.search(r"package ([^,]+),", question)
    return " ".join([*(package.groups() if package else ()), *re.findall(r"`([^`]+)`", question)])


def is_about(edit: Edit, passage: Passage) -> bool:
    """Whether a passage is a definition of the name that is asked about, in that package."""
    name = edit.id.partition("#")[2].partition(":")[2].partition(":")[0]
    package = edit.id.partition("/")[0].rpartition("-")[0]
    where, _, rest = passage.document.partition("#")
    return rest.partition(":")[2] == name and where.partition("/")[0].rpartition("-")[0] == package


def found_for(
    store: Datastore, edits: Sequence[Edit], k: int, named: bool
) -> list[tuple[list[Passage], Any]]:
    """Return the best passages of each edit's question and their scores, [k]."""
    ranked = store.search([names_in(edit.prompt) if named else edit.prompt for edit in edits], k)
    return [(store.passages(one.ids.tolist()), torch.tensor(one.scores)) for one in ranked]


def temperature_of(store: Datastore, edits: Sequence[Edit], k: int) -> float:
    """Return the prior's temperature that suits edits which are not asked, by what is found for them."""
    scores, gold = [], []
    for edit, (passages, given) in zip(edits, found_for(store, edits, k, True), strict=True):
        right = [place for place, passage in enumerate(passages) if is_about(edit, passage)]
        if right and len(passages) == k:
            scores.append(given.numpy())
            gold.append(right[0])
    return prior_temperature(np.array(scores), gold, k) if gold else min(PRIORS)


def versions(given: argparse.Namespace) -> dict[str, Any]:
    """Ask what changed after the older corpus, then replace it and ask again; return the table."""
    begun = time.process_time()
    edits = list(read_edits([given.fresh / "updates" / "edits.jsonl"]))
    tokens = 24 if given.definitions else 12  # of an answer, at most
    if given.definitions:
        edits, chunking = as_questions(edits), Chunking(1_000_000)
        both = (list(of_definitions(given.fresh / "archives", later)) for later in (False, True))
    else:
        chunking = Chunking(1024)
        both = (list(uptake.read(given.fresh / f"{name}.jsonl")) for name in CORPORA)
    corpora = dict(zip(CORPORA, both, strict=True))
    edits, others = edits[: given.test], edits[given.test :]
    prompt = Prompt(template=given.template.replace("\\n", "\n")) if given.template else PROMPT
    lm = load(given.model, given.device, given.dtype)
    path = given.work / "versions.store"
    store = (
        Datastore.open(path)
        if path.exists()
        else Datastore.create(path, retriever="lexical", chunking=chunking)
    )
    groups = [edit.subject or edit.id for edit in edits]
    weights = lm.fingerprint
    found: dict[str, Any] = {"edits": len(edits), "model": weights, "corpora": {}}
    asked = {
        "new": [Question(e.id, e.prompt, (e.target,)) for e in edits],
        "old": [Question(e.id, e.prompt, (e.old,)) for e in edits],
    }
    world = World(store, [], [], [], asked["new"], prompt, replace(prompt, characters=1), tokens)
    answers = Answers(lm, world, given.work / "versions.answers")
    table = ReaderTable(lm, prompt, given.work / "versions.table")
    table.reader = answers.reader

    def marked(said: Sequence[Said]) -> dict[str, dict[str, np.ndarray]]:
        return {which: marks([one.text for one in said], some) for which, some in asked.items()}

    def told(some: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
        return {
            which: {key: interval(values, groups) for key, values in one.items()}
            for which, one in some.items()
        }

    nothing: list[list[Passage]] = [[] for _ in edits]
    found["no corpus"] = {
        "said": told(marked(answers.say(nothing, [torch.zeros(1)] * len(edits), "one", given.rows)))
    }
    likelier: dict[str, np.ndarray] = {}
    said: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    temperature: float | None = None
    for name, documents in corpora.items():
        store.remove([d.id for other, some in corpora.items() if other != name for d in some])
        store.add(documents)
        if given.definitions and temperature is None:  # by the older corpus: the newer one is not there yet
            temperature = temperature_of(store, others, given.read)
            found["prior_temperature"] = temperature
        ranked = found_for(store, edits, given.read, given.definitions)
        read = [passages for passages, _ in ranked]
        if not all(read):
            raise SystemExit(f"no passage found for {sum(not some for some in read)} edits after {name}")
        priors = [
            torch.zeros(len(some)) if temperature is None else scores.float() / temperature
            for some, scores in ranked
        ]
        # Questions on one document in a row, a few at a time: what was read of their passages is still there.
        order = sorted(range(len(edits)), key=lambda place: (read[place][0].document, place))
        for start in range(0, len(order), TOGETHER):
            places = order[start : start + TOGETHER]
            table.fill(
                [
                    Entry(edits[place].prompt, passage.text, answer)
                    for place in places
                    for passage in read[place]
                    for answer in (edits[place].target, edits[place].old)
                ],
                given.batch_tokens,
            )
            few, some_priors = [read[place] for place in places], [priors[place] for place in places]
            answers.say(few, some_priors, "sequence", given.rows, places)
            print(f"{name}: asked {start + len(places)} of {len(order)}", flush=True)

        def nats(answer: str, prompt: str, some: list[Passage], prior: torch.Tensor) -> float:
            tokens = torch.from_numpy(table.tokens(prompt, [p.text for p in some], answer))
            return -float((tokens.sum(1) + prior.double().log_softmax(0)).logsumexp(0))

        cost = {
            which: np.array(
                [
                    nats(q.answers[0], q.text, few, prior)
                    for q, few, prior in zip(some, read, priors, strict=True)
                ]
            )
            for which, some in asked.items()
        }
        likelier[name] = (cost["new"] < cost["old"]).astype(float)
        said[name] = marked(answers.say(read, priors, "sequence", given.rows))
        found["corpora"][name] = {
            "version": store.version,
            "passages": store.count,
            "new_likelier_than_old": interval(likelier[name], groups),
            "nats_of_new_less_old": interval(cost["new"] - cost["old"], groups),
            "said": told(said[name]),
            "passage_read_holds": {
                which: round(
                    float(
                        np.mean(
                            [
                                any(holds(p.text[: prompt.characters], q.answers) for p in some)
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
    found["said_after_less_before"] = told(
        {
            which: {key: values - said["before"][which][key] for key, values in some.items()}
            for which, some in said["after"].items()
        }
    )
    # Of the tensors as they are now: the model keeps what it was told of itself at first.
    found["weights_unchanged"] = fingerprint(lm.module) == weights
    found["cpu_seconds"] = round(time.process_time() - begun, 1)
    return found
