"""Passages in a Lance table: the truth of a store, and the only file that imports Lance.

A Table is bound to one version. Whatever writes returns a new Table at the version it made; the
old one keeps answering as before. Predicates are built from integers only. This file knows
nothing of encoders, indexes or leases: whoever writes must hold the store's lease.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments
from lance.query import BooleanQuery, MatchQuery, Occur
from numpy.typing import NDArray

from uptake.codec import Malformed, loads
from uptake.errors import BadInput, Damaged
from uptake.store.inventory import Inventory
from uptake.store.passages import text_index
from uptake.store.passages.columns import FIELDS, Ids, as_ids, matrix_of, rounded, schema_of
from uptake.store.passages.manifest import named
from uptake.store.passages.table_files import (
    TableFiles,
    check_deletions,
    data_files,
    lance_errors,
    open_checked,
    reading,
)
from uptake.store.remote.objects import Location, options_of
from uptake.text import terms
from uptake.text.types import Passage, stable_hash
from uptake.text.utf8 import storable

_IDS_A_PREDICATE = 100_000
_QUERY_CHARACTERS = 1_000_000


class Table:
    """The passages of one version, or a part of them. `dimensions` is 0 where they have no vectors.

    `precision` is that of the stored vectors; whoever reads them gets float32.
    `has_pieces` says whether they can be searched by words in scripts that have no spaces between them.
    `path` is where the table lies; `label` names the part, empty for the whole.
    """

    def __init__(
        self,
        dataset: Any,
        path: Location,
        rows: slice | None = None,
        label: str = "",
        files: TableFiles | None = None,
    ) -> None:
        self._raw = dataset
        self._files = files or TableFiles(path)
        self.path = path
        self._first = rows.start if rows else 0
        self._rows = {"offset": rows.start, "limit": rows.stop - rows.start} if rows else {}
        self.label = label
        field = dataset.schema.field("vector") if "vector" in dataset.schema.names else None
        self.dimensions = field.type.list_size if field is not None else 0
        self.precision = (
            "float16" if field is not None and field.type.value_type == pa.float16() else "float32"
        )
        self.has_pieces = "pieces" in dataset.schema.names

    @classmethod
    def create(
        cls, path: Location, dimensions: int, with_pieces: bool = False, precision: str = "float32"
    ) -> "Table":
        """Make an empty table for vectors of `dimensions` numbers, or for none where it is 0."""
        with lance_errors(path):
            empty = schema_of(dimensions, with_pieces, precision).empty_table()
            return cls(
                lance.write_dataset(empty, str(path), mode="create", storage_options=options_of(path)), path
            )

    @classmethod
    def open(cls, path: Location, version: int | None = None, uid: str = "") -> "Table":
        """Open the newest version or the one named; raises BadInput where that one is gone, Damaged.

        `uid` is the store's, where it is known. What says where rows lie is checked now, the rows when they
        are first read; in object storage `verify` alone reads them to check them.
        """
        with lance_errors(path):
            if not path.is_dir():
                raise Damaged(f"{path}: missing; put it back from a copy or build the store again")

        def opened(number: int, inventory: Inventory) -> "Table":
            with lance_errors(path):
                dataset = lance.dataset(str(path), number, storage_options=options_of(path))
                pieces = dataset.get_fragments()
            check_deletions(path, inventory, pieces)
            return cls(dataset, path, files=TableFiles(path, inventory, data_files(pieces)))

        return open_checked(path, version, uid, opened)

    @property
    def _dataset(self) -> Any:
        """The dataset, once the files of its rows are found to be what was written."""
        self._files.check_rows()
        return self._raw

    def check_text_index(self, inventory: Inventory | None = None) -> None:
        """Raise Damaged unless the full-text indexes are what was written; `inventory` is a newer list."""
        with reading(self.path, self.version):
            parts = [str(part.uuid) for each in self._raw.describe_indices() for part in each.segments]
            self._files.check_index(parts, inventory)

    @property
    def version(self) -> int:
        """The version this table is bound to, counted by Lance."""
        return int(self._raw.version)

    @cached_property
    def contents(self) -> str:
        """Names what this version holds, 32 hexadecimal digits; see manifest.py."""
        with reading(self.path, self.version):
            return named(self._raw, self.label)

    @property
    def schema(self) -> Any:
        """The Arrow schema of every column that is not made of another."""
        return schema_of(self.dimensions, precision=self.precision)

    @property
    def count(self) -> int:
        """How many passages it holds."""
        return int(self._rows["limit"] if self._rows else self._raw.count_rows())

    @property
    def slots(self) -> int:
        """How many rows were written to the pieces it lies in; removing takes away whole pieces alone."""
        return sum(fragment.physical_rows for fragment in self._raw.get_fragments())

    def part(self, first: int, stop: int) -> "Table":
        """Return what is left of the rows that were written as number `first` up to `stop`, to be read.

        Rows that are added or removed later move no other row into another part, save where a whole
        piece goes or pieces that have lost many rows are joined.
        """
        rows = slice(self._before(first), self._before(stop))
        pieces = self._raw.get_fragments()
        ends = np.cumsum([piece.physical_rows for piece in pieces])
        mine = [
            p for p, end in zip(pieces, ends, strict=True) if end > first and end - p.physical_rows < stop
        ]
        return Table(self._raw, self.path, rows, f"rows-{first}-{stop}", self._files.of(mine))

    def _before(self, slot: int) -> int:
        """Return how many of the first `slot` rows written are still here."""
        left = 0
        for fragment in self._raw.get_fragments():
            if 0 < slot < fragment.physical_rows and fragment.num_deletions:
                with reading(self.path, self.version):
                    scanner = self._raw.scanner(columns=[], fragments=[fragment], with_row_address=True)
                    addresses = scanner.to_table()["_rowaddr"].to_numpy()
                left += int(((addresses & 0xFFFFFFFF) < slot).sum())
            elif slot > 0:
                left += min(slot, fragment.count_rows())
            slot -= fragment.physical_rows
        return left

    @cached_property
    def _keys(self) -> tuple[Ids, Ids]:
        with reading(self.path, self.version):
            columns = self._scan(["id", "document_key"]).to_table()
        return columns["id"].to_numpy(), columns["document_key"].to_numpy()

    @property
    def ids(self) -> Ids:
        """The passage ids in table order."""
        return self._keys[0]

    @property
    def document_keys(self) -> Ids:
        """The stable hash of each passage's document id, in table order."""
        return self._keys[1]

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self.ids, kind="stable")

    def positions(self, ids: Sequence[int] | Ids) -> NDArray[np.int64]:
        """Return where each id stands in table order, -1 for one that is not here."""
        wanted = as_ids(ids)
        if not len(self.ids):
            return np.full(len(wanted), -1, dtype=np.int64)
        near = np.searchsorted(self.ids, wanted, sorter=self._order)
        found = self._order[np.minimum(near, len(self.ids) - 1)]
        return np.where(self.ids[found] == wanted, found, -1).astype(np.int64)

    def rows(self, ids: Sequence[int] | Ids) -> list[Passage]:
        """Return the passages of these ids, in their order; BadInput for an id that is not here, Damaged."""
        columns = self._rows_at(ids, FIELDS)
        try:
            # What people put there is theirs: any JSON data by name.
            return [
                Passage(**row | {"meta": loads(dict[str, Any], row["meta"])}) for row in columns.to_pylist()
            ]
        except Malformed as error:
            raise Damaged(
                f"{self.path}: a passage's meta is not what was written ({error}); put it back from a copy "
                "or build the store again"
            ) from None

    def vectors(self, ids: Sequence[int] | Ids) -> NDArray[np.float32]:
        """Return one row of float32 an id, in their order; raises BadInput as `rows` does."""
        if not self.dimensions:
            raise BadInput(
                f"{self.path.parent}: a lexical store has no vectors; build one with --retriever dense"
            )
        return matrix_of(self._rows_at(ids, ["vector"])["vector"], self.dimensions)

    def _rows_at(self, ids: Sequence[int] | Ids, columns: list[str]) -> Any:
        places = self.positions(ids)
        if (places < 0).any():
            stranger = int(as_ids(ids)[places < 0][0])
            raise BadInput(f"{self.path.parent}: holds no passage {stranger} at version {self.version}")
        if not len(places):
            return self._raw.schema.empty_table().select(columns)
        # Reading in table order, each row once, is what Lance does fastest.
        unique, back = np.unique(places, return_inverse=True)
        with reading(self.path, self.version):
            return self._dataset.take((unique + self._first).tolist(), columns=columns).take(back)

    def _scan(self, columns: list[str] | None, rows: int | None = None) -> Any:
        return self._dataset.scanner(columns=columns, batch_size=rows, scan_in_order=True, **self._rows)

    def stream_vectors(self, rows: int = 8192) -> Iterator[NDArray[np.float32]]:
        """Yield all vectors in table order, at most about `rows` at a time."""
        with reading(self.path, self.version):
            for batch in self._scan(["vector"], rows).to_batches():
                yield matrix_of(batch["vector"], self.dimensions)

    def stream(self, rows: int = 8192) -> Iterator[Any]:
        """Yield every column of `schema` in table order as Arrow record batches."""
        with reading(self.path, self.version):
            yield from self._scan(self.schema.names, rows).to_batches()

    def append(self, passages: Sequence[Passage], vectors: NDArray[np.float32] | None) -> "Table":
        """Add passages, all or none of them; `vectors` has one row each. Raises BadInput, UptakeError."""
        rows = self._filled(passages, vectors)
        with lance_errors(self.path):
            options = options_of(self.path)
            made = lance.write_dataset(rows, str(self.path), mode="append", storage_options=options)
            return Table(made, self.path)

    def draft(self, passages: Sequence[Passage], vectors: NDArray[np.float32] | None) -> list[str]:
        """Write passages down beside the table; what is returned makes them part of it, by `commit`."""
        rows = self._filled(passages, vectors)
        with lance_errors(self.path):
            options = options_of(self.path)
            written = write_fragments(
                rows, str(self.path), rows.schema, mode="append", storage_options=options
            )
        return [json.dumps(fragment.to_json()) for fragment in written]

    def commit(self, drafts: Sequence[str]) -> "Table":
        """Add what `draft` wrote, on whatever machine, all or none of it, in this order."""
        with lance_errors(self.path):
            fragments = [FragmentMetadata.from_json(draft) for draft in drafts]
            change = lance.LanceOperation.Append(fragments)
            newest = self._latest().version
            options = options_of(self.path)
            made = lance.LanceDataset.commit(
                str(self.path), change, read_version=newest, storage_options=options
            )
            return Table(made, self.path)

    @property
    def data_files(self) -> set[str]:
        """The names of the files that its rows lie in."""
        return set(data_files(self._raw.get_fragments()))

    def _filled(self, passages: Sequence[Passage], vectors: NDArray[np.float32] | None) -> Any:
        columns: list[Any] = [
            pa.array([p.id for p in passages], pa.int64()),
            *(pa.array([getattr(p, name) for p in passages], pa.string()) for name in FIELDS[1:5]),
            pa.array([p.start for p in passages], pa.int64()),
            pa.array([json.dumps(dict(p.meta)) for p in passages], pa.string()),
            pa.array([stable_hash(p.document) for p in passages], pa.int64()),
        ]
        if self.has_pieces:
            columns.append(pa.array([" ".join(terms.pieces(p.text)) for p in passages], pa.string()))
        if self.dimensions:
            if vectors is None or vectors.shape != (len(passages), self.dimensions):
                raise BadInput(f"{self.path.parent}: passages need vectors of {self.dimensions} dimensions")
            flat = pa.array(rounded(vectors, self.precision).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, self.dimensions))
        schema = schema_of(self.dimensions, self.has_pieces, self.precision)
        return pa.Table.from_arrays(columns, schema=schema)

    def delete(self, ids: Sequence[int] | Ids) -> "Table":
        """Remove passages by their ids; those not here are ignored. All go at once, up to 100,000."""
        dataset = self._latest()
        numbers = [int(key) for key in ids]
        with lance_errors(self.path):
            for first in range(0, len(numbers), _IDS_A_PREDICATE):
                some = ",".join(map(str, numbers[first : first + _IDS_A_PREDICATE]))
                dataset.delete(f"id IN ({some})")
        return Table(dataset, self.path)

    def index_text(self) -> "Table":
        """Bring the full-text indexes up to date, making those that are missing."""
        dataset = self._latest()
        with lance_errors(self.path):
            text_index.update(dataset)
        return Table(dataset, self.path)

    @cached_property
    def _found_by_pieces(self) -> bool:
        """Whether any passage here has pieces: where none has, a search by them costs and finds nothing."""
        if not self.has_pieces:
            return False
        with reading(self.path, self.version):
            return bool(self._dataset.count_rows("pieces != ''"))

    def match(
        self, query: str, k: int, among: Sequence[int] | None = None
    ) -> tuple[Ids, NDArray[np.float32]]:
        """Return ids and BM25 scores of the at most k passages that share terms with `query`, best first.

        With `among` of those with these ids alone; their scores are what they are among all.

        Any string is a query; of a long one the terms that decide count (see text/terms.py). Scores for
        words and for pieces add up.
        """
        words, few = terms.searched(storable(query[:_QUERY_CHARACTERS]), self._found_by_pieces)
        clauses = [MatchQuery(" ".join(words), "text")] if words else []
        if self._found_by_pieces and (words or few):
            # Words are searched for as pieces too: that is what they are where they touch Chinese, say.
            clauses.append(MatchQuery(" ".join([*few, *words]), "pieces"))
        if k <= 0 or not clauses:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        both = BooleanQuery([(Occur.SHOULD, clause) for clause in clauses])
        wanted = both if len(clauses) > 1 else clauses[0]
        self.check_text_index()
        with reading(self.path, self.version):
            found = self._dataset.scanner(
                ["id", "_score"],
                filter=None if among is None else f"id IN ({','.join(str(int(key)) for key in among)})",
                prefilter=among is not None,
                full_text_query=wanted,
                limit=k,
            ).to_table()
        ids, scores = found["id"].to_numpy(), found["_score"].to_numpy()
        order = np.lexsort((ids, -scores))  # equal scores come in a fixed order
        return ids[order], scores[order]

    def compact(self) -> "Table":
        """Join small fragments into large ones; the rows stay as they are."""
        dataset = self._latest()
        with lance_errors(self.path):
            dataset.optimize.compact_files()
        return Table(dataset, self.path)

    def rewritten(self, with_text_index: bool) -> "Table":
        """Write what is left anew, the text index as well, which is not read for it."""
        dataset = self._latest()
        with lance_errors(self.path):
            for each in dataset.describe_indices():
                dataset.drop_index(each.name)
            dataset.optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
            if with_text_index:
                text_index.make(dataset)
        return Table(dataset, self.path)

    def drop_older(self) -> None:
        """Delete all older versions and whatever is in no version: readers bound to one can read no more."""
        with lance_errors(self.path):
            self._latest().cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)

    def outlived(self, age: timedelta) -> list[int]:
        """Return the versions that were replaced by a newer one longer ago than `age`."""
        with lance_errors(self.path):
            versions = sorted(self._latest().versions(), key=lambda about: about["version"])
        limit = datetime.now() - age
        return [old["version"] for old, new in itertools.pairwise(versions) if new["timestamp"] < limit]

    def drop(self, versions: Sequence[int]) -> None:
        """Delete versions and the files that only they use. Readers still bound to one can read no more."""
        with lance_errors(self.path):
            self._latest().cleanup_old_versions(versions=list(versions))

    @property
    def fragments(self) -> int:
        """In how many pieces the table lies on the disk."""
        return len(self._raw.get_fragments())

    def _latest(self) -> Any:
        with lance_errors(self.path):
            return lance.dataset(str(self.path), storage_options=options_of(self.path))
