"""Zip files that other formats are made of: what they unpack to is summed up before anything is unpacked."""

import io
import zipfile

from uptake.text.files import SkipError
from uptake.text.reading import Reading

_PARTS = 20_000


def check_zip(raw: bytes, reading: Reading) -> None:
    """Raise SkipError for what is no zip file, is encrypted, or unpacks to too much.

    Sizes that lie do not help: reading a part stops at the size that was named here.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            parts = archive.infolist()
    except MemoryError:
        raise
    except Exception:  # of a damaged directory: struct's, zipfile's and more
        raise SkipError("no zip file, or a broken one, which this format is made of") from None
    most, beyond = reading.most_unpacked(len(raw))
    if sum(part.file_size for part in parts) > most or len(parts) > _PARTS:
        raise SkipError(beyond)
    if any(part.flag_bits & 1 for part in parts):
        raise SkipError("encrypted zip file; remove its password first")
