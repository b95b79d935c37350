"""Writers killed two hundred times at random moments: what was acknowledged is there, nothing is there twice.

Each round a fresh process builds, adds to, removes from or purges a store and is killed with SIGKILL
somewhere between its first and its last moment; then every law of tests/killing.py is checked. The
seed fixes commands and delays; where in the program a delay ends is the machine's affair.

    python bench/kill.py --out bench/kill.json
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import killing  # noqa: E402

DOING = ("build", "add", "remove", "purge")
REMOVED = 40  # documents at a time
GENERATIONS = 30  # texts of a document; old ones come back
TESTS = {  # the rest of what is called safe, each by the test that shows it
    "a byte flipped in each file of a store is found": (
        "test_store.py::test_a_byte_flipped_in_any_file_is_found"
    ),
    "a byte flipped in each index file is found and mended": (
        "test_index.py::test_a_flipped_byte_is_found_and_mended"
    ),
    "a second writer is refused by name": "test_store.py::test_a_second_writer_is_refused_by_name",
    "a reader sees one version throughout": "test_store.py::test_readers_keep_their_version",
    "purged text is nowhere in the bytes": "test_store.py::test_purged_text_is_nowhere_in_the_bytes",
    "drafts of the dead are cleared away": "test_store_upkeep.py::test_a_draft_goes_once_nobody_holds_it",
    "a version stays a week for its readers": (
        "test_store_upkeep.py::test_a_version_goes_a_week_after_another_took_its_place"
    ),
}


def command_for(do: str, work: Path, random: np.random.Generator) -> dict[str, Any]:
    command: dict[str, Any] = {"do": do, "path": work / ("built" if do == "build" else "store")}
    if do in ("build", "add"):
        return command | {"generation": int(random.integers(GENERATIONS))}
    return command | {"remove": sorted(random.choice(killing.DOCUMENTS, REMOVED, replace=False).tolist())}


def whole_runs(work: Path, random: np.random.Generator) -> dict[str, float]:
    """Return how long each command takes when nobody kills it, in seconds until it is acknowledged."""
    (work / "calibration").mkdir()
    took = {}
    for do in DOING:
        command = command_for(do, work, random) | {"path": work / "calibration" / "store"}
        took[do] = killing.Writer().seconds(command)
    return took


def kill_once(command: dict[str, Any], writer: killing.Writer, delay: float) -> tuple[str, list[str]]:
    """Return when the kill came, and the broken laws."""
    path, build = command["path"], command["do"] == "build"
    generations = list(range(GENERATIONS))
    before = {} if build else killing.by_document(path)
    said = writer.run(command, delay)
    when = "after the end" if "done" in said else "between commits" if said else "before the first commit"
    if build and not (path / "store.json").exists():
        broken = [f"{left}: acknowledged and gone" for left in said]
    else:
        broken = killing.broken_laws(command, said, before, generations)
    if build:  # the same command finishes it, and clears away what the dead one left
        store = killing.open_or_create(path, killing.StubEncoder())
        store.add(killing.documents(command["generation"]))
        done = command | {"do": "add"}
        broken += killing.broken_laws(done, ["done"], killing.by_document(path), generations)
        broken += [f"{left}: left behind" for left in killing.leftovers(path)]
        shutil.rmtree(path)
    return when, broken


def run_tests() -> dict[str, str]:
    """Run the named tests; return what each shows, and "passed" or how it ended."""
    ended = {}
    for shows, test in TESTS.items():
        arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{test}"]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        counts = re.findall(r"\d+ (?:passed|failed|error)", done.stdout)
        ended[shows] = "passed" if done.returncode == 0 else ", ".join(counts) or "did not run"
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/kill.json")
    arguments = parser.parse_args()
    start = time.perf_counter()
    tally = {do: {"kills": 0, "broken laws": 0} for do in DOING}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["UPTAKE_CACHE"] = str(work / "cache")
        random = np.random.default_rng(arguments.seed)
        took = whole_runs(work, random)
        print("seconds unkilled:", {do: round(seconds, 2) for do, seconds in took.items()}, flush=True)
        killing.Writer().run({"do": "build", "path": work / "store", "generation": 0})
        writer = killing.Writer()
        for kill in range(arguments.kills):
            do = DOING[kill % len(DOING)]
            command = command_for(do, work, random)
            delay = float(random.uniform(0, 1.05 * took[do]))
            current, writer = writer, killing.Writer()  # the next one imports meanwhile
            when, broken = kill_once(command, current, delay)
            counts = tally[do]
            counts["kills"] += 1
            counts[when] = counts.get(when, 0) + 1
            counts["broken laws"] += len(broken)
            faults += [f"kill {kill}, {do}, {when}: {line}" for line in broken]
            for line in broken[:5]:
                print(f"kill {kill}, {do}, {when}: {line}", flush=True)
            if kill % 20 == 19:
                print(f"{kill + 1} kills, {len(faults)} broken laws", flush=True)
        writer.end()
    tests = run_tests()
    minutes = (time.perf_counter() - start) / 60
    moments = ("before the first commit", "between commits", "after the end")
    table = Table("", "kills", *moments, "broken laws", box=None)
    for do, counts in tally.items():
        table.add_row(do, *(str(counts.get(name, 0)) for name in ("kills", *moments, "broken laws")))
    shown = Table("shown by a test", "", box=None)
    for shows, ended in tests.items():
        shown.add_row(shows, ended)
    Console(width=110).print(f"{arguments.kills} kills in {minutes:.1f} minutes", table, shown)
    told = {
        "kills": arguments.kills, "seed": arguments.seed, "minutes": round(minutes, 1),
        "seconds_unkilled": took, "tally": tally, "broken_laws": faults,
        "tests": {shows: {"test": f"tests/{TESTS[shows]}", "ended": ended} for shows, ended in tests.items()},
    }  # fmt: skip
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    sys.exit(1 if faults or set(tests.values()) != {"passed"} else 0)


if __name__ == "__main__":
    main()
