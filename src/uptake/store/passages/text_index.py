"""The full-text indexes of a Lance dataset that is at hand: which there are, how they cut, kept up to date.

`text` is cut into words between spaces; `pieces` holds what it cannot be found by that way (see
text/terms.py), cut already. Both take off English endings and accents and leave out stop words.
"""

from typing import Any

_SETTINGS: dict[str, dict[str, Any]] = {
    "text": {},
    "pieces": {"base_tokenizer": "whitespace", "max_token_length": None},
}


def columns(dataset: Any) -> list[str]:
    """Return the columns of a dataset that a search by words reads."""
    return [column for column in _SETTINGS if column in dataset.schema.names]


def make(dataset: Any) -> None:
    """Make every full-text index that is missing."""
    made = {index.name for index in dataset.describe_indices()}
    for column in columns(dataset):
        if (name := _name(column)) not in made:
            settings = _SETTINGS[column]
            dataset.create_scalar_index(column, "INVERTED", name, with_position=False, **settings)


def update(dataset: Any) -> None:
    """Bring the full-text indexes up to date, making those that are missing."""
    make(dataset)
    stats = [dataset.stats.index_stats(_name(column)) for column in columns(dataset)]
    if any(each["num_unindexed_rows"] for each in stats):
        dataset.optimize.optimize_indices()


def _name(column: str) -> str:
    return f"{column}_idx"
