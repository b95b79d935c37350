"""Every kind of file that Uptake writes and reads back, made small, and the ways in which it is spoilt.

A case makes files in a folder and reads them as a user's program does. What is read from spoilt files must be
what was written, or be refused in one line.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gguf_files
import synthetic
import test_chunk_neighbours as neighbouring
import toys
from stubs import StubEncoder
from test_chunk_view import LENGTH, Counting, document
from test_token_view import StubKeyer
from test_train import EPISODES, LearnedMemory
from uptake import editing, report
from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.delta.gated import Gated, Near
from uptake.adaptation.tensors import read_tensors
from uptake.adaptation.token_weights import network as weighing
from uptake.codec import plain
from uptake.evaluation import edit_replies, rates
from uptake.evaluation.journal import Journal
from uptake.evaluation.protocol import Part
from uptake.evaluation.rates import ChosenRate, Tried
from uptake.evaluation.tune import Recipe
from uptake.gguf import dequantised
from uptake.kept import keep, read_kept
from uptake.lm import own_text
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.methods.camels import Camels
from uptake.methods.contract.learned import UNTRAINED
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.state import load_state, save_state
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.methods.retro import Retro
from uptake.report.scored import SCORED
from uptake.report.scored.rows import Scored
from uptake.retrievers import encoder_checkpoint, encoder_folder
from uptake.retrievers.query_encoder import QueryMap
from uptake.sealed import to_json
from uptake.store import Datastore
from uptake.store.cache import Stamps
from uptake.store.cluster import build
from uptake.store.views.chunk_neighbours import ChunkNeighbours, find_neighbours
from uptake.tasks.edit_asking import Reply
from uptake.tasks.edits import Edit
from uptake.text.types import Chunking

Files = Mapping[str, bytes]
QUERIES = ["amber birch cedar", "knoll larch"]
UNREAD = ("writer.lock", "latest_version_hint.json")  # nobody's answer depends on them


@dataclass(frozen=True)
class Case:
    """One kind of file. `alone`: a file is named by itself, so that another sound one is another choice."""

    make: Callable[[Path, int], object]  # (folder, seed)
    read: Callable[[Path], Any]
    alone: bool = False
    subset: bool = False  # what is damaged may be left out with a warning, and is done again
    anew: bool = False  # it is derived: what is damaged is made anew, and nothing refused
    share: int = 2  # of all mutations


def tensors(what: str, save: Callable[[LM, Path], object], load: Callable[[LM, Path], object]) -> Case:
    def read(folder: Path) -> object:
        load(toys.lm("gpt2"), folder / "file")
        about, named = read_tensors(folder / "file", what)
        return about, {name: tensor.tolist() for name, tensor in named.items()}

    return Case(lambda folder, seed: save(toys.lm("gpt2", seed=seed), folder / "file"), read, alone=True)


def save_a_state(lm: LM, path: Path) -> None:
    method = Finetune.example()
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of("a cat")], Context())
    save_state(state, path)


def save_a_delta(lm: LM, path: Path) -> None:
    low, inner = (LowRank(torch.ones(2, 1), torch.ones(1, 2)) for _ in range(2))
    Delta.of("base", {"w": low, "m": Gated(inner, Near(torch.ones(1, 2), 1.0), "w")}, "edit").save(path)


def save_a_network(lm: LM, path: Path) -> None:
    method = Retro(weights=UNTRAINED, chunk=4)
    method.save(method.fresh(lm), lm, path)


def save_a_weighing(lm: LM, path: Path) -> None:
    Camels().save(Camels().fresh(lm), lm, path)


def save_a_query_encoder(lm: LM, path: Path) -> None:
    (weight, *_) = lm.capable(Causal).module.parameters()
    QueryMap("an encoder", weight.detach().double().numpy()[:2, :2].astype(np.float32), "by hand").save(path)


def train_with_a_checkpoint(lm: LM, path: Path) -> object:
    from uptake.train import train

    return train(LearnedMemory(), lm, EPISODES, checkpoint=path)


def train_an_encoder(lm: LM, path: Path) -> object:
    """The state of an encoder's training: read if it is there, else made."""
    if path.exists():
        return encoder_checkpoint.read(path, "key")
    weight = next(lm.capable(Causal).module.parameters()).detach()[:2, :2]
    named = {"layer": weight}
    return encoder_checkpoint.write(
        path, "key", encoder_checkpoint.Progress(named, named, named, 3, [1.5], [], 0.5, [[0, 1], [2]])
    )


