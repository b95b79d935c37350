"""What each format holds: text, meta and places; and whole files that hold nothing, each by its reason."""

import bz2
import gzip
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import good_files
from good_files import TEXTS
from test_readers import read_all, read_some, write
from uptake.errors import BadInput
from uptake.text import formats
from uptake.text.formats import table
from uptake.text.formats.json_file import values
from uptake.text.reading import File, Reading
from uptake.text.types import Chunking, Document


def one(path: Path, **options: object) -> Document:
    documents, skipped = read_all(path, **options)
    assert not skipped.total, skipped.examples
    [document] = documents
    return document


def placed(document: Document) -> list[tuple[str, str]]:
    """Return each place and the text from there to the next."""
    starts = [*(start for start, _ in document.places), len(document.text)]
    return [
        (name, document.text[start:stop].strip())
        for (start, name), stop in zip(document.places, starts[1:], strict=True)
    ]


# --- one format after another


def test_pdf_pages_are_places(tmp_path: Path) -> None:
    document = one(write(tmp_path / "in" / "a.pdf", good_files.pdf([*TEXTS[:3]])))
    assert document.id == "in/a.pdf" and document.group == ""
    assert placed(document) == [(f"page {n}", text) for n, text in enumerate(TEXTS[:3], 1)]


def test_pages_that_are_pictures_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "half.pdf", good_files.pdf([TEXTS[0], None, TEXTS[1], ""]))
    write(tmp_path / "whole.pdf", good_files.pdf([None, None]))
    [document], skipped = read_all(tmp_path)
    assert [name for name, _ in placed(document)] == ["page 1", "page 3"]
    assert skipped.counts == {"PDF page without text": 1, "PDF without text": 1}
    assert (
        f"{tmp_path}/half.pdf: page 2: PDF page without text; it is a picture: run OCR first"
        in skipped.examples
    )


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
@pytest.mark.parametrize("password", ["", "secret"])
def test_encrypted_pdfs(tmp_path: Path, password: str, algorithm: str) -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(good_files.pdf([TEXTS[0]]))))
    writer.add_metadata({"/Title": "A title", "/Author": "Somebody"})
    writer.encrypt(password, "owner", algorithm=algorithm)
    writer.write(tmp_path / "a.pdf")
    if password:
        with pytest.raises(BadInput, match="encrypted PDF; remove its password first"):
            read_all(tmp_path)
    else:  # it only asks not to be printed or copied
        assert one(tmp_path / "a.pdf").meta == {"title": "A title", "author": "Somebody"}


def test_word_headings_are_places(tmp_path: Path) -> None:
    document = one(write(tmp_path / "a.docx", good_files.docx("A title")))
    assert placed(document) == [
        ("Start", f"Start\n{TEXTS[0]}\nleft\tright"),
        ("End", f"End\n{TEXTS[1]}"),
    ]
    assert document.meta == {"title": "A title"}


def test_word_text_of_changes_controls_and_boxes_is_read_once(tmp_path: Path) -> None:
    inside = (
        "<w:p><w:ins><w:r><w:t>inserted</w:t></w:r></w:ins><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>"
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        '<w:p><w:r><mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
        "<mc:Choice><w:t>in a box</w:t></mc:Choice><mc:Fallback><w:t>in a box</w:t></mc:Fallback>"
        "</mc:AlternateContent></w:r></w:p>"
    )
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good_files.docx())) as whole, zipfile.ZipFile(out, "w") as made:
        for name in whole.namelist():
            part = whole.read(name)
            if name == "word/document.xml":
                part = part.replace(b"<w:body>", b"<w:body>" + inside.encode())
            made.writestr(name, part)
    text = one(write(tmp_path / "a.docx", out.getvalue())).text
    assert text.startswith("inserted\nin a control\nin a box\nStart\n") and "gone" not in text


def test_html_is_read_without_its_markup(tmp_path: Path) -> None:
    page = (
        "<!doctype html><title>A &amp; B</title><style>x{}</style><script>var a = '<p>no</p>'</script>"
        "<body><p>before<h1>One</h1><p>two\n  words <b>bold</b><br>next<table><tr><td>1<td>2</table>"
        "<pre>a\n  b</pre><h2>Two <i>more</i></h2><ul><li>x<li>y &lt;z&gt;</ul><noscript>kept</noscript>"
    )
    document = one(write(tmp_path / "a.html", page.encode()))
    assert document.meta == {"title": "A & B"}
    assert document.text == "before\nOne\ntwo words bold\nnext\n1\t2\na\n  b\nTwo more\nx\ny <z>\nkept"
    assert placed(document)[1][0] == "Two more"
    deep = one(write(tmp_path / "b.html", b"<div>" * 100_000 + b"deep" + b"</div>" * 100_000))
    assert deep.text == "deep"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252", "shift_jis"])
