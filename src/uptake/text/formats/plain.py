"""Plain text, sources among it: a file is one document."""

from collections.abc import Iterator

from uptake.text.reading import File, Format, Item
from uptake.text.records import document

# What people write and no other format here reads. What machines write (.xml, .lock, .log ...) is not
# here: one such file can outweigh all the sources around it.
_WRITTEN = """
    adoc bash c cc cfg clj cpp cs css cu cuh cxx erl ex go h hpp hs ini java jl js jsx kt lua mjs
    ml org php pl proto py pyi pyx r rb rs rst scala scss sh sql swift tex toml ts tsx txt yaml yml
"""


def read(file: File) -> Iterator[Item]:
    """Yield the one document of a file."""
    text = {file.reading.text_key: file.whole_text()}
    yield document(text, file.name, file.reading), file.where


format = Format(tuple(f".{name}" for name in _WRITTEN.split()), read)