def make_encoder_about(folder: Path, seed: int) -> None:
    about = encoder_folder.About("the passages'", f"own {seed}", "by hand")
    (folder / encoder_folder.NAME).write_bytes(to_json(plain(about)))


def make_store(folder: Path, seed: int) -> None:
    store = Datastore.create(folder / "s", encoder=StubEncoder(), chunking=Chunking(64))
    store.add([document(str(number), 12, f"group {number}", seed) for number in range(5)])
    store.add([document(str(number), 12, "", seed) for number in range(5, 8)])
    store.remove(["1"])
    store.read_tokens(StubKeyer())
    store.read_chunks(Counting(), length=LENGTH)


def read_store(folder: Path) -> object:
    store = Datastore.open(folder / "s", encoder=StubEncoder())
    found = [(each.ids.tolist(), each.scores.tolist()) for each in store.search(QUERIES, 4)]
    source = store.source(QUERIES[0])
    tokens = source.tokens(StubKeyer().fingerprint).search(np.zeros((1, 8), np.float16), 5)
    chunks = source.chunks(Counting().fingerprint).search(QUERIES, 3)
    rows = store.passages(sorted(store._table.ids.tolist()))
    vectors = store.vectors([row.id for row in rows])
    return found, tokens.places.tolist(), tokens.distances.tolist(), chunks.tolist(), rows, vectors.tolist()


def make_lists(folder: Path, seed: int) -> None:
    """The indexes that are derived and kept in the private cache, and what it says was checked."""
    os.environ["UPTAKE_CACHE"] = str(folder)
    store = Datastore.create(
        folder / "s", retriever="dense", encoder=StubEncoder(), chunking=Chunking(64), index="ivf"
    )
    store.add([document(str(number), 20, "", seed) for number in range(8)])
    store.read_tokens(StubKeyer())
    read_lists(folder)
    shutil.move(folder / "s", folder.with_name(f"{folder.name}.store"))


def read_lists(folder: Path) -> object:
    os.environ["UPTAKE_CACHE"] = str(folder)  # the test puts it back
    home = folder.with_name(f"{folder.name}.store")
    store = Datastore.open(home if home.exists() else folder / "s", encoder=StubEncoder())
    found = [(each.ids.tolist(), each.scores.tolist()) for each in store.search(QUERIES, 4)]
    tokens = store.source(QUERIES[0]).tokens(StubKeyer().fingerprint)
    near = tokens.search(np.zeros((1, 8), np.float16), 5)
    return found, near.places.tolist(), near.distances.tolist()


def make_neighbours(folder: Path, seed: int) -> None:
    store = Datastore.create(folder.with_name("n.store"), retriever="lexical", chunking=Chunking(64))
    store.add([document(str(number), 20, "", seed) for number in range(3)])
    store.read_chunks(Counting(), length=LENGTH)
    corpus = neighbouring.corpus([document(str(number), 20, "", seed) for number in range(3)])
    find_neighbours(folder, corpus, neighbouring.chunks_for(store), 2)
    (folder.with_name(f"{folder.name}.fingerprint")).write_text(
        neighbouring.chunks_for(store)(document("0")).fingerprint
    )
    shutil.rmtree(folder.with_name("n.store"))


def read_neighbours(folder: Path) -> object:
    found = ChunkNeighbours.read(folder, folder.with_name(f"{folder.name}.fingerprint").read_text())
    return {key: ids.tolist() for key, ids in found.rows.items()}


def make_recipe(folder: Path, seed: int) -> None:
    Recipe("ttt-nn", 5 + seed, ("clip=0.5",), {"gain": 0.1 + seed, "seed": seed}).write(folder / "file")


def make_report(folder: Path, seed: int) -> None:
    report.summary.write_json(synthetic.results(ks=(5,), documents=2, seed=seed), folder / "file")


