"""A store under hours of load: one process writes, four search and one retrieves as an evaluation does.

The writer adds, replaces and removes documents, purges after every eighth change, and notes in a file which
documents each version holds. Everybody else opens the newest version, asks, and compares each answer
with what that version must hold: dense searches with all scores computed by NumPy in float64, searches
for a word that one document has, texts byte for byte, and no passage of the evaluated document. A version
that lies between two notes, half way through a change, must hold what both hold and nothing that
neither does. An error counts as one unless it says that the version was purged, and a purge has
begun since the version was opened or at most ten seconds before. Each process
notes its own memory and its open files in a file, and keeps none of these notes. With --pause everybody
rests so many seconds after each change and each opening, on a machine that others use as well. The last line
says what is wrong; nothing is the aim.

    OMP_NUM_THREADS=1 python bench/soak.py --minutes 10 --pause 3 --out bench/soak.json
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from stubs import StubEncoder
from uptake.errors import BadInput, UptakeError
from uptake.store.datastore import Datastore
from uptake.store.passages.source import QueryText
from uptake.text.types import Chunking, Document, Passage

READERS, K = 4, 5
CHUNKING = Chunking(128)
HELD = 200  # documents, about
STEP = 20  # documents of one change
KEPT = 64  # notes that a reader remembers
PART = 10  # minutes whose median memory is told
PURGE = 8  # changes from one purge to the next
ENCODER = StubEncoder()

Held = dict[int, int]  # document number -> the generation of its text


def name(number: int) -> str:
    return f"document {number}"


def mark(number: int) -> str:
    return f"mark{number}kram"


@lru_cache(maxsize=600)
def passages(number: int, generation: int) -> tuple[Passage, ...]:
    """Return the passages of a document in some generation; every one has the document's own word."""
    random = np.random.default_rng([number, generation])
    lines = [
        " ".join([mark(number), *(f"word{word}" for word in random.integers(0, 300, 12))]) for _ in range(3)
    ]
    return tuple(CHUNKING.passages(Document(name(number), "\n\n".join(lines))))


def document(number: int, generation: int) -> Document:
    return Document(name(number), "".join(passage.text for passage in passages(number, generation)))


@lru_cache(maxsize=600)
def vectors(number: int, generation: int) -> Any:
    return ENCODER.embed([passage.text for passage in passages(number, generation)]).astype(np.float64)


def every(held: Held) -> dict[int, Passage]:
    return {passage.id: passage for pair in held.items() for passage in passages(*pair)}


