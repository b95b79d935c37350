"""Readers: good text comes through whole, bad text is counted and named, and costs nothing around it."""

import gzip
import io
import json
import lzma
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uptake.errors import BadInput, Missing, UptakeError
from uptake.text.readers import Reading, Skipped, read
from uptake.text.types import Document

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
fuzz = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_all(*sources: str | Path, **options: Any) -> tuple[list[Document], Skipped]:
    skipped = Skipped()
    return list(read(sources, skipped=skipped, reading=Reading(**options))), skipped


def read_some(*sources: str | Path, **options: Any) -> tuple[list[Document], Skipped]:
    """Like read_all, where it is allowed that nothing could be read."""
    skipped = Skipped()
    documents: list[Document] = []
    try:
        documents.extend(read(sources, skipped=skipped, reading=Reading(**options)))
    except BadInput:
        assert not documents
    return documents, skipped


# --- formats


@pytest.mark.parametrize("packing", PACK)
def test_json_lines_with_every_compression(tmp_path: Path, packing: str) -> None:
    content = lines(
        {"id": "a", "text": "one", "group": "g", "year": 2024, "draft": False, "tags": ["x"], "by": None},
        {"text": "two"},
        {"id": 7, "text": "drei\u2028\u00fc"},
    )
    path = write(tmp_path / "in" / f"x.jsonl{packing}", PACK[packing](content))
    documents, skipped = read_all(path)
    assert documents == [
        Document("a", "one", "g", {"year": "2024", "draft": "false"}),
        Document(f"in/x.jsonl{packing}:2", "two"),
        Document("7", "drei\u2028\u00fc"),
    ]
    assert str(skipped) == "nothing skipped"
    assert read_all(path.parent)[0] == documents  # the same names, read by its folder


def test_concatenated_streams_are_one_file(tmp_path: Path) -> None:
    for packing in (".gz", ".xz", ".zst"):
        parts = [PACK[packing](lines({"text": text})) for text in ("one", "two")]
        path = write(tmp_path / f"x.jsonl{packing}", parts[0] + parts[1] + b"\0" * 8)
        assert [document.text for document in read_all(path)[0]] == ["one", "two"]