def read_report(folder: Path) -> object:
    return repr(report.summary.read_json(folder / "file", SCORED))


def make_journal(folder: Path, seed: int) -> None:
    journal = Journal(folder / "j", f"key {seed}", {"seed": str(seed)})
    journal.start(SCORED)
    for place in range(4):
        row = Scored("w", 1, f"q{place}", f"d{seed}", 2, 1.5 + place + seed, 2.0)
        saved = ""
        if place == 3:
            lm = toys.lm("gpt2", seed=seed)
            method = Finetune.example()
            (state,) = method.adapt([method.init(lm)], lm, [Evidence.of("a cat")], Context())
            saved = journal.states.save(state, place, 1)
        journal.keep(Part((place,), {place: [row]}, done=1, finished=place != 3, saved=saved))


def read_journal(folder: Path) -> object:
    kept = Journal(folder / "j", "key 0", {"seed": "0"}).start(SCORED)
    return {place: repr(unit) for place, unit in kept.units.items()}


def make_note(folder: Path, seed: int) -> None:
    store = Datastore.create(folder / "s", retriever="lexical", chunking=Chunking(64))
    passages = list(Chunking(64).passages(document("a", 20, "", seed)))
    (folder / "s" / build.BUILDING).mkdir()
    block = build.Block(build.Group(0, ()), 0, 1, np.array([passage.id for passage in passages]))
    note = build._Note.of(folder / "s", store._table.draft(passages, None))
    build.write_json(folder / "s" / build.BUILDING / block.note, plain(note))
    np.save(folder.with_name(f"{folder.name}.ids.npy"), block.ids)


def read_note(folder: Path) -> object:
    ids = np.load(folder.with_name(f"{folder.name}.ids.npy"))
    block = build.Block(build.Group(0, ()), 0, 1, ids)
    note = build._noted(folder / "s", block, set())
    return {} if note is None else {"note": repr(note)}


def make_stamps(folder: Path, seed: int) -> None:
    large = folder.with_name(f"{folder.name}.large")
    large.write_bytes(bytes([seed]) * (1 << 20))
    long_ago = large.stat().st_mtime - 10
    os.utime(large, (long_ago, long_ago))
    with _checked(folder) as stamps:
        stamps._fresh[str(large)] = f"made up {seed}"


def read_stamps(folder: Path) -> object:
    asked: list[bool] = []
    with _checked(folder) as stamps:
        stamps.holds(folder.with_name(f"{folder.name}.large"), "expected", lambda: not asked.append(True))
    return asked  # what was kept never answers for a file that it does not know in just this state


def _checked(folder: Path) -> Stamps:
    stamps = Stamps(folder)
    stamps._path = folder / "checked.json"
    folder.chmod(0o700)
    return stamps


def make_rate(folder: Path, seed: int) -> None:
    keep(folder, f"rate {seed}", plain(ChosenRate(0.1 + seed, 0.2, 8, 5, 1.0, (Tried(0.1, 0.2, 8),))))


def read_rate(folder: Path) -> object:
    found = rates._read(folder, "rate 0")
    return {} if found is None else {"rate": found}


def make_gguf(folder: Path, seed: int) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    module = gguf_files.module(tokens=512, seed=seed, **sizes)
    gguf_files.write(folder.with_name(f"{folder.name}.gguf"), module, gguf_files.tokenizer())
    read_gguf(folder)


def read_gguf(folder: Path) -> object:
    os.environ["UPTAKE_CACHE"] = str(folder)  # the test puts it back
    with dequantised(str(folder.with_name(f"{folder.name}.gguf"))) as found:
        return {path.name: path.read_bytes() for path in found.folder.iterdir()}


def make_replies(folder: Path, seed: int) -> None:
    replies = Reply(f"answer {seed}", True), Reply("none", False, nats=0.5)
    keep(folder, f"replies {seed}", plain(edit_replies._Kept(replies)))


def read_replies(folder: Path) -> object:
    found = edit_replies._replies(read_kept(folder, "replies 0"))
    return {"replies": found} if found else {}


def make_own_text(folder: Path, seed: int) -> None:
    keep(folder, f"text {seed}", {"batches": [[[0, 1, 2], [0, 3, seed % 9]], [[0, 4]]]})


