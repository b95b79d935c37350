"""Files that ask for more than they are: bombs, parsers that hang or crash, links, and what is no file."""

import bz2
import gzip
import io
import json
import lzma
import math
import os
import pickle
import resource
import socket
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import good_files
from test_readers import lines, read_all, read_some, write
from uptake.errors import BadInput
from uptake.text import files, formats, isolated
from uptake.text.readers import Reading, Skipped, pieces, read
from uptake.text.reading import ROOM, File, Format, Step

MB = 1 << 20


def used() -> int:
    """Return the most memory that this process, and any parser of its, has held, in MB."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) >> 10


# --- bombs


def dictionary_bomb(size: int, rows: int, **options: object) -> bytes:
    """Return a Parquet file of one text of `size` bytes that stands in every row."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * size]))
    out = io.BytesIO()
    pq.write_table(
        pa.table({"text": column}),
        out,
        compression="zstd",
        dictionary_pagesize_limit=1 << 30,
        write_statistics=False,
        **options,
    )
    return out.getvalue()


@pytest.mark.parametrize("keeps_types", [True, False])
def test_a_small_parquet_file_of_gigabytes_is_refused_before_it_is_decoded(
    tmp_path: Path, keeps_types: bool
) -> None:
    path = write(tmp_path / "a.parquet", dictionary_bomb(ROOM, 64, store_schema=keeps_types))
    assert path.stat().st_size < 3000
    with pytest.raises(BadInput, match="unpacks to more than 1000 times its size; --max-expansion allows"):
        read_all(path)


def test_a_dictionary_is_decoded_up_to_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", dictionary_bomb(2 * MB, 200))
    documents, skipped = read_some(path)
    assert len(documents) * 2 * MB <= ROOM and skipped.counts == {
        "unpacks to more than 1000 times its size": 1
    }
    # The type is forgotten, so that only the memory of the parser is in the way.
    path = write(tmp_path / "b.parquet", dictionary_bomb(30 * MB, 64, store_schema=False))
    documents, skipped = read_some(path, max_parse_bytes=1 << 30)
    assert not documents and skipped.total == 1, skipped
    assert "parser that needs more than" in str(skipped) or "unpacks to more than" in str(skipped), skipped


def test_a_parquet_file_of_empty_rows_without_end(tmp_path: Path) -> None:
    rows = pa.array([None] * 3_000_000, pa.string())
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="unpacks to more than 1000 times its size"):
        read_all(tmp_path / "a.parquet")


@cache
def packed_bomb(suffix: str) -> bytes:
    """Return 128 MiB of one letter, packed."""
    content = b"text\n" + b"a" * (2 * ROOM)
    packs = {
        ".gz": gzip.compress,
        ".xz": partial(lzma.compress, preset=0),
        ".bz2": bz2.compress,
        ".zst": zstandard.compress,
    }
    return packs[suffix](content)


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".pdf"])
def test_packed_bombs_are_stopped_in_little_memory(tmp_path: Path, suffix: str, packing: str) -> None:
    path = write(tmp_path / f"a{suffix}{packing}", packed_bomb(packing))
    before = used()
    documents, skipped = read_some(path, max_document_bytes=MB)
    assert not documents and skipped.total
    assert used() - before < 500


def test_a_packed_file_that_asks_for_a_huge_dictionary(tmp_path: Path) -> None:
    raw = bytearray(lzma.compress(b"text", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 12}]))
    # The header of the first block: its size, flags, the filter, the size of the filter's settings, these.
    size = (raw[12] + 1) * 4
    raw[16] = 37  # 2 GiB
    raw[12 + size - 4 : 12 + size] = zlib.crc32(raw[12 : 12 + size - 4]).to_bytes(4, "little")
    with pytest.raises(BadInput, match="needs more memory to unpack than a packed file may ask for"):
        read_all(write(tmp_path / "a.txt.xz", bytes(raw)))


def test_zip_bombs(tmp_path: Path) -> None:
    for name, content, part in (
        ("a.docx", good_files.docx(), "word/document.xml"),
        ("b.epub", good_files.epub(["x"]), "in/c0.xhtml"),
    ):
        out = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(content)) as whole,
            zipfile.ZipFile(out, "w", zipfile.ZIP_BZIP2) as made,
        ):
            for own in whole.namelist():
                made.writestr(own, whole.read(own) + b" " * (ROOM if own == part else 0))
        with pytest.raises(BadInput, match="unpacks to more than 1000 times its size"):
            read_all(write(tmp_path / name, out.getvalue()))


