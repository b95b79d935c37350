"""Names a version of a table by its manifest, which is small whatever the table holds.

The manifest lists the pieces that the rows lie in, in order, what was removed of each, and the indexes. Lance
gives each file a random name of its own and never changes it (its sum is in checksums.sha256), so of two
copies of a table that were changed apart the names differ, and any change gives another name.
"""

import hashlib
import json
from typing import Any


def named(dataset: Any, label: str) -> str:
    """Return 32 hexadecimal digits that name this version of a Lance dataset, or the part `label` of it."""
    pieces = [fragment.metadata.to_json() for fragment in dataset.get_fragments()]
    indexes = [
        [index.name, [str(segment.uuid) for segment in index.segments]]
        for index in dataset.describe_indices()
    ]
    parts = [dataset.version, label, pieces, indexes, str(dataset.schema)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