class Notes:
    """What the writer has said: which documents each version holds, and when a purge began."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self.held: dict[int, Held] = {}
        self.purges: list[float] = []
        self.order: list[int] = []

    def say(self, **what: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def update(self) -> None:
        with self._path.open() as file:
            file.seek(self._read)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):
                    break
                self._read += len(line)
                said = json.loads(line)
                if "purge" in said:
                    self.purges.append(said["purge"])
                else:
                    self.held[said["version"]] = {int(key): value for key, value in said["held"].items()}
                    self.order.append(said["version"])
                    while len(self.order) > KEPT:
                        del self.held[self.order.pop(0)]

    def around(self, version: int) -> tuple[Held, Held]:
        """Return what is held before and after; the same twice where the version is noted itself."""
        while True:
            self.update()
            if version in self.held:
                return self.held[version], self.held[version]
            later = [each for each in self.order if each > version]
            earlier = [each for each in self.order if each < version]
            if later and earlier:
                return self.held[max(earlier)], self.held[min(later)]
            time.sleep(0.02)


class Process:
    """What one process has counted and measured; `wrong` are its findings."""

    def __init__(self, folder: Path, role: str, number: int, pause: float = 0.0) -> None:
        self.pause = pause
        self.store, self.notes = folder / "store", Notes(folder / "notes")
        self._out = folder / f"{role}-{number}.json"
        self._samples = folder / f"{role}-{number}.jsonl"
        self.told: dict[str, Any] = {"role": role, "counts": {}, "wrong": []}
        self.random = np.random.default_rng([number, ord(role[0])])
        self._begun = time.monotonic()
        self._sampled = -np.inf

    def count(self, what: str) -> None:
        self.told["counts"][what] = self.told["counts"].get(what, 0) + 1

    def check(self, right: bool, what: str) -> None:
        self.count("checks")
        if not right and len(self.told["wrong"]) < 20:
            self.told["wrong"].append(what)

    def sample(self, **more: float) -> None:
        """Note memory and open files, at most once a second, and write everything down."""
        now = time.monotonic() - self._begun
        if not more and now - self._sampled < 1:
            return
        self._sampled = now
        gc.collect()
        lines = Path("/proc/self/status").read_text().splitlines()
        own = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
        files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        with self._samples.open("a") as file:  # kept in memory they would grow as what is measured may not
            file.write(json.dumps({"seconds": now, "own_mib": own, "files": files, **more}) + "\n")
        self._out.write_text(json.dumps(self.told))


def write(process: Process, until: float) -> None:
    """Change the store until the time is over; every change keeps about as many documents."""
    held: Held = dict.fromkeys(range(HELD), 0)
    store = Datastore.create(process.store, encoder=ENCODER, chunking=CHUNKING, threads=1)
    process.notes.say(version=store.version, held={})
    store.add([document(*pair) for pair in held.items()])
    process.notes.say(version=store.version, held=held)
    change, newest = 0, HELD
    while time.time() < until:
        change += 1
        chosen = process.random.permutation(sorted(held))[:STEP].tolist()
        if change % 2:
            fresh = dict.fromkeys(chosen[: STEP // 2], change)  # replaced
            fresh |= dict.fromkeys(range(newest, newest + STEP // 2), change)
            newest += STEP // 2
            store.add([document(*pair) for pair in fresh.items()])
            held |= fresh
            process.count("adds")
        else:
            gone = chosen[: STEP // 2]
            purge = change % PURGE == 0
            if purge:
                process.notes.say(purge=time.time())
            store.remove([name(number) for number in gone], purge=purge)
            for number in gone:
                del held[number]
            process.count("purges" if purge else "removals")
        process.notes.say(version=store.version, held=held)
        if change % PURGE == 0:
            used = [file.stat().st_size for file in process.store.rglob("*") if file.is_file()]
            process.sample(bytes=sum(used), on_disk=len(used), documents=len(held))
        time.sleep(process.pause)
    process.check(store.verify() == [], "the store does not verify at the end")
    process.check(set(store._table.ids.tolist()) == set(every(held)), "the store does not hold what it must")
    process.sample(documents=len(held))


def searching(process: Process, store: Datastore, before: Held, after: Held) -> None:
    """Ask once by vectors and once by a word, and compare."""
    may, must = every(before) | every(after), every(before).keys() & every(after).keys()
    here = set(store._table.ids.tolist())
    process.check(must <= here <= may.keys(), f"version {store.version}: holds other passages than it must")
    number = int(process.random.choice(sorted(before)))
    query = passages(number, before[number])[0].text
    pairs = {*before.items(), *after.items()}
    rows = {p.id: row for pair in pairs for p, row in zip(passages(*pair), vectors(*pair), strict=True)}
    asked = ENCODER.embed([query])[0].astype(np.float64)
    scores = {key: float(rows[key] @ asked) for key in here & rows.keys()}
    (found,) = store.searched("dense").search([query], K)
    best = sorted(scores.values(), reverse=True)[:K]
    own = [scores.get(key, np.nan) for key in found.ids.tolist()]
    process.check(np.allclose(own, best, atol=1e-5), f"version {store.version}: not the nearest")
    process.check(np.allclose(found.scores, best, atol=1e-5), f"version {store.version}: wrong scores")
    texts = [passage.text for passage in store.passages(found.ids.tolist())]
    process.check(
        texts == [may[key].text for key in found.ids.tolist()], f"version {store.version}: other texts"
    )
    (found,) = store.searched("lexical").search([mark(number)], 50)
    mine = {p.id for held in (before, after) if number in held for p in passages(number, held[number])}
    process.check(
        set(found.ids.tolist()) == mine & here, f"version {store.version}: words find other passages"
    )


def evaluating(process: Process, store: Datastore, before: Held, after: Held) -> None:
    """Retrieve for documents of the store as an evaluation does; none of their own passages may come."""
    may = every(before) | every(after)
    numbers = process.random.permutation(sorted(before))[:4].tolist()
    queries = [
        QueryText(document(n, before[n]).text[:80], name(n), whole_text=document(n, before[n]).text)
        for n in numbers
    ]
    for number, source in zip(numbers, store.sources(queries), strict=True):
        found = source.search(K)
        process.check(len(found.passages) == K, f"version {store.version}: fewer than {K} for an evaluation")
        for passage in found.passages:
            right = passage.document != name(number) and may.get(passage.id) == passage
            process.check(right, f"version {store.version}: a passage that leaks or is not there")


def read(process: Process, until: float, ask: Callable[[Process, Datastore, Held, Held], None]) -> None:
    while not (process.notes._path.exists() and (process.store / "store.json").exists()):
        time.sleep(0.05)
    while time.time() < until:
        opened = time.time()
        try:
            store = Datastore.open(process.store, encoder=ENCODER, threads=1)
            held = process.notes.around(store.version)
            if held[0]:
                for _ in range(5):
                    ask(process, store, *held)
                process.count("rounds")
        except UptakeError as error:
            process.notes.update()
            purged = any(when > opened - 10 for when in process.notes.purges)
            purged = purged and isinstance(error, BadInput) and "was purged while it was open" in str(error)
            process.check(purged, f"{type(error).__name__}: {error}")
            process.count("outlived by a purge" if purged else "errors")
        process.sample()
        time.sleep(process.pause)


def run(minutes: float, pause: float, folder: Path) -> dict[str, Any]:
    """Start everybody, wait for the end, and put together what they have found."""
    os.environ["UPTAKE_CACHE"] = str(folder / "cache")
    roles = [("writer", 0), *(("reader", number) for number in range(READERS)), ("evaluator", 0)]
    command = [sys.executable, __file__, "--folder", str(folder), "--pause", str(pause), "--role"]
    processes = [subprocess.Popen([*command, role, "--number", str(number)]) for role, number in roles]
    while len(list(folder.glob("*.json"))) < len(roles):  # all have started
        time.sleep(0.1)
        if any(process.poll() for process in processes):
            raise SystemExit("a process did not start")
    until = time.time() + 60 * minutes
    (folder / "until.draft").write_text(str(until))
    (folder / "until.draft").rename(folder / "until")
    while time.time() < until:
        time.sleep(min(60.0, max(until - time.time(), 0)))
        print(f"{(until - time.time()) / 60:.0f} minutes to go", flush=True)
    codes = [process.wait(timeout=300) for process in processes]
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = [json.loads((folder / f"{role}-{number}.json").read_text()) for role, number in roles]
    result: dict[str, Any] = {
        "minutes": minutes,
        "pause": pause,
        "minutes_a_part": PART,
        "load": os.getloadavg()[0],
    }
    result |= {"cpu_seconds": round(spent.ru_utime + spent.ru_stime, 1), "wrong": []}
    sampled = [
        [json.loads(line) for line in (folder / f"{role}-{number}.jsonl").open()] for role, number in roles
    ]
    for code, (role, number), each, samples in zip(codes, roles, told, sampled, strict=True):
        title = f"{role} {number}" if role == "reader" else role
        quarter = max(1, len(samples) // 4)
        parts = {"early": samples[quarter // 2 : quarter // 2 + quarter], "late": samples[-quarter:]}
        figures = {
            f"{what}_{when}": float(np.median([one[what] for one in part]))
            for what in ("own_mib", "files")
            for when, part in parts.items()
        }
        by_part: dict[int, list[float]] = {int(one["seconds"] // (60 * PART)): [] for one in samples}
        for one in samples:
            by_part[int(one["seconds"] // (60 * PART))].append(one["own_mib"])
        result[title] = each["counts"] | figures
        result[title]["own_mib_by_parts"] = [round(float(np.median(part)), 2) for part in by_part.values()]
        if code:
            result["wrong"].append(f"{title}: ended with {code}")
        result["wrong"] += [f"{title}: {line}" for line in each["wrong"]]
    result["after_purges"] = [one for one in sampled[0] if "bytes" in one]
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds, after each change and each opening"
    )
    parser.add_argument("--out", type=Path)
    for hidden, kind in (("--folder", Path), ("--role", str), ("--number", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        mine = Process(given.folder, given.role, given.number, given.pause)
        mine.sample()
        while not (given.folder / "until").exists():
            time.sleep(0.05)
        end = float((given.folder / "until").read_text())
        if given.role == "writer":
            write(mine, end)
        else:
            read(mine, end, searching if given.role == "reader" else evaluating)
        mine.sample(over=1)
    else:
        with tempfile.TemporaryDirectory() as made:
            figures = run(given.minutes, given.pause, Path(made))
        print(json.dumps(figures, indent=1))
        if given.out:
            given.out.write_text(json.dumps(figures, indent=1) + "\n")
        sys.exit(bool(figures["wrong"]))
