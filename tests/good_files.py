"""A good file of each format, made by the format's own writers where there are any, and how it is damaged."""

import gzip
import io
import json
import random
import zipfile
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = [f"This is text number {number}, and it is long enough." for number in range(6)]


def pdf(pages: list[str | None]) -> bytes:
    """Return a PDF with a line of text a page; None makes a page that is a picture."""
    image = (
        b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 "
        b"/Length 1 >>\nstream\n\0\nendstream"
    )
    kids = " ".join(f"{5 + 2 * place} 0 R" for place in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        image,
    ]
    for place, page in enumerate(pages):
        drawn = b"/Im Do" if page is None else f"BT /F1 12 Tf 72 700 Td ({page}) Tj ET".encode()
        resources = "/Font << /F1 3 0 R >>" + (" /XObject << /Im 4 0 R >>" if page is None else "")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {6 + 2 * place} 0 R "
            f"/Resources << {resources} >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn))
    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def docx(title: str = "") -> bytes:
    """Return a Word file with headings, paragraphs and a table."""
    from docx import Document

    made = Document()
    made.core_properties.title = title
    made.add_heading("Start", 1)
    made.add_paragraph(TEXTS[0])
    table = made.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    made.add_heading("End", 2)
    made.add_paragraph(TEXTS[1])
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


def epub(chapters: list[str]) -> bytes:
    """Return a book of these chapters, each in HTML."""
    items = "".join(f'<item id="c{i}" href="c{i}.xhtml"/>' for i in range(len(chapters)))
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="in/book.opf"/></rootfiles></container>',
        )
        book.writestr(
            "in/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
            f"<metadata><dc:title>A book</dc:title></metadata><manifest>{items}</manifest>"
            f"<spine>{spine}</spine></package>",
        )
        for number, chapter in enumerate(chapters):
            book.writestr(f"in/c{number}.xhtml", chapter)
    return out.getvalue()


def parquet(**columns: list[object]) -> bytes:
    """Return a Parquet file of these columns."""
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def notebook() -> bytes:
    """Return a notebook of three cells."""
    cells = [
        {"cell_type": "markdown", "source": ["# Head\n", TEXTS[0]]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"text": "printed"}]},
        {"cell_type": "raw", "source": TEXTS[1]},
    ]
    return json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}).encode()


def good() -> dict[str, bytes]:
    """Return a good file of each suffix."""
    records = [{"id": f"r{i}", "text": text, "n": i} for i, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    rows = "id,text,n\n" + "".join(f'r{i},"{text}",{i}\r\n' for i, text in enumerate(TEXTS))
    page = f"<html><head><title>T</title></head><body><h1>Head</h1><p>{TEXTS[0]}<p>{TEXTS[1]}</body></html>"
    return {
        ".txt": "\n".join(TEXTS).encode(),
        ".py": b"def f():\n    return 1\n",
        ".md": f"---\ntitle: T\n---\n# Head\n{TEXTS[0]}\n\n## Two\n{TEXTS[1]}\n".encode(),
        ".rst": b"Head\n====\n\ntext\n",
        ".jsonl": lines,
        ".jsonl.gz": gzip.compress(lines, mtime=0),
        ".json": json.dumps(records, indent=1).encode(),
        ".csv": rows.encode(),
        ".tsv": rows.replace(",", "\t").encode(),
        ".html": page.encode(),
        ".ipynb": notebook(),
        ".pdf": pdf([*TEXTS[:2]]),
        ".docx": docx(),
        ".epub": epub([page, page.replace("Head", "Next")]),
        ".parquet": parquet(id=[record["id"] for record in records], text=TEXTS),
    }


def packed(content: bytes, draw: random.Random) -> Iterator[bytes]:
    """Yield for ever sound zip files, one part of each damaged as `damaged` does it."""
    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    near = {name: damaged(part, draw) for name, part in parts.items() if part}
    while True:
        name = draw.choice([*near])
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
            for own, part in parts.items():
                made.writestr(own, next(near[name]) if own == name else part)
        yield out.getvalue()


def damaged(content: bytes, draw: random.Random) -> Iterator[bytes]:
    """Yield for ever files that are near to a good one: flipped, cut, grown, exchanged, nested, recoded."""
    ends = [b"\n", b"\r", b"\r\n", b"\x85", "\u2028".encode()]
    pieces = [
        b"\0",
        b"\xff\xfe",
        b'"',
        b"'",
        b"[" * 300,
        b"(" * 300,
        b"<div>" * 500,
        b"{" * 120,
        b",,,",
        b"\\",
        b"NaN",
    ]
    pieces += [
        b"9" * 5000,
        b"<!--",
        b"]]>",
        b"PK\x03\x04",
        b"\x1f\x8b",
        b"/Length 999999999",
        b"\xed\xa0\x80",
    ]
    while True:
        raw = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 5, 20))):
            at = draw.randrange(len(raw) + 1)
            to = min(len(raw), at + draw.choice((1, 4, 30, 300)))
            kind = draw.randrange(7)
            if kind == 0 and at < len(raw):
                raw[at] ^= 1 << draw.randrange(8)
            elif kind == 1:
                del raw[at:]
            elif kind == 2:
                raw[at:at] = draw.choice(pieces)
            elif kind == 3:
                raw[at:to] = draw.randbytes(to - at)
            elif kind == 4:
                other = draw.randrange(len(raw) + 1)
                raw[at:to], raw[other : other + to - at] = raw[other : other + to - at], raw[at:to]
            elif kind == 5:
                del raw[at:to]
            else:
                raw = bytearray(bytes(raw).replace(b"\n", draw.choice(ends), draw.choice((1, -1))))
            if not raw:
                break
        if draw.randrange(20) == 0:
            text = bytes(raw).decode("latin1")
            raw = bytearray(text.encode(draw.choice(("utf-16", "utf-32", "utf-16-le", "cp037"))))
        yield bytes(raw)