def test_html_in_the_encoding_it_names(tmp_path: Path, encoding: str) -> None:
    word = "日本" if encoding == "shift_jis" else "é–"
    page = f'<meta charset="{encoding}"><p>{word}</p>'
    assert one(write(tmp_path / "a.html", page.encode(encoding))).text == word


def test_notebook_cells_are_places(tmp_path: Path) -> None:
    document = one(write(tmp_path / "a.ipynb", good_files.notebook()))
    assert placed(document) == [("cell 1", f"# Head\n{TEXTS[0]}"), ("cell 2", "x = 1"), ("cell 3", TEXTS[1])]
    old = {
        "worksheets": [{"cells": [{"input": ["a = 1\n", "b"]}, {"source": "text"}, {"no": 1}]}],
        "nbformat": 3,
    }
    documents, skipped = read_all(write(tmp_path / "b.ipynb", json.dumps(old).encode()))
    assert placed(documents[0]) == [("cell 1", "a = 1\nb"), ("cell 2", "text")]
    assert skipped.examples == [f"{tmp_path}/b.ipynb: cell 3: notebook cell without source"]


def test_csv_rows(tmp_path: Path) -> None:
    rows = (
        'id,text,year,note\r\n1,"one, and ""more""",2020,\r\n,"two\nlines",,x\r\n\r\n1,again,,\r\n'
        'only two,cells\r\n5,,,\r\n6,"open "quote",,\r\n7,last,,'
    )
    documents, skipped = read_all(write(tmp_path / "in" / "a.csv", rows.encode()))
    assert documents == [
        Document("1", 'one, and "more"', "", {"year": "2020"}),
        Document("in/a.csv:3", "two\nlines", "", {"note": "x"}),
        Document("7", "last"),
    ]
    assert [document.place(0, 1) for document in documents] == ["row 2", "row 3", "row 9"]
    assert skipped.counts == {
        "duplicate id": 1,
        "row that does not fit its columns": 1,
        "empty text": 1,
        "broken CSV row": 1,
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_of_every_spreadsheet(tmp_path: Path, delimiter: str, end: str, encoding: str) -> None:
    rows = [delimiter.join(row) for row in (("a b", " text ", "c"), ("1", "é", "2"), ("3", "x", "4"))]
    path = write(tmp_path / "a.csv", end.join(rows).encode(encoding))
    assert [document.text for document in read_all(path)[0]] == ["é", "x"]


@given(raw=st.text(alphabet="a\r\n,é", max_size=20), size=st.integers(1, 4))
def test_lines_of_a_table_end_as_python_says(raw: str, size: int) -> None:
    content = raw.encode()

    class Cut(File):
        def text_chunks(self, lines: bool = False) -> Iterator[bytes]:
            return iter([content[at : at + size] for at in range(0, len(content), size)])

    expected = io.TextIOWrapper(io.BytesIO(content), encoding="utf8", newline="")
    assert list(table._lines(Cut(Path("a"), "a", "a", Reading()))) == list(expected)


def test_csv_says_what_divides_it(tmp_path: Path) -> None:
    assert one(write(tmp_path / "a.csv", b"sep=^\ntext^b\na,b^1\n")).text == "a,b"


def test_markdown_front_matter_is_meta_and_headings_are_places(tmp_path: Path) -> None:
    text = (
        "---\ntitle: 'A: b'\ndraft: no\ndate: 2024-01-02\nid: index\ntags: [x, y]\n---\nfirst\n# One #\nx\n\n"
        "Two\n===\n\n```\n# no heading\n```\n### Three\n- a\n---\n"
    )
    document = one(write(tmp_path / "in" / "a.md", text.encode()))
    assert document.id == "in/a.md"
    assert document.meta == {"title": "A: b", "draft": "no", "date": "2024-01-02", "front_id": "index"}
    assert [name for _, name in document.places] == ["One", "Two", "Three"]
    assert document.text.startswith("first\n")


@pytest.mark.parametrize(
    "front",
    ["a: [", "- list", "!!python/object/apply:os.system [ls]", "&a [*a]", "[" * 100, "x: " + "y" * 70_000],
)
def test_front_matter_that_is_none_stays_text(tmp_path: Path, front: str) -> None:
    document = one(write(tmp_path / "a.md", f"---\n{front}\n---\ntext\n".encode()))
    assert "text" in document.text and (front in document.text or not document.meta)


def test_epub_chapters(tmp_path: Path) -> None:
    chapters = ["<h1>First</h1><p>once", "<p>no heading", "<h1>Third</h1><p>end"]
    document = one(write(tmp_path / "a.epub", good_files.epub(chapters)))
    assert placed(document) == [
        ("First", "First\nonce"),
        ("chapter 2", "no heading"),
        ("Third", "Third\nend"),
    ]
    assert document.meta == {"title": "A book"}


def test_passages_know_their_places(tmp_path: Path) -> None:
    document = one(write(tmp_path / "a.pdf", good_files.pdf(["word " * 20, "next " * 20, "last " * 20])))
    found = [(p.meta["place"], p.text) for p in Chunking(64).passages(document)]
    assert found[0][0] == "page 1" and found[-1][0] == "page 3"
    for place, text in found:
        inside = [n for n, word in ((1, "word"), (2, "next"), (3, "last")) if word in text]
        assert place == " to ".join(f"page {n}" for n in dict.fromkeys((inside[0], inside[-1])))
    own = Document("a", "text", "", {"place": "Paris"}, ((0, "row 1"),))
    assert [p.meta for p in Chunking(64).passages(own)] == [{"place": "Paris"}]


# --- JSON

items = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab\\"[]{},:é'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a"\\[{,'), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(listed=st.lists(items, max_size=5), indent=st.none() | st.integers(0, 2), size=st.integers(1, 9))
def test_values_are_told_apart_as_a_parser_does(listed: list[object], indent: int | None, size: int) -> None:
    raw = json.dumps(listed, indent=indent).encode()
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    assert [json.loads(value or b"") for value in values(iter(pieces), 10_000)] == listed


def test_a_list_a_record_or_lines_in_a_json_file(tmp_path: Path) -> None:
    records = [{"text": "a[,]"}, {"body": "b", "n": 1}, 3, {"text": 'c"}', "id": "c"}]
    documents, skipped = read_all(write(tmp_path / "in" / "a.json", json.dumps(records, indent=1).encode()))
    assert documents == [Document("in/a.json:1", "a[,]"), Document("c", 'c"}')]
    assert [document.place(0, 1) for document in documents] == ["record 1", "record 4"]
    assert skipped.examples == [
        f"{tmp_path}/in/a.json:2: no text; no text among its keys body, n: name one with --text-key",
        f"{tmp_path}/in/a.json:3: not a JSON object",
    ]
    assert one(write(tmp_path / "b.json", json.dumps({"text": "x", "n": 1}, indent=1).encode())).text == "x"
    lines = b'{"text": "x"}\n{"text": \n{"text": "y"}\n'
    documents, skipped = read_all(write(tmp_path / "c.json", lines))
    assert [document.text for document in documents] == ["x", "y"] and skipped.counts == {"broken JSON": 1}


@pytest.mark.parametrize("raw", [b'[{"text": "a"}, {"text": "b"', b'[{"text": "a"}', b'[{"text": "a"}, "'])
def test_a_list_cut_short_is_counted(tmp_path: Path, raw: bytes) -> None:
    documents, skipped = read_all(write(tmp_path / "a.json", raw))
    assert [document.text for document in documents] == ["a"]
    assert skipped.counts == {"JSON that is cut short": 1}  # once, not as a broken record as well


@pytest.mark.parametrize(
    "raw", [b'{"text": ', b'{"text": "a', b'{"text": "a",\n"n": [1', b"[", b'[{"text": ']
)
def test_a_record_cut_short_is_counted_once(tmp_path: Path, raw: bytes) -> None:
    write(tmp_path / "in" / "a.json", raw)
    write(tmp_path / "in" / "b.txt", b"whole")
    documents, skipped = read_all(tmp_path / "in")
    assert [document.text for document in documents] == ["whole"]
    assert skipped.counts == {"JSON that is cut short": 1}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_missing_key_names_those_there_are_and_the_option(tmp_path: Path, suffix: str) -> None:
    made = {
        ".jsonl": b'{"body": "a", "n": "1"}\n',
        ".json": b'[{"body": "a", "n": "1"}]',
        ".csv": b"body,n\na,1\n",
        ".parquet": good_files.parquet(body=["a"], n=["1"]),
    }
    path = write(tmp_path / f"a{suffix}", made[suffix])
    with pytest.raises(BadInput, match="no text among its keys body, n: name one with --text-key"):
        read_all(path)
    assert one(path, text_key="body").text == "a"


# --- encodings and packing


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".txt", ".md", ".jsonl", ".json", ".csv", ".html", ".ipynb"])
def test_byte_order_marks_are_heeded(tmp_path: Path, suffix: str, encoding: str) -> None:
    plain = good_files.good()[suffix]
    expected = read_all(write(tmp_path / "a" / f"a{suffix}", plain))[0]
    marked = write(tmp_path / "b" / "a" / f"a{suffix}", plain.decode().encode(encoding))
    assert read_all(marked)[0] == expected


def test_other_encodings_are_named_or_read(tmp_path: Path) -> None:
    for name, content in (("a.txt", "café"), ("b.csv", "text\ncafé\n"), ("c.jsonl", '{"text": "café"}\n')):
        write(tmp_path / name, content.encode("cp1252"))
    write(tmp_path / "d.txt", "naïve".encode("utf-16-le"))
    with pytest.raises(BadInput, match=r"a\.txt: not UTF-8; --encoding names another one"):
        read_all(tmp_path)
    documents, skipped = read_all(tmp_path, encoding="cp1252")
    assert [document.text for document in documents] == ["café"] * 3
    assert skipped.counts == {"UTF-16 without a byte order mark": 1}
    with pytest.raises(BadInput, match="encoding 'utf-16': name one that extends ASCII"):
        read_all(tmp_path, encoding="utf-16")


@pytest.mark.parametrize("name", ["a.jsonl.gzip", "a.jsonl.gz", "a.jsonl"])
def test_what_packs_a_file_is_told_by_its_content(tmp_path: Path, name: str) -> None:
    raw = b'{"text": "a"}\n'
    assert one(write(tmp_path / name, gzip.compress(raw))).text == "a"
    assert one(write(tmp_path / "b.csv.bz2", bz2.compress(b"text\nb\n"))).text == "b"


# --- folders


def test_a_folder_counts_what_it_passes_over_by_suffix(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"a")
    for name in ("b.xlsx", "c.xlsx", "d.png", "e.PNG", "Makefile", "f.2024-01-01", "old.doc"):
        write(tmp_path / name, b"x")
    for suffix, content in good_files.good().items():
        write(tmp_path / f"good{suffix}", content)
    documents, skipped = read_all(tmp_path)
    assert {Path(document.id).suffix for document in documents} >= {
        ".pdf",
        ".docx",
        ".html",
        ".ipynb",
        ".epub",
    }
    del skipped.counts["duplicate id"]  # the same records in several formats
    assert skipped.counts == {
        "of no format that is read (no suffix)": 1,
        "of no format that is read (.xlsx)": 2,
        "of no format that is read (.png)": 2,
        "of no format that is read (other)": 1,
        "of no format that is read (.doc)": 1,
    }
    assert skipped.firsts["of no format that is read (.png)"].startswith(f"{tmp_path}/d.png: of no format")


def test_without_the_extra_files_are_counted_with_the_cure(tmp_path: Path) -> None:
    """In a process where the libraries cannot be imported, and from there in the parser's own."""
    for name, content in (
        ("a.pdf", good_files.pdf(["x"])),
        ("b.docx", good_files.docx()),
        ("c.txt", b"text"),
    ):
        write(tmp_path / "in" / name, content)
    for name in ("pypdf", "docx"):
        write(tmp_path / "without" / f"{name}.py", b"raise ImportError('not installed')")
    program = (
        "from uptake.text.readers import *; s = Skipped(); print(len(list(read('in', skipped=s))), s.counts);"
        "list(read('in/a.pdf'))"
    )
    path = [str(tmp_path / "without"), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1 {\"needs: pip install 'uptake[files]'\": 2}\n"
    assert "nothing to read in in/a.pdf: in/a.pdf: needs: pip install 'uptake[files]'" in done.stderr


def test_every_format_is_found_by_its_file() -> None:
    found = formats.by_suffix()
    assert {
        found[suffix] for suffix in (".pdf", ".docx", ".html", ".csv", ".ipynb", ".md", ".epub", ".txt")
    } == {
        *("pdf", "docx", "html", "table", "notebook", "markdown", "epub", "plain"),
    }
    assert formats.of(Path("x/y.JSON.GZIP")) == "json_file" and formats.of(Path("x.gz")) is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pdf", b"%PDF-1.4 and no more", "broken PDF"),
        ("a.docx", b"PK\x03\x04 and no more", "no zip file, or a broken one"),
        ("a.docx", b"\xd0\xcf\x11\xe0 an old one", "encrypted .docx, or an old .doc"),
        ("a.docx", good_files.epub(["x"]), "broken .docx"),
        ("a.epub", good_files.docx(), "broken EPUB"),
        ("a.ipynb", b"[1]", "broken notebook; it has no cells"),
        ("a.ipynb", b'{"cells": []}', "empty text"),
        ("a.json", b"[]", "no record in it"),
        ("a.jsonl", b"\n \n", "no record in it"),
        ("a.csv", b"text\n", "no record in it"),
        ("a.csv", b"", "no text"),
        ("a.parquet", good_files.parquet(text=[]), "no record in it|no text"),
        ("a.html", b"<script>x</script>", "empty text"),
    ],
)
def test_files_that_hold_nothing_say_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(BadInput, match=f"nothing to read in .*: .*: (?:{reason})"):
        read_all(path)
    _, skipped = read_some(path)
    assert skipped.total == 1


def test_arrow_types_of_ids(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "id": pa.array([float("nan")] * 3)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [document.id[-1] for document in read_all(tmp_path / "a.parquet")[0]] == ["1", "2", "3"]