def test_text_files(tmp_path: Path) -> None:
    write(tmp_path / "t" / "a.md", b"\xef\xbb\xbf# A\r\n")
    write(tmp_path / "t" / "b.TXT.gz", gzip.compress(b"b"))
    write(tmp_path / "t" / "LICENSE", b"free")
    assert read_all(tmp_path / "t")[0] == [Document("t/a.md", "# A\r\n"), Document("t/b.TXT.gz", "b")]
    assert read_all(str(tmp_path / "t" / "LICENSE"))[0] == [Document("t/LICENSE", "free")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array([f"text {i}" for i in range(150)], pa.string()).cast(kind)
    table = pa.table({"group": ["g"] * 150, "other": [1.0] * 150, "text": texts, "id": list(range(150))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=70)
    documents, _ = read_all(tmp_path / "x.parquet")
    assert documents == [Document(str(i), f"text {i}", "g") for i in range(150)]


def test_parquet_bad_rows_cost_nothing_else(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(pa.table({"text": bad}), tmp_path / "x.parquet")
    documents, skipped = read_all(tmp_path / "x.parquet")
    assert [document.text for document in documents] == ["a", "b"]
    assert skipped.examples == [f"{tmp_path}/x.parquet:2: not UTF-8; --encoding names another one"]
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "y.parquet")
    write(tmp_path / "z.parquet", b"PAR1 but not for long")
    documents, skipped = read_all(tmp_path)
    assert len(documents) == 2
    assert skipped.counts == {"not UTF-8": 1, "no text": 1, "unreadable parquet file": 1}


# --- folders


def test_folder_takes_sources_in_order_and_passes_over_the_rest(tmp_path: Path) -> None:
    root = tmp_path / "package"
    for name in ("b.py", "a/z.rs", "a/c/d.txt", "B.md"):
        write(root / name, name.encode())
    for name in (
        *(
            ".git/x.py",
            ".hidden.py",
            "__pycache__/x.py",
            "node_modules/x.js",
            "env/lib/x.py",
            "env/pyvenv.cfg",
        ),
        *("site-packages/x.py", "x-1.0.dist-info/top_level.txt"),
    ):
        write(root / name, b"never read")
    documents, skipped = read_all(root)
    assert [document.id for document in documents] == [
        f"package/{name}" for name in ("B.md", "b.py", "a/z.rs", "a/c/d.txt")
    ]
    assert {document.group for document in documents} == {""}
    assert not skipped.total
    assert [document.id for document in read(root / "site-packages")] == ["site-packages/x.py"]


def test_links_pipes_and_unreadable_folders_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.txt", b"a")
    write(tmp_path / "shut" / "b.txt", b"b")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.txt").symlink_to(tmp_path / "round.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    documents, skipped = read_all(tmp_path)
    assert [document.text for document in documents] == ["a"]
    assert skipped.counts == {"link to a folder": 1, "not a regular file": 3, "unreadable folder": 1}


def test_unreadable_file_in_a_folder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt", b"a")
    write(tmp_path / "b.txt", b"b")
    opened = os.open

    def guarded(path: Path, *arguments: int) -> int:
        if Path(path).name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", guarded)
    documents, skipped = read_all(tmp_path)
    assert [document.text for document in documents] == ["b"]
    assert skipped.examples == [f"{tmp_path}/a.txt: unreadable file"]
    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(BadInput, match=r"cannot read .*a\.txt: Permission denied"):
        read(tmp_path / "a.txt")


def test_names_that_are_not_utf8_still_make_proper_ids(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\n.txt"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"text")
    [document] = read_all(tmp_path)[0]
    assert document.id.encode().isascii() and "\n" not in document.id


# --- bad input

BAD_LINES: dict[str, bytes] = {
    "broken JSON": b'{"text": "a"',
    "not a JSON object": b"[1]",
    "no text": b'{"id": "x"}',
    "text is not a string": b'{"text": ["a"]}',
    "id is neither text nor a number": b'{"id": {}, "text": "a"}',
    "empty text": b'{"text": " \\n"}',
    "lone surrogate": b'{"text": "\\ud800"}',
    "NUL character": b'{"text": "a\\u0000b"}',
    "id has NUL or another control character": b'{"text": "a", "id": "\\u001b[31m"}',
    "group is neither text nor a number": b'{"text": "a", "group": true}',
    "id is an infinite number": b'{"text": "a", "id": -Infinity}',
    "not UTF-8": b'{"text": "\xff"}',
    "duplicate id": b'{"id": "first", "text": "a"}',
}


def test_every_bad_line_is_named_and_costs_nothing_else(tmp_path: Path) -> None:
    good = [
        {"id": name, "text": "good"} for name in ("first", "x ", "it's \"quoted\"'); drop", "\ud83d\ude00")
    ]
    content = [json.dumps(record).encode() for record in good]
    for reason in BAD_LINES:
        content.insert(-1, BAD_LINES[reason])
    content.insert(1, b"[" * 100_000)  # deeper than the parser goes
    content.insert(1, b'{"id": ' + b"9" * 5000 + b', "text": "a"}')  # longer than Python's integers go
    path = write(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + b"\r\n".join(content))
    documents, skipped = read_all(path)
    assert [document.id for document in documents] == [
        record["id"].encode("utf-16", "surrogatepass").decode("utf-16") for record in good
    ]
    assert skipped.counts == dict.fromkeys(BAD_LINES, 1) | {"broken JSON": 3}
    assert skipped.examples[0].startswith(f"{path}:2: broken JSON; Exceeds the limit")
    assert skipped.examples[1] == f"{path}:3: broken JSON; it nests deeper than 100 brackets"
    assert str(skipped).startswith("skipped 15: 3 broken JSON, 1 not a JSON object")
    assert "\n" not in str(skipped)


def test_binary_and_oversized_files(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"ELF\0\1")
    write(tmp_path / "b.txt", b"x" * 10_000 + b"\0")
    write(tmp_path / "c.txt", "\u00fc".encode("latin1"))
    write(tmp_path / "d.txt", b"")
    write(tmp_path / "e.txt", b"y" * 20_001)
    write(
        tmp_path / "f.jsonl", lines({"text": "z" * 20_001}, {"text": "z" * 200_000}, {"text": "z" * 20_000})
    )
    documents, skipped = read_all(tmp_path, max_document_bytes=20_000)
    assert [document.text for document in documents] == ["z" * 20_000]
    assert skipped.counts == {
        "binary file": 1,
        "NUL character": 1,
        "not UTF-8": 1,
        "empty text": 1,
        "longer than 20000 bytes": 3,
    }


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_truncated_and_damaged_files_keep_what_came_before(tmp_path: Path, packing: str) -> None:
    # Random digits do not compress away, so that the cut falls in the middle.
    whole = [{"id": str(i), "text": os.urandom(2000).hex()} for i in range(100)]
    packed = PACK[packing](lines(*whole[:50])) + PACK[packing](lines(*whole[50:]))
    path = write(tmp_path / f"x.jsonl{packing}", packed[: -len(packed) // 10])
    documents, skipped = read_all(path)
    assert len(documents) >= 50
    assert [document.text for document in documents] == [record["text"] for record in whole[: len(documents)]]
    assert skipped.counts == {"truncated compressed file": 1}
    write(path, PACK[packing](lines(*whole[:50])) + b"garbage")
    documents, skipped = read_all(path)
    assert len(documents) == 50
    assert skipped.counts == {"damaged compressed file": 1}


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_bombs_stop_at_the_cap(tmp_path: Path, packing: str) -> None:
    content = lines({"text": "good"}) + b" " * 40_000_000
    path = write(tmp_path / f"x.jsonl{packing}", PACK[packing](content))
    documents, skipped = read_all(path, max_unpacked_bytes=10_000_000)
    assert [document.text for document in documents] == ["good"]
    assert skipped.counts == {"unpacks to more than 10000000 bytes": 1}


def test_fifty_megabytes_in_one_line(tmp_path: Path) -> None:
    text = "word " * 10_000_000
    path = write(tmp_path / "x.jsonl", lines({"text": text}, {"text": "after"}))
    assert [len(document.text) for document in read(path)] == [len(text), 5]


def test_duplicates_across_sources(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", b"x")
    documents, skipped = read_all(path, tmp_path)
    assert len(documents) == 1 and skipped.counts == {"duplicate id": 1}


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", lines({"text": "a"}) + b"broken\n" * 1000)
    skipped = Skipped()
    assert next(read(path, skipped=skipped)).text == "a"
    assert skipped.total == 0


# --- sources that are not there


@pytest.mark.parametrize(
    "name", ["nowhere", "", "./a/b", "data/x.jsonl", "a/b/c", "a\0b", "x" * 5000, "\ud800"]
)
def test_missing_sources_are_refused_at_once(name: str) -> None:
    with pytest.raises(BadInput, match=r"no such file or folder|cannot read") as caught:
        read(name)
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_to_read_names_the_first_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", b"broken\n{}\n")
    with pytest.raises(BadInput, match=r"nothing to read in .*x\.jsonl: .*x\.jsonl:1: broken JSON"):
        list(read(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no text"):
        list(read(tmp_path / "empty"))
    with pytest.raises(BadInput, match="no corpus named"):
        read([])
    with pytest.raises(BadInput, match="max_document_bytes 0: use more than 0"):
        Reading(max_document_bytes=0)
    with pytest.raises(BadInput, match="neither a file nor a folder"):
        read("/dev/null")


# --- data sets


def fake_hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, Iterable[object]]) -> None:
    def load_dataset(name: str, streaming: bool) -> dict[str, Iterable[object]]:
        assert streaming
        if name != "org/name":
            raise RuntimeError("no such thing\nand a page of help")
        return splits

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[object]:
        yield {"text": "a", "image": b"\xff", "title": "A"}
        raise ConnectionError("gone")

    fake_hub(
        monkeypatch,
        {"train": [{"text": "a"}, {"text": 3}], "test": broken(), "odd": [{"words": "a", "id": 1}]},
    )
    documents, skipped = read_all("org/name")
    assert documents == [Document("org/name:train:1", "a")]
    assert skipped.examples == ["org/name:train:2: text is not a string"]
    stream = read("org/name:test")
    assert next(stream) == Document("org/name:test:1", "a", "", {"title": "A"})
    with pytest.raises(Missing, match="broke off at row 2: gone"):
        next(stream)
    with pytest.raises(BadInput, match="no column text, only words, id"):
        list(read("org/name:odd"))
    with pytest.raises(BadInput, match="no split 'dev': add one of train, test, odd"):
        read("org/name:dev")
    with pytest.raises(Missing, match=r"nor a data set that loads: no such thing$"):
        read("org/other")
    fake_hub(monkeypatch, {"only": [{"text": "a"}]})
    assert read_all("org/name")[0] == [Document("org/name:only:1", "a")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Missing, match=r"pip install 'uptake\[datasets\]'"):
        read("org/name")


# --- anything at all

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(st.sampled_from(["id", "text", "group", "meta"]) | st.text(), values, max_size=5)
junk = st.one_of(
    st.binary(max_size=60),
    (values | records).map(lambda value: json.dumps(value).encode()),
).map(lambda raw: raw.replace(b"\n", b" "))


@fuzz
@given(before=st.lists(junk, max_size=5), after=st.lists(junk, max_size=5), packing=st.sampled_from([*PACK]))
def test_good_lines_survive_any_neighbours(
    tmp_path: Path, before: list[bytes], after: list[bytes], packing: str
) -> None:
    good = json.dumps({"id": "the good one, with an id nothing draws", "text": "good"}).encode()
    raw = b"\n".join([b"", *before, good, *after])  # a file's first bytes may say what it is
    path = write(tmp_path / f"x.jsonl{packing}", PACK[packing](raw))
    documents, skipped = read_all(path)
    assert any(document.text == "good" for document in documents)
    assert len(documents) + skipped.total <= len(before) + len(after) + 1
    for document in documents:
        assert document.text.strip() and "\0" not in document.text
        for part in (document.id, document.text, document.group, *document.meta, *document.meta.values()):
            part.encode("utf8")


@fuzz
@given(raw=st.binary(max_size=400), suffix=st.sampled_from([".txt", ".py", ".jsonl", ".parquet", ".json"]))
@pytest.mark.parametrize("packing", PACK)
def test_random_bytes_never_raise(tmp_path: Path, raw: bytes, suffix: str, packing: str) -> None:
    path = write(tmp_path / f"x{suffix}{packing}", raw)
    documents, skipped = read_some(path)
    if suffix in (".txt", ".py") and not packing and documents:
        assert documents[0].text.encode() == raw.removeprefix(b"\xef\xbb\xbf")
    assert documents or skipped.total or not raw.strip()


@fuzz
@given(cut=st.integers(0, 10**6), damage=st.binary(min_size=1, max_size=4), suffix=st.sampled_from([*PACK]))
def test_damage_anywhere_raises_nothing(tmp_path: Path, cut: int, damage: bytes, suffix: str) -> None:
    packed = bytearray(PACK[suffix](lines(*({"text": f"text {i}"} for i in range(20)))))
    cut %= len(packed)
    packed[cut : cut + len(damage)] = damage
    read_some(write(tmp_path / f"x.jsonl{suffix}", bytes(packed)))


@fuzz
@given(cut=st.integers(0, 10**6))
def test_truncated_parquet_raises_nothing(tmp_path: Path, cut: int) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(20)]}), table)
    path = write(tmp_path / "x.parquet", table.getvalue()[: cut % len(table.getvalue())])
    with pytest.raises(UptakeError):
        list(read(path))
