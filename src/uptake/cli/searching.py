"""Options that say how a store is searched: by words, by vectors or both, and by which encoder of queries."""

from typing import TYPE_CHECKING, Annotated

from uptake.cli.options import MAIN, option

if TYPE_CHECKING:
    from uptake.text.types import QueryEncoder as AnyQueryEncoder

SearchBy = Annotated[
    str | None,
    option(
        MAIN,
        "WAY",
        "How a hybrid store is searched: hybrid, by the ranks of both; sum, by the BM25 score plus "
        "--vector-weight times the vectors'; dense or lexical. Default: as it was built.",
    ),
]
VectorWeight = Annotated[
    float,
    option(MAIN, "N", "What a cosine of 1 counts for in BM25 points, with --search-by sum.", least=0),
]
QueryEncoder = Annotated[
    str | None,
    option(MAIN, "FILE|DIR", "The queries' own encoder, written by `uptake train retriever`."),
]


def query_encoder(file: str | None, device: str) -> "AnyQueryEncoder | None":
    """Return the query encoder in a file or a folder, if one is named."""
    if file is None:
        return None
    from uptake.retrievers.query_encoder import load_query_encoder

    return load_query_encoder(file, device)
