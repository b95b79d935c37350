"""A store whose list of files is lost: what is there is read through once, and listed anew.

Without its list nobody knows what was written, and Lance trusts what it reads: one bit can make it hang or
ask for a hundred gigabytes. So it reads in a process of its own, under a bound of memory and time, which is
given up where it fails. What is listed is what was found; nobody can say any more that it was written so.
"""

import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from uptake.errors import BadInput, Damaged
from uptake.store.inventory import NAME, STORE, TABLE, Inventory, Recorder, version_of
from uptake.store.layout import Layout
from uptake.store.remote.lease import FileLease
from uptake.store.remote.objects import Location, locate

_MEMORY = 16 << 30  # bytes of addresses, most of them never touched, beside some for each byte of the table
_SECONDS = 120.0  # beside one for each megabyte of the table


def relist(path: str | Location, lock: str = "writer.lock") -> int:
    """List the files of a store as they are; return how many passages were read and found sound.

    Raises BadInput where nothing is wrong with the list or the store is no folder, Busy, Damaged where
    the store cannot be read either.
    """
    store = locate(path)
    if not isinstance(store, Path):
        raise BadInput(f"{store}: only a store in a folder can be listed anew; copy it to one")
    layout = Layout.read(store)
    with FileLease(store / lock):
        try:
            Inventory.read(store)
        except Damaged:
            pass
        else:
            raise BadInput(f"{store / NAME} is sound: `uptake index verify` says what else may be wrong")
        files = [f"{TABLE}/_versions/{file.name}" for file in (store / TABLE / "_versions").glob("*")]
        newest = max((found for name in files if (found := version_of(name)) is not None), default=None)
        if newest is None:
            raise Damaged(f"{store / TABLE}: no version is left; build the store again")
        with tempfile.TemporaryDirectory() as folder:  # so that nobody takes the new list before it is tried
            scratch = Path(folder)
            (scratch / TABLE).symlink_to(store / TABLE)
            shutil.copyfile(store / STORE, scratch / STORE)
            recorder = Recorder(scratch, Inventory(layout.uid, newest, "writing", {}))
            recorder.record(newest)
            passages = _read_apart(scratch, store)
        recorder.inventory.write(store)
        Recorder(store, recorder.inventory).end()
    return passages


def _read_apart(scratch: Path, store: Path) -> int:
    """Return how many passages a process of its own could read, all of them sound. Raises Damaged."""
    size = sum(file.stat().st_size for file in (store / TABLE).rglob("*") if file.is_file())
    command = [sys.executable, "-m", "uptake.store.relist", str(scratch), str(_MEMORY + 8 * size)]
    limit = _SECONDS + size / 1e6
    found: dict[str, Any] = {}
    with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
        done = subprocess.run(
            command, capture_output=True, timeout=limit, check=False, stdin=subprocess.DEVNULL
        )
        found = json.loads(done.stdout) if done.returncode == 0 else {}
    if not found or found["faults"]:
        why = found["faults"][0] if found else "cannot be read"
        raise Damaged(f"{store / TABLE}: {why}; put it back from a copy, or build the store again")
    return int(found["passages"])


def _read(scratch: Path, memory: int) -> dict[str, Any]:
    """Read a whole table and say what was found; to be called in a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from uptake.store.passages.table import Table
    from uptake.store.verify import row_faults

    table, layout = Table.open(scratch / TABLE), Layout.read(scratch)
    faults = row_faults(table)
    table.rows(table.ids)
    if layout.retriever != "dense":
        table.match("the words of any text, 文字", 1)
    return {"passages": table.count, "faults": faults}


if __name__ == "__main__":
    print(json.dumps(_read(Path(sys.argv[1]), int(sys.argv[2]))))
