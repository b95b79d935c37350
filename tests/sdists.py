"""Toy source archives, made in the test."""

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping

LICENSED = b"Metadata-Version: 2.4\nName: toy\nLicense-Expression: MIT\n"
Change = Callable[[tarfile.TarInfo], None]


def packed(files: Mapping[str, bytes], top: str = "toy-1.0", change: Change | None = None) -> bytes:
    """Return a source archive of files by their path below its folder; `change` may spoil each member."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(content)
            if change:
                change(member)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)
