"""Source archives by name and version from the package index that pip uses; nothing of them is run.

pip itself would run an archive's build to learn its metadata, so only pip's settings are asked for, and
the file is fetched by the index's own page (PEP 503, 691 and 700).
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

from fresh_text.packages import Release
from uptake.errors import Missing
from uptake.sealed import write_whole

MOST_BYTES = 64 << 20  # of an archive, or of a page of the index
SECONDS = 60.0  # without a byte, until it is given up
PAGE = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"

Opener = Callable[[str], bytes]  # address -> content; raises Missing


@dataclass(frozen=True, slots=True)
class Listed:
    """One file on a package's page; `uploaded` is a day, "" where the index does not say."""

    name: str
    address: str
    uploaded: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """An archive on the disk, and the day of the package's first upload, "" where nobody asked or says."""

    path: Path
    first: str


def fetch(release: Release, folder: Path, index: str, opener: Opener) -> Fetched:
    """Return the archive of a release, fetched unless `folder` holds it.

    Raises Missing where the index has it no more, cannot be reached, or serves another file.
    """
    page = urljoin(index.rstrip("/") + "/", canonical(release.package) + "/")
    path = folder / f"{release.name}.tar.gz"
    told = folder / f"{release.name}.first"  # what the index said beside it
    if path.exists() and told.exists() and _digest(path.read_bytes()) == release.sha256:
        return Fetched(path, told.read_text())
    files = listed(opener(page), page)
    first = min((file.uploaded for file in files if file.uploaded), default="")
    (address,) = [file.address for file in files if _is_source(file.name, release)][:1] or [""]
    if not address:
        raise Missing(f"{release.package} {release.version}: no source archive of it in the index any more")
    content = opener(address)
    if _digest(content) != release.sha256:
        raise Missing(
            f"{release.package} {release.version}: the index serves another file than the pinned one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    write_whole(told, first.encode())
    return Fetched(path, first)


def canonical(package: str) -> str:
    """Return a package's name as indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def listed(page: bytes, address: str) -> list[Listed]:
    """Return the files that a page of the index lists, as JSON or as HTML; none of a page that is neither."""
    try:
        record = json.loads(page)
    except ValueError:
        links = _Links()
        links.feed(page.decode("utf8", "replace"))
        named = [(urlsplit(link).path.rpartition("/")[2], urldefrag(link)[0], "") for link in links.found]
    else:
        files = record.get("files") if isinstance(record, dict) else None
        named = [
            (str(file["filename"]), str(file["url"]), str(file.get("upload-time") or "")[:10])
            for file in (files if isinstance(files, list) else [])
            if isinstance(file, dict) and {"filename", "url"} <= file.keys()
        ]
    return [Listed(name, urljoin(address, link), day) for name, link, day in named]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _is_source(name: str, release: Release) -> bool:
    stem, _, version = name.removesuffix(".tar.gz").rpartition("-")
    return (
        name.endswith(".tar.gz")
        and version == release.version
        and canonical(stem) == canonical(release.package)
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pip_index() -> str:
    """Return the address of the index that pip is set up to use. Raises Missing without pip."""
    if address := os.environ.get("PIP_INDEX_URL"):
        return address
    for question in (["config", "get", "global.index-url"], ["download", "--help"]):
        command = [sys.executable, "-m", "pip", *question]
        wide = os.environ | {"COLUMNS": "1000"}
        answer = subprocess.run(command, capture_output=True, text=True, check=False, env=wide)
        found = re.search(
            r"(?:--index-url.*?\(default )?((?:https?|file)://[^\s)]+)", answer.stdout, re.DOTALL
        )
        if answer.returncode == 0 and found:
            return found[1]
    raise Missing("pip does not say which index it uses: install pip, or set PIP_INDEX_URL")


def open_address(address: str) -> bytes:
    """Return what an address holds. Raises Missing, which names the package, where it cannot be had."""
    named = urlsplit(address).path.rstrip("/").rpartition("/")[2]
    if urlsplit(address).scheme not in ("http", "https", "file"):
        raise Missing(f"{named}: the index names an address that is none of http, https and file")
    request = urllib.request.Request(address, headers={"Accept": PAGE})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            content: bytes = answer.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        gone = "gone from the index" if error.code in (404, 410) else f"the index answers {error.code}"
        raise Missing(f"{named}: {gone}") from error
    except (OSError, ValueError) as error:  # no network, a name that is not known, too slow
        raise Missing(f"{named}: the index cannot be reached ({getattr(error, 'reason', error)})") from error
    if len(content) > MOST_BYTES:
        raise Missing(f"{named}: longer than {MOST_BYTES} bytes")
    return content
