"""Source archives nobody vouches for, and the index they come from: read whole, or refused in one line."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh_text import archives
from fresh_text.archives import read_archive
from fresh_text.index import fetch, listed
from fresh_text.packages import Release
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdists import LICENSED, packed
from uptake.errors import BadInput, Missing
from uptake.text.files import Skipped


def written(folder: Path, content: bytes) -> Path:
    path = folder / "toy-1.0.tar.gz"
    path.write_bytes(content)
    return path


def test_an_archive_is_read_in_memory(tmp_path: Path) -> None:
    skipped = Skipped()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, kind in (("toy-1.0", tarfile.DIRTYPE), ("toy-1.0/link", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name, content in (("PKG-INFO", LICENSED), ("toy/a.py", b"A = 1\n"), ("long", bytes(5 << 20))):
            member = tarfile.TarInfo(f"toy-1.0/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = read_archive(written(tmp_path, raw.getvalue()), skipped)
    assert found.files == {"PKG-INFO": LICENSED, "toy/a.py": b"A = 1\n"} and found.licence == "MIT"
    assert skipped.counts == {"link or device": 1, "longer than 4194304 bytes": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["toy-1.0.tar.gz"], "nothing was unpacked"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "other-1.0/x", "toy-1.0/../x", "toy-1.0/a\\x", ".."])
def test_a_path_outside_the_archive_refuses_it_whole(tmp_path: Path, name: str) -> None:
    def change(member: tarfile.TarInfo) -> None:
        member.name = name if member.name.endswith("evil") else member.name

    path = written(tmp_path, packed({"a.py": b"A = 1\n", "evil": b"x"}, change=change))
    with pytest.raises(BadInput, match="outside its own folder; it is refused"):
        read_archive(path)


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, packed({"a": bytes(3 << 20), "b": b"x", "c": b"y"}))
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    with pytest.raises(BadInput, match="more than 2 members"):
        read_archive(path)
    monkeypatch.setattr(archives, "MOST_BYTES", 1 << 20)
    with pytest.raises(BadInput, match="unpacks to more than 1048576 bytes"):
        read_archive(path)


WHOLE = packed(
    {"PKG-INFO": LICENSED, "toy/a.py": b"def f(size=3): ...\n" * 90, "toy/b.py": bytes(range(256)) * 8}
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.booleans())
def test_a_damaged_archive_is_one_line(tmp_path: Path, place: int, value: int, cut: bool) -> None:
    content = WHOLE[:place] if cut else WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :]
    try:
        found = read_archive(written(tmp_path, content))
    except BadInput as error:
        assert "\n" not in str(error) and str(error).startswith("toy-1.0.tar.gz: ")
    else:
        assert not cut and found.files.keys() == {"PKG-INFO", "toy/a.py", "toy/b.py"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4095), st.integers(0, 255))
def test_a_damaged_header_is_one_line_or_a_smaller_archive(tmp_path: Path, place: int, value: int) -> None:
    raw = bytearray(gzip.decompress(WHOLE))
    raw[place] = value
    try:
        found = read_archive(written(tmp_path, gzip.compress(bytes(raw))))
    except BadInput as error:
        assert "\n" not in str(error)
    else:
        assert all(not name.startswith(("/", "..")) for name in found.files)


DIGEST = hashlib.sha256(WHOLE).hexdigest()
RELEASE = Release("toy_package", "1.0", "2025-06-01", DIGEST, "MIT", "2025-05-01", "toys")
LISTED = [
    ("toy_package-0.9.tar.gz", "old.tar.gz", "2025-05-01T00:00:00Z"),
    ("toy_package-1.0-py3-none-any.whl", "toy.whl", "2025-06-01T00:00:00Z"),
    ("toy_package-1.0.tar.gz", "toy.tar.gz", "2025-06-01T00:00:00Z"),
]
FILES = [{"filename": name, "url": f"../../files/{file}", "upload-time": day} for name, file, day in LISTED]
PAGE = json.dumps({"files": [*FILES, {"filename": "broken"}]}).encode()


def opener(**pages: bytes) -> Callable[[str], bytes]:
    """Return an index that holds these pages by the last part of their address."""

    def opened(address: str) -> bytes:
        assert address.startswith("https://index.test/"), address
        name = address.rstrip("/").rpartition("/")[2].partition(".")[0].replace("-", "_")
        if name not in pages:
            raise Missing(f"{name}: gone from the index")
        return pages[name]

    return opened


def test_an_archive_is_fetched_once_and_by_its_digest(tmp_path: Path) -> None:
    found = fetch(RELEASE, tmp_path, "https://index.test/simple", opener(toy_package=PAGE, toy=WHOLE))
    assert found.path.read_bytes() == WHOLE and found.first == "2025-05-01"
    assert fetch(RELEASE, tmp_path, "https://index.test/simple", opener()) == found, (
        "it is there: nobody is asked"
    )
    found.path.write_bytes(WHOLE[:-1])
    with pytest.raises(Missing, match="gone from the index"):
        fetch(RELEASE, tmp_path, "https://index.test/simple", opener())


def test_a_page_in_html_has_the_same_files() -> None:
    page = b'<a href="../../files/toy_package-1.0.tar.gz#sha256=00" data-x>toy</a><a name="n"></a>'
    (file,) = listed(page, "https://index.test/simple/toy-package/")
    assert (
        file.name == "toy_package-1.0.tar.gz"
        and file.address == "https://index.test/files/toy_package-1.0.tar.gz"
    )


@pytest.mark.parametrize(
    "pages, said",
    [
        ({}, "toy_package: gone from the index"),
        ({"toy_package": b"[]"}, "toy_package 1.0: no source archive of it in the index any more"),
        ({"toy_package": b"<html>"}, "toy_package 1.0: no source archive of it in the index any more"),
        (
            {"toy_package": PAGE, "toy": b"other"},
            "serves another file than the pinned one",
        ),
    ],
)
def test_what_the_index_has_no_more_is_one_line(tmp_path: Path, pages: dict[str, bytes], said: str) -> None:
    with pytest.raises(Missing, match=said):
        fetch(RELEASE, tmp_path, "https://index.test/simple", opener(**pages))
    assert not [*tmp_path.iterdir()]