def read_own_text(folder: Path) -> object:
    found = own_text._batches(read_kept(folder, "text 0"), 9)
    return {"own text": [batch.tolist() for batch in found]} if found else {}


def make_edits(folder: Path, seed: int) -> None:
    edits = (Edit("one", "The sea is", f"wide {seed}"), Edit("two", "The sky is", "blue"))
    kept = editing._Kept("finetune", (), seed, "base", edits)
    (folder / editing.EDITS).write_bytes(to_json(plain(kept)))


CASES = {
    "store": Case(make_store, read_store, share=12),
    "cache": Case(make_lists, read_lists, anew=True, share=4),
    "stamps": Case(make_stamps, read_stamps, anew=True),
    "neighbours": Case(make_neighbours, read_neighbours, share=4),
    "note": Case(make_note, read_note, subset=True, anew=True),
    "journal": Case(make_journal, read_journal, subset=True, anew=True, share=4),
    "state": tensors("state", save_a_state, lambda lm, path: load_state(WeightState, path, lm)),
    "delta": tensors("delta", save_a_delta, lambda lm, path: Delta.load(path, "base")),
    "network": tensors("network", save_a_network, lambda lm, path: Retro(chunk=4).load(path, lm)),
    "weighing": tensors("network", save_a_weighing, lambda lm, path: weighing.from_file(path)),
    "query encoder": tensors("query-encoder", save_a_query_encoder, lambda lm, path: QueryMap.load(path)),
    "encoder's training": tensors("encoder-training", train_an_encoder, train_an_encoder),
    "encoder's description": Case(make_encoder_about, encoder_folder.read_about, alone=True),
    "checkpoint": tensors("training", train_with_a_checkpoint, train_with_a_checkpoint),
    "rate": Case(make_rate, read_rate, subset=True, anew=True),
    "replies": Case(make_replies, read_replies, subset=True, anew=True),
    "own-text": Case(make_own_text, read_own_text, subset=True, anew=True),
    "edits": Case(make_edits, editing._read, alone=True),
    "gguf": Case(make_gguf, read_gguf, anew=True, share=1),
    "recipe": Case(make_recipe, lambda folder: Recipe.read(folder / "file"), alone=True),
    "report": Case(make_report, read_report, alone=True),
}


def contents(folder: Path) -> dict[str, bytes]:
    """Return name -> bytes of each file below a folder that somebody reads."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    read = (path for path in files if path.name not in UNREAD and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in read}


def spoilt(
    good: Files, other: Files, alone: bool, random: np.random.Generator
) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Yield without end what to change: in words, and name -> the bytes to be there, None for no file."""
    names = list(good)
    ways = ["flip"] * 4 + ["cut", "cut", "leave out", "repeat", "delete", "empty", "add", "swap", "swap"]
    while True:
        name, way = str(random.choice(names)), str(random.choice(ways))
        raw = good[name]
        first, last = sorted(random.integers(0, len(raw) + 1, 2).tolist())
        changed: dict[str, bytes | None] = {}
        if way == "flip" and raw:
            at = int(random.integers(len(raw)))
            changed = {name: raw[:at] + bytes([raw[at] ^ 1 << int(random.integers(8))]) + raw[at + 1 :]}
        elif way == "cut":
            changed = {name: raw[:first]}
        elif way == "leave out":
            changed = {name: raw[:first] + raw[last:]}
        elif way == "repeat":
            changed = {name: raw[:last] + raw[first:]}
        elif way in ("delete", "empty"):
            changed = {name: None if way == "delete" else b""}
        elif way == "add":
            changed = {name: raw + random.bytes(int(random.integers(1, 64)))}
        elif way == "swap" and not alone:
            with_, from_ = str(random.choice(names)), str(random.choice(list(other)))
            changed = {name: good[with_], with_: raw} if random.integers(2) else {name: other[from_]}
        if any(good.get(each) != content for each, content in changed.items()):
            yield f"{way} {name}", changed


def write(folder: Path, changed: Mapping[str, bytes | None]) -> None:
    """Let a folder hold these files as well, and lack those that are None."""
    for name, content in changed.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content)