def test_a_pdf_that_unpacks_without_end(tmp_path: Path) -> None:
    stream = zlib.compress(b"BT /F1 12 Tf (x) Tj ET " + b" " * (100 * MB), 1)
    plain = good_files.pdf(["MARK"])
    drawn = b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(stream), stream)
    start = plain.index(b"<< /Length", plain.index(b"/Contents 6 0 R"))
    content = plain[:start] + drawn + plain[plain.index(b"endstream", start) + 9 :]
    documents, skipped = read_some(write(tmp_path / "a.pdf", content))
    assert not documents and skipped.total == 1
    assert "PDF" in str(skipped) or "parser" in str(skipped)


def test_entities_that_grow_are_not_expanded(tmp_path: Path) -> None:
    lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    opf = f'<!DOCTYPE p [<!ENTITY l0 "lol">{lol}]><package><title>&l11;</title></package>'
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as book:
        book.writestr("META-INF/container.xml", '<c><rootfile full-path="a.opf"/></c>')
        book.writestr("a.opf", opf)
    before = used()
    with pytest.raises(BadInput, match="broken EPUB"):
        read_all(write(tmp_path / "a.epub", out.getvalue()))
    assert used() - before < 300


def test_long_lines_take_no_time_of_their_square(tmp_path: Path) -> None:
    """At the square, each of these would take hours."""
    spaces = b" \t" * (2 * MB)
    write(tmp_path / "a.md", b"# " + spaces + b"x\n# Two\n---\n" + b"-" * (4 * MB) + b"x\n")
    write(tmp_path / "b.html", b"<pre>" + spaces + b"x</pre><p>" + spaces + b"y")
    write(tmp_path / "c.csv", b"text\n" + b"x" * (20 * MB) + b"\n")
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good_files.docx())) as whole, zipfile.ZipFile(out, "w") as made:
        for name in whole.namelist():
            made.writestr(name, whole.read(name).replace(b">right<", b">" + b" " * (2 * MB) + b"r<"))
    write(tmp_path / "d.docx", out.getvalue())
    documents, skipped = read_all(tmp_path)
    assert len(documents) == 4 and not skipped.total
    assert [place for _, place in documents[0].places][-1] == "Two"


def test_much_beside_a_text_is_refused(tmp_path: Path) -> None:
    records = [
        {"text": "a", "note": "x" * 70_000},
        {"text": "b", "id": "y" * 1025},
        {"text": "c", "n": "x" * 60_000},
    ]
    documents, skipped = read_all(write(tmp_path / "a.jsonl", lines(*records)))
    assert [document.text for document in documents] == ["c"]
    assert skipped.counts == {
        "more than 65536 bytes beside its text, which every passage would carry": 1,
        "id is longer than 1024 bytes": 1,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_document_bytes", 0),
        ("max_expansion", -1),
        ("max_parse_seconds", math.nan),
        ("max_parse_bytes", 1 << 20),
    ],
)
def test_limits_that_are_none_are_refused(name: str, value: float) -> None:
    with pytest.raises(BadInput, match=f"{name} {value}: use"):
        Reading(**{name: value})  # type: ignore[arg-type]


# --- ids


SAME = ["1", 1, 1.0]
NONE = [None, math.nan, "", "  "]


@pytest.mark.parametrize("value", NONE)
def test_what_is_no_id_merges_no_rows(tmp_path: Path, value: object) -> None:
    documents, skipped = read_all(
        write(tmp_path / "in" / "a.jsonl", lines(*({"id": value, "text": t} for t in "abc")))
    )
    assert [document.id for document in documents] == ["in/a.jsonl:1", "in/a.jsonl:2", "in/a.jsonl:3"]
    assert not skipped.total
    documents, _ = read_all(write(tmp_path / "b.jsonl", lines({"group": value, "text": "a"})))
    assert documents[0].group == ""


