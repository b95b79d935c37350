"""Documents of a store put together again from their passages, drawn at random."""

import numpy as np

from uptake.store.passages.table import Table
from uptake.text.types import Document

_LOOKED_AT = 20  # documents for each that is wanted


def sample_documents(
    table: Table, count: int, characters: int, generator: np.random.Generator
) -> list[Document]:
    """Return at most `count` documents, drawn uniformly; of a long one as many characters, from one place on.

    What a document has in white space alone between two passages is not stored, and missing here. Documents
    of fewer characters come only where there are not enough others.
    """
    keys, ids = table.document_keys, table.ids
    found: list[Document] = []
    short: list[Document] = []
    # In a store of short documents alone not every one of them is looked at.
    for key in generator.permutation(np.unique(keys))[: _LOOKED_AT * count]:
        if len(found) == count:
            break
        passages = sorted(table.rows(ids[keys == key].tolist()), key=lambda passage: passage.start)
        # A piece of a long document begins at a passage, anywhere that leaves enough behind it.
        sizes = np.cumsum([len(passage.text) for passage in passages][::-1])[::-1]
        first = int(generator.integers(max(1, int((sizes >= characters).sum()))))
        text = "".join(passage.text for passage in passages[first:])[:characters]
        whole = Document(passages[0].document, text, passages[0].group)
        (found if len(text) == characters else short).append(whole)
    return (found + short)[:count]
