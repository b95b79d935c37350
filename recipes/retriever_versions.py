"""A corpus replaced by a newer one, in place and under the same weights: do the answers follow?

The corpora are four packages' sources of early 2024 and of 2026 (docs/fresh.md); what changed between them is
asked after each. The table is like Atlas's: the corpus down, the version asked about across.
"""

import argparse
from typing import Any

import numpy as np
import torch
from retriever_figures import interval, marks

import uptake
from uptake.lm.loading import load
from uptake.retrievers.reader import Prompt
from uptake.retrievers.table import Entry, ReaderTable
from uptake.store import Datastore
from uptake.tasks.answers import holds
from uptake.tasks.edit_files import read_edits
from uptake.tasks.questions import Question
from uptake.text.types import Chunking, Passage

READ = 5
PROMPT = Prompt(template="{passage}\n\n{question}", characters=1600)


def versions(given: argparse.Namespace) -> dict[str, Any]:
    """Ask what changed after the older corpus, then replace it and ask again; return the table."""
    edits = list(read_edits([given.fresh / "updates" / "edits.jsonl"]))[: given.test]
    lm = load(given.model, given.device, given.dtype)
    path = given.work / "versions.store"
    store = (
        Datastore.open(path)
        if path.exists()
        else Datastore.create(path, retriever="lexical", chunking=Chunking(1024))
    )
    table = ReaderTable(lm, PROMPT, given.work / "versions.table")
    corpora = {name: list(uptake.read(given.fresh / f"{name}.jsonl")) for name in ("before", "after")}
    groups = [edit.subject or edit.id for edit in edits]
    weights = lm.fingerprint
    found: dict[str, Any] = {"edits": len(edits), "model": weights, "corpora": {}}
    likelier: dict[str, np.ndarray] = {}
    for name, documents in corpora.items():
        others = [d.id for other, some in corpora.items() if other != name for d in some]
        store.remove(others)
        store.add(documents)
        ids = [one.ids.tolist() for one in store.search([edit.prompt for edit in edits], READ)]
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
        said = table.reader.say([e.prompt for e in edits], passages, priors, "sequence", 12, given.rows)
        texts = [one.text for one in said]
        likelier[name] = (new < old).astype(float)
        asked = {
            "new": [Question(e.id, e.prompt, (e.target,)) for e in edits],
            "old": [Question(e.id, e.prompt, (e.old,)) for e in edits],
        }
        found["corpora"][name] = {
            "version": store.version,
            "passages": store.count,
            "new_likelier_than_old": interval(likelier[name], groups),
            "nats_of_new_less_old": interval(new - old, groups),
            "said": {
                which: {key: interval(values, groups) for key, values in marks(texts, some).items()}
                for which, some in asked.items()
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
    found["weights_unchanged"] = lm.fingerprint == weights
    return found