def test_one_number_is_one_id_however_it_is_written(tmp_path: Path) -> None:
    documents, skipped = read_all(write(tmp_path / "a.jsonl", lines(*({"id": v, "text": "t"} for v in SAME))))
    assert [document.id for document in documents] == ["1"] and skipped.counts == {"duplicate id": 2}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (True, "id is neither text nor a number"),
        ({"$oid": "a"}, "id is neither text nor a number"),
        (["a"], "id is neither text nor a number"),
        (math.inf, "id is an infinite number"),
        (2.0**60, "id is a number too large for its format to tell from the next"),
        ("a\nb", "id has NUL or another control character"),
        ("a\x9bb", "id has NUL or another control character"),
        ("x" * 2000, "id is longer than 1024 bytes"),
    ],
)
def test_ids_that_name_nothing_are_counted(tmp_path: Path, value: object, reason: str) -> None:
    documents, skipped = read_all(
        write(tmp_path / "a.jsonl", lines({"id": value, "text": "a"}, {"text": "b"}))
    )
    assert [document.text for document in documents] == ["b"] and skipped.counts == {reason: 1}


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (pa.array([math.nan] * 3), ["1", "2", "3"]),
        (pa.array([None] * 3), ["1", "2", "3"]),
        (pa.array([1.0, None, 3.0]), ["1", "2", "3"]),
        (pa.array([1, None, 2**60]), ["1", "2", str(2**60)]),
        (pa.array(["x", "", None]), ["x", "2", "3"]),
        (pa.array([b"x", b"", None]), ["x", "2", "3"]),
        (pa.array(["x", "y", None]).dictionary_encode(), ["x", "y", "3"]),
    ],
)
def test_parquet_ids(tmp_path: Path, column: pa.Array, ids: list[str]) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": column}), tmp_path / "a.parquet")
    documents, skipped = read_all(tmp_path / "a.parquet")
    assert [document.id.rpartition(":")[2] for document in documents] == ids and not skipped.total


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(anything, max_size=8))
def test_rows_in_are_rows_out_and_counted(tmp_path: Path, ids: list[object]) -> None:
    good = {"id": "the good one", "text": "good"}
    path = write(tmp_path / "a.jsonl", lines(*({"id": value, "text": "t"} for value in ids), good))
    documents, skipped = read_all(path)
    assert len(documents) + skipped.total == len(ids) + 1


# --- parsers that cannot be trusted


def misbehave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Let a module called pypdf, which only parsers' own processes import, do this when it is imported."""
    write(tmp_path / "lib" / "pypdf" / "__init__.py", body.encode())
    write(tmp_path / "lib" / "pypdf" / "errors.py", b"DependencyError = PyPdfError = ValueError")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.setattr(isolated, "_idle", [])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("while True: pass", "parser that hangs; it got nowhere for 1 s: --max-parse-seconds allows more"),
        ("import os; os.kill(os.getpid(), 11)", "parser that crashes; it ended with signal 11"),
        ("import os; os._exit(3)", "parser that crashes; it ended with code 3"),
        (
            "x = bytearray(3 << 30)",
            "parser that needs more than 2147483648 bytes of memory; --max-parse",
        ),
        ("def PdfReader(*a, **k): return 1 / 0", "broken PDF"),
        ("raise LookupError('x')", "parser that fails; LookupError"),
        ("print('x' * 100000, flush=True); raise ImportError", "needs: pip install 'uptake\\[files\\]'"),
    ],
)
def test_a_parser_that_misbehaves_costs_its_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    misbehave(monkeypatch, tmp_path, body)
    write(tmp_path / "in" / "a.pdf", good_files.pdf(["x"]))
    write(tmp_path / "in" / "b.csv", b"text\nread\n")
    options = {"max_parse_seconds": 1.0, "max_parse_bytes": 2 << 30}
    documents, skipped = read_all(tmp_path / "in", **options)
    assert [document.text for document in documents] == ["read"]
    assert skipped.total == 1
    assert skipped.examples[0].startswith(f"{tmp_path}/in/a.pdf: {reason}".replace("\\", ""))


def test_a_reading_that_is_abandoned_leaves_no_parser_at_work(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"text\n" + b"".join(b"row %d\n" % number for number in range(10_000)))
    stream = read(tmp_path / "a.csv")
    next(stream)
    idle = len(isolated._idle)
    stream.close()  # type: ignore[attr-defined]
    assert len(isolated._idle) == idle
    assert len(read_all(tmp_path / "a.csv")[0]) == 10_000


def test_a_slow_reader_is_no_slow_parser(tmp_path: Path) -> None:
    write(
        tmp_path / "a.csv",
        b"text\n" + b"".join(b"%s %d\n" % (b"x" * 1000, number) for number in range(3_000)),
    )
    count = 0
    for _ in read(tmp_path / "a.csv", reading=Reading(max_parse_seconds=0.5)):
        count += 1
        if count == 2:
            time.sleep(0.8)
    assert count == 3_000


def test_a_parser_that_has_just_ended_for_want_of_work_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.csv", b"text\nrow\n")
    monkeypatch.setattr(isolated, "_idle", [])
    assert len(read_all(path)[0]) == 1
    [worker] = isolated._idle
    worker._process.stdin.close()  # type: ignore[union-attr]  # as if 60 s were over
    worker._process.wait()
    worker._process.stdin = open(os.devnull, "wb")  # type: ignore[assignment]  # noqa: SIM115, PTH123
    monkeypatch.setattr(isolated._Worker, "is_usable", True)
    documents, skipped = read_all(path)
    assert len(documents) == 1 and not skipped.total


