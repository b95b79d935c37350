"""A place in an object store, used as the store uses paths: objects are written whole or not at all.

Tried with S3 as an emulator gives it. Table data does not pass through here: Lance reads and writes
objects itself, with the same options.
"""

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from uptake.errors import BadInput, Missing

PATIENCE = timedelta(seconds=30)  # after which what failed is not tried again
_CLOUDS = {"s3": "aws_", "gs": "google_", "az": "azure_"}  # scheme -> how the names of its options begin


class ChangedError(OSError):
    """An object is not what whoever wants to replace it has seen."""


@dataclass(frozen=True)
class ObjectPath:
    """A key of a bucket, or what keys begin with. `options` are as `pylance` and `obstore` take them.

    Without options (secrets among them: they are not shown) the environment's are used, such as
    AWS_ACCESS_KEY_ID. Methods raise OSError.
    """

    root: str  # scheme and bucket
    key: str
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.root}/{self.key}"

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self.root, f"{self.key}/{name}", self.options)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectPath":
        """The same without its last part."""
        return ObjectPath(self.root, self.key.rpartition("/")[0], self.options)

    def is_file(self) -> bool:
        """Tell whether there is such an object."""
        try:
            with self._python_errors():
                self._library.head(self._bucket, self.key)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Tell whether any object lies below."""
        return next(self.sizes(), None) is not None

    def exists(self) -> bool:
        """Tell whether there is anything of this name."""
        return self.is_file() or self.is_dir()

    def read_bytes(self) -> bytes:
        """Return the object whole; raises FileNotFoundError."""
        return self.read()[0]

    def read(self) -> "tuple[bytes, Tag]":
        """Return the object whole, and the tag of what it holds; raises FileNotFoundError."""
        with self._python_errors():
            found = self._library.get(self._bucket, self.key)
            return bytes(found.bytes()), _tag(found.meta)

    def write_bytes(self, data: bytes) -> None:
        """Replace the object."""
        with self._python_errors():
            self._library.put(self._bucket, self.key, data)

    def write_if(self, data: bytes, tag: "Tag") -> "Tag":
        """Replace the object of this tag, make it where the tag is empty; return the new tag.

        Of several who try at once one succeeds, the others are told by ChangedError.
        """
        with self._python_errors():
            return _tag(self._library.put(self._bucket, self.key, data, mode=dict(tag) or "create"))

    def sha256(self) -> str:
        """Return the SHA-256 of the object, in hexadecimal, without holding all of it."""
        digest = hashlib.sha256()
        with self._python_errors():
            for part in self._library.get(self._bucket, self.key).stream():
                digest.update(part)
        return digest.hexdigest()

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the name, from here on, and the bytes of each object below."""
        with self._python_errors():
            for some in self._library.list(self._bucket, f"{self.key}/"):
                for about in some:
                    yield about["path"].removeprefix(f"{self.key}/"), about["size"]

    def delete_object(self) -> None:
        """Delete this object."""
        with self._python_errors():
            self._library.delete(self._bucket, self.key)

    def delete(self) -> None:
        """Delete every object below."""
        names = [f"{self.key}/{name}" for name, _ in self.sizes()]
        with self._python_errors():
            for start in range(0, len(names), 1000):
                self._library.delete(self._bucket, names[start : start + 1000])

    @property
    def _library(self) -> Any:
        try:
            import obstore
        except ImportError as error:
            raise Missing(f"{self}: object storage needs obstore: pip install 'uptake[objects]'") from error
        return obstore

    @property
    def _bucket(self) -> Any:
        return _opened(self.root, self.options)

    @contextlib.contextmanager
    def _python_errors(self) -> Iterator[None]:
        errors = self._library.exceptions
        try:
            yield
        except (errors.AlreadyExistsError, errors.PreconditionError) as error:
            raise ChangedError(f"{self}: somebody else has written it") from error
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise PermissionError(str(error).partition("\n")[0]) from error
        except errors.BaseError as error:
            raise OSError(str(error).partition("\n")[0]) from error


Location = Path | ObjectPath
Tag = Mapping[str, str]  # names what an object holds, in the service's own terms; empty for no object


def options_of(path: Location) -> dict[str, str] | None:
    """Return the storage options of an object's place, as Lance takes them; None for a folder."""
    return dict(path.options) if isinstance(path, ObjectPath) else None


def locate(path: "str | Location", options: Mapping[str, str] | None = None) -> Location:
    """Return where a store lies: a folder, or a URI such as s3://bucket/notes.store; raises BadInput."""
    if isinstance(path, ObjectPath):
        return path
    if not isinstance(path, str | Path):
        raise BadInput(f"store {path!r}: give the name of a folder, or a URI such as s3://bucket/notes.store")
    if isinstance(path, Path) or "://" not in path:
        if options:
            raise BadInput(f"{path}: storage options are for URIs such as s3://bucket/notes.store")
        return Path(path).absolute()
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    key = key.strip("/")
    if scheme not in _CLOUDS or not bucket or not key or re.search(r"//|(^|/)\.\.?(/|$)", key):
        raise BadInput(f"{path}: give a folder, or {'://, '.join(_CLOUDS)}://, a bucket and a name in it")
    return ObjectPath(f"{scheme}://{bucket}", key, tuple(sorted((options or {}).items())))


def _tag(about: Mapping[str, Any]) -> Tag:
    return {name: str(about[name]) for name in ("e_tag", "version") if about[name]}


@functools.lru_cache(16)
def _opened(root: str, options: tuple[tuple[str, str], ...]) -> Any:
    from obstore.store import from_url

    cloud = _CLOUDS[root.partition("://")[0]]
    # Lance takes both kinds of options from one list.
    own: Any = {name: value for name, value in options if name.startswith(cloud)}
    client: Any = {name: value for name, value in options if not name.startswith(cloud)}
    try:
        # By itself the library tries for three minutes before it says that nobody answers.
        retry: Any = {"retry_timeout": PATIENCE}
        return from_url(root, config=own or None, client_options=client or None, retry_config=retry)
    except BaseException as error:
        # A panic inside Rust arrives as a BaseException of its own; others of those are not ours.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadInput(f"{root}: {str(error).splitlines()[0]}") from error
