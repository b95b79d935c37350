"""Every reader against thousands of damaged files: nothing raised, nothing lost, nothing uncounted.

The law: each file gives at least one item, and what was read is what was stored and what was counted.
"""

import random
import resource
from pathlib import Path

import pytest

import good_files
from uptake.text.readers import Reading, Skipped, pieces, read

GOOD = good_files.good()
READING = Reading(max_document_bytes=1 << 20, max_parse_seconds=20.0, max_parse_bytes=2 << 30)


def fill(folder: Path, suffix: str, count: int, seed: int) -> None:
    draw = random.Random(f"{suffix} {seed}")
    ways = [good_files.damaged(GOOD[suffix], draw)]
    if GOOD[suffix].startswith(b"PK"):
        ways.append(good_files.packed(GOOD[suffix], draw))
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04d}{suffix}").write_bytes(next(ways[number % len(ways)]))
    (folder / f"zz-good{suffix}").write_bytes(GOOD[suffix])


def lines_of(path: Path) -> int:
    """Return how many lines a file of lines has that are not blank; 0 where it is read otherwise."""
    raw = path.read_bytes()
    marked = raw.startswith((b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b")) or raw.count(b"\0") > len(raw) // 4
    if path.suffix != ".jsonl" or marked:
        return 0
    return sum(1 for line in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())


def check(folder: Path) -> dict[str, int]:
    """Read a folder piece by piece and as a whole, hold one against the other; return what was counted."""
    items, last = 0, []
    paths = sorted(folder.iterdir())
    for path, piece in zip(paths, pieces(folder, skipped=Skipped(), reading=READING), strict=True):
        last = list(piece())
        items += len(last)
        assert len(last) == (lines_of(path) or len(last)) > 0, path
    assert not any(isinstance(item, str) for item, _ in last), "the good file is read after all others"
    skipped = Skipped()
    documents = list(read(folder, skipped=skipped, reading=READING))
    assert len(documents) + skipped.total == items
    assert len({document.id for document in documents}) == len(documents)
    for document in documents:
        assert document.text.strip() and "\0" not in document.text
        assert len(document.text.encode()) <= READING.max_document_bytes
        starts = [start for start, _ in document.places]
        assert starts == sorted(starts) and all(0 <= start < len(document.text) for start in starts)
        for part in (document.id, document.group, *document.meta, *document.meta.values()):
            part.encode()
    # Arrow ends its process on about one damaged file in a thousand; nothing may raise what nobody expects.
    assert not {"parser that fails", "parser that hangs"} & skipped.counts.keys(), skipped.firsts
    return skipped.counts


@pytest.mark.parametrize("suffix", GOOD)
def test_damaged_files_are_read_or_counted(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path / "in", suffix, 25, seed=0)
    check(tmp_path / "in")


@pytest.mark.long
@pytest.mark.parametrize("suffix", GOOD)
def test_hundreds_of_damaged_files_are_read_or_counted(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path / "in", suffix, 340, seed=1)  # 15 formats: 5,100 files, each read twice
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(tmp_path / "in")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