def test_parsers_end_with_the_process_that_asked_them(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"text\nrow\n")
    program = (
        "from uptake.text import isolated, readers; print(len(list(readers.read('a.csv'))));"
        "print(isolated._idle[0]._process.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, process = done.stdout.split()
    assert count == "1" and done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


def test_pieces_are_read_anywhere(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", good_files.pdf(["x"]))
    [piece] = pieces(tmp_path, skipped=Skipped())
    [(document, where)] = pickle.loads(pickle.dumps(piece))()
    assert document.text == "x" and where == f"{tmp_path}/a.pdf"


def test_no_two_formats_have_one_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_none(file: File) -> Iterator[Step]:
        yield from ()

    monkeypatch.setattr(formats, "named", lambda name: Format((".txt",), read_none))
    formats.by_suffix.cache_clear()
    with pytest.raises(RuntimeError, match=r"\.txt is read by"):
        formats.by_suffix()
    formats.by_suffix.cache_clear()


# --- folders and what is in them


def test_links_out_of_the_folder_are_counted_and_links_within_are_read(tmp_path: Path) -> None:
    write(tmp_path / "out" / "secret.txt", b"secret")
    write(tmp_path / "in" / "a.txt", b"a")
    write(tmp_path / "in" / "deep" / "b.txt", b"b")
    (tmp_path / "in" / "c.txt").symlink_to(tmp_path / "out" / "secret.txt")
    (tmp_path / "in" / "d.txt").symlink_to("../out/secret.txt")
    (tmp_path / "in" / "deep" / "e.txt").symlink_to("../a.txt")
    (tmp_path / "in" / "f.txt").symlink_to("/dev/zero")
    (tmp_path / "in" / "g.txt").symlink_to("c.txt")
    (tmp_path / "link").symlink_to("in")
    for root in ("in", "link"):
        documents, skipped = read_all(tmp_path / root)
        assert [document.text for document in documents] == ["a", "b", "a"]
        assert skipped.counts == {"link out of the folder": 4}
    assert [document.text for document in read_all(tmp_path / "in" / "c.txt")[0]] == [
        "secret"
    ]  # named itself


def test_what_is_no_regular_file_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"a")
    os.mkfifo(tmp_path / "b.pdf")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "c.jsonl"))
        _, skipped = read_all(tmp_path)
    assert skipped.counts == {"not a regular file": 2}


def test_a_file_exchanged_for_a_pipe_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.txt", b"a")
    os.mkfifo(tmp_path / "b.txt")
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    _, skipped = read_all(tmp_path)
    assert skipped.counts == {"not a regular file": 1}


@pytest.mark.parametrize("change", [b"", b"longer than before"])
def test_a_file_that_changes_while_it_is_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: bytes
) -> None:
    path = write(tmp_path / "a.txt", b"x" * 200_000)
    write(tmp_path / "b.txt", b"b")
    fstat = os.fstat

    def changing(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        if found.st_size == 200_000:
            path.write_bytes(change)
        return found

    monkeypatch.setattr(files.os, "fstat", changing)
    documents, skipped = read_all(tmp_path)
    assert [document.text for document in documents] == ["b"]
    assert skipped.counts == {"changed while it was read": 1}


def test_a_file_that_grows_for_ever_has_an_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"text": "first"}) * 10_000)
    stream = read(path, skipped=(skipped := Skipped()))
    with path.open("ab") as file:
        count = 0
        for _ in stream:
            count += 1
            file.write(lines({"text": "more"}))
            file.flush()
    assert count == 10_000 and skipped.counts == {"changed while it was read": 1}


def test_folders_deeper_than_calls_may_nest(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("d" * 1100)
    subprocess.run(["mkdir", "-p", str(deep)], check=True)
    (deep / "b.txt").write_bytes(b"b")
    try:
        documents, skipped = read_all(tmp_path)
    finally:  # Python's own way to remove folders does not go so deep
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    assert [document.text for document in documents] == ["b"] and not skipped.total


def test_records_are_named_in_examples_once_for_each_reason(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b"broken\n" * 50 + json.dumps({"n": 1}).encode() + b'\n{"text": "x"}')
    _, skipped = read_all(tmp_path)
    assert len(skipped.examples) == 20 and set(skipped.firsts) == {"broken JSON", "no text"}
    assert skipped.firsts["no text"].startswith(f"{tmp_path}/a.jsonl:51: no text; no text among its keys n")
