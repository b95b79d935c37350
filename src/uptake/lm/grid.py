"""Rows of many requests that go on in one pass, each joining and leaving when it likes.

A table has a fixed width, its key-value cache in place, and a row a seat. Which table a row sits at follows
from its own length and its own change (low rank, scales) alone, and no operation of a pass mixes rows: so no
neighbour changes a bit of a row, however many there are, whoever joins or leaves, and whatever their weights
hold. `Grid.check` tries that on this very machine. A row is read by itself before it takes its seat.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from uptake.adaptation.delta import Delta, LowRank, Part
from uptake.adaptation.delta.scale import Scale
from uptake.adaptation.side_by_side import Stack, stacking
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.side_by_side import SideBySide, stands
from uptake.lm.wrappers import Prefixed, Routed

SIZES = (4, 8, 16, 32)  # rows of a pass: fewer take other kernels, with other last bits
NARROWEST = 64  # places of the smallest table; each next one has twice as many
AT_ONCE = 512  # tokens of a prompt that are read in one pass
CLOSE = 2e-3  # nats by which one pass for many rows may differ from a row by itself


@dataclass(frozen=True)
class Own:
    """All that is a row's own in a pass over the base: low rank and scales, and tokens before its text."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    prefix: tuple[int, ...] = ()

    @property
    def kind(self) -> "Kind":
        """What has to be alike for two rows to share a pass: what changes, by which rank, or which of it."""
        return tuple(sorted((path, _size(part)) for path, part in self.parts.items()))


Kind = tuple[tuple[str, str], ...]


def _size(part: Part) -> str:
    if isinstance(part, LowRank):
        return str(part.down.shape[0])
    assert isinstance(part, Scale)
    return f"{part.on} {part.ranges}"


def own(lm: LM, row: int = 0) -> Own | None:
    """Return what makes up row `row` of an LM; None where it is more than a pass over the base can have."""
    if type(lm) is Prefixed:
        inner = own(lm.inner, row)
        return None if inner is None or inner.prefix else Own(inner.parts, tuple(lm.prefixes[row]))
    if type(lm) is Routed:
        return own(lm.parts[row])
    if type(lm) is SideBySide:
        return _of(lm.deltas[row])
    if type(lm) is Causal and lm.deltas is not None:
        return _of(sum(lm.deltas, Delta(lm.fingerprint)))
    return None


def _of(delta: Delta) -> Own | None:
    parts = stacking(delta)
    return None if parts is None else Own(parts)


@dataclass(eq=False)
class Seat:
    """One row of a grid: it has read `length` tokens, and `log_probs` [vocabulary] say what follows."""

    own: Own
    log_probs: Tensor
    length: int
    table: "_Table | None" = None
    place: int = 0


class Grid:
    """Seats over one base model. For one thread."""

    def __init__(self, base: Causal, sizes: Sequence[int] = SIZES) -> None:
        if getattr(base.module, "reads_in_order", False):
            raise BadInput(
                f"{type(base.module).__name__} reads its last tokens side by side, and rows of a shared pass "
                "stand at places of their own: use a Transformer"
            )
        self.base, self.sizes = base, tuple(sizes)
        self._tables: dict[tuple[int, Kind], list[_Table]] = {}
        self._alone: dict[Kind, tuple[Stack | None, Causal]] = {}

    def takes(self, own: Own) -> bool:
        """Whether rows may differ in these weights within a pass."""
        return not own.parts or stands(self.base, [own.parts])

    def alone(self, own: Own) -> LM:
        """Return the LM that answers a row by itself, until another row of its kind is asked for."""
        lm = self._alone_of(own)
        return Prefixed(lm, [own.prefix]) if own.prefix else lm

    def join(self, own: Own, ids: Sequence[int]) -> Seat:
        """Read tokens, the opening one first, behind the row's prefix, and give the row a seat."""
        opening = self.base.tokenizer.opening
        text = list(ids[1:] if own.prefix and ids[0] == opening else ids)
        whole = torch.tensor([[*own.prefix, *text]], device=self.base.device)
        lm, cache = self._alone_of(own), DynamicCache()
        with torch.no_grad():
            for start in range(0, whole.shape[1], AT_ONCE):
                log_probs, cache = lm.read_on(whole[:, start : start + AT_ONCE], cache)
        seat = Seat(own, log_probs[0].float().cpu(), whole.shape[1])
        layers: Any = cache.layers
        self._seat(seat, [(layer.keys[0], layer.values[0]) for layer in layers])
        return seat

    def leave(self, seat: Seat) -> None:
        """Free a seat."""
        if seat.table is not None:
            seat.table.free(seat)
            seat.table = None
            self._tidy()

    def step(self, tokens: Mapping[Seat, int]) -> None:
        """Let rows read a token each; their `log_probs` say what follows."""
        for seat in tokens:
            if seat.table is not None and seat.length == seat.table.width:
                past = seat.table.kept(seat)
                seat.table.free(seat)
                self._seat(seat, past)
        self._tidy()
        for tables in list(self._tables.values()):
            for table in tables:
                here = {seat: token for seat, token in tokens.items() if seat.table is table}
                if here:
                    table.step(here)

    @property
    def seated(self) -> int:
        """How many rows have a seat."""
        return sum(len(table.seats) for tables in self._tables.values() for table in tables)

    @property
    def bytes(self) -> int:
        """The memory that the tables' caches take."""
        return sum(table.bytes for tables in self._tables.values() for table in tables)

    def width(self, length: int) -> int:
        """Return the places of the table where a row of this length sits."""
        width = NARROWEST
        while width < length:
            width *= 2
        return max(length, min(width, self.base.window))

    def _alone_of(self, own: Own) -> Causal:
        kind = own.kind
        if kind not in self._alone:
            stack = Stack(self.base.module, [name for name, _ in kind]) if kind else None
            self._alone[kind] = stack, self.base if stack is None else self.base.around(stack.module)
        stack, lm = self._alone[kind]
        if stack is not None:
            stack.put([own.parts], 1)
        return lm

    def _seat(self, seat: Seat, past: Sequence[tuple[Tensor, Tensor]]) -> None:
        key = self.width(seat.length + 1), seat.own.kind
        tables = self._tables.setdefault(key, [])
        table = next((each for each in tables if len(each.seats) < self.sizes[-1]), None)
        if table is None:
            table = _Table(self.base, key[0], [name for name, _ in key[1]], self.sizes, past)
            tables.append(table)
        table.take(seat, past)

    def _tidy(self) -> None:
        self._tables = {
            key: left for key, tables in self._tables.items() if (left := [t for t in tables if t.seats])
        }

    def check(self) -> str:
        """Return "" where no neighbour changes a bit here, else what does; sizes that differ leave one.

        A row goes on by itself, among rows of other texts and changes, and beside rows whose weights are no
        numbers, at every size. Raises whatever a model raises that cannot sit in a grid.
        """
        probe, crowd = _probes(self.base)
        plain = [self._told(self.sizes[:1], rows, 0) for rows in ([probe[0]], [probe[1]])]
        for row, (own, ids) in zip(plain, probe, strict=True):
            whole = torch.tensor([[*ids, *_GOES_ON]], device=self.base.device)
            with torch.no_grad():
                direct = self._alone_of(own).step(whole)[0][0, len(ids) - 1 :].float().cpu()
            if not torch.isfinite(row).all() or (row - direct).abs().max() > CLOSE:
                return "one pass for many rows differs from a row by itself"
        for size in self.sizes:
            place = 0 if size == self.sizes[0] else size - 1
            for one, told in zip(probe, plain, strict=True):
                rows = crowd[: size - 1]
                if torch.equal(self._told((size,), [*rows[:place], one, *rows[place:]], place), told):
                    continue
                if len(self.sizes) == 1:
                    return f"a neighbour changes a row among {size}"
                self.sizes = self.sizes[-1:]
                return self.check() or f"pinned to {self.sizes[-1]} rows"
        return ""

    def _told(self, sizes: tuple[int, ...], rows: "Sequence[_Probe]", place: int) -> Tensor:
        """Return what a row of some predicts over a few steps, [steps, vocabulary]."""
        grid = Grid(self.base, sizes)
        seats = [grid.join(own, ids) for own, ids in rows]
        told = [seats[place].log_probs]
        for token in _GOES_ON:
            grid.step(dict.fromkeys(seats, token))
            told.append(seats[place].log_probs)
        return torch.stack(told)


_Probe = tuple[Own, list[int]]
_GOES_ON = (1, 2, 3)


def _probes(base: Causal) -> tuple[list[_Probe], list[_Probe]]:
    """Return two rows, the base and a changed one, and rows to sit beside them, broken ones among these."""
    generator = torch.Generator().manual_seed(0)
    names = sorted(base.by_row)[-2:]

    def change(scale: float) -> Own:
        parts = {}
        for name in names:
            shape, transposed = base.module.get_parameter(name).shape, base.by_row[name]
            out, into = reversed(shape) if transposed else shape
            up, down = (torch.randn(s, generator=generator) * 0.02 for s in ((out, 8), (8, into)))
            device = base.device
            parts[name] = LowRank((up * scale).to(device), down.to(device), 1.0, transposed)
        return Own(parts)

    def text(length: int) -> list[int]:
        drawn = torch.randint(len(base.tokenizer), (length,), generator=generator)
        return [base.tokenizer.opening, *drawn.tolist()]

    length = min(24, base.window // 2)
    probe = [(Own(), text(length)), (change(1.0), text(length))]
    crowd = [
        (change(torch.nan if row % 5 == 1 else row % 3) if row % 2 else Own(), text(1 + row * 7 % length))
        for row in range(SIZES[-1])
    ]
    return probe, crowd


class _Table:
    """Seats of one width and one kind of change, stepped together."""

    def __init__(
        self,
        base: Causal,
        width: int,
        names: Sequence[str],
        sizes: Sequence[int],
        like: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        self.width, self._sizes = width, sizes
        self.seats: dict[int, Seat] = {}
        self._stack = Stack(base.module, names) if names else None
        self._lm = base if self._stack is None else base.around(self._stack.module)
        self._layers = [tuple(self._room(each, sizes[0]) for each in pair) for pair in like]

    def _room(self, like: Tensor, rows: int) -> Tensor:
        heads, _, size = like.shape
        return torch.zeros(rows, heads, self.width, size, dtype=like.dtype, device=like.device)

    @property
    def bytes(self) -> int:
        return sum(each.nbytes for pair in self._layers for each in pair)

    @property
    def _rows(self) -> int:
        return len(self._layers[0][0])

    def take(self, seat: Seat, past: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Give a row a seat, with what it has read: keys and values [heads, length, size] of each layer."""
        place = next(place for place in range(self._sizes[-1]) if place not in self.seats)
        if place >= self._rows:
            rows = next(size for size in self._sizes if size > place)
            self._layers = [
                tuple(torch.cat([each, self._room(each[0], rows - len(each))]) for each in pair)
                for pair in self._layers
            ]
        for rooms, own in zip(self._layers, past, strict=True):
            for room, read in zip(rooms, own, strict=True):
                room[place] = 0  # whatever sat here before, and be it no number
                room[place, :, : seat.length] = read
        seat.table, seat.place = self, place
        self.seats[place] = seat
        self._changed()

    def free(self, seat: Seat) -> None:
        del self.seats[seat.place]
        self._changed()

    def kept(self, seat: Seat) -> list[tuple[Tensor, Tensor]]:
        """Return what a row has read."""
        return [
            (keys[seat.place, :, : seat.length].clone(), values[seat.place, :, : seat.length].clone())
            for keys, values in self._layers
        ]

    def _changed(self) -> None:
        if self._stack is not None:
            rows = [self.seats[row].own.parts if row in self.seats else {} for row in range(self._rows)]
            self._stack.put(rows, self._rows)

    def step(self, tokens: Mapping[Seat, int]) -> None:
        """Let seats read a token each. Seats without one read a token too, and forget it again."""
        device = self._layers[0][0].device
        ids = torch.zeros(self._rows, 1, dtype=torch.long)
        columns = torch.zeros(self._rows, dtype=torch.long)
        for place, seat in self.seats.items():
            columns[place] = min(seat.length, self.width - 1)
        for seat, token in tokens.items():
            ids[seat.place] = token
        columns = columns.to(device)
        seen = torch.arange(self.width, device=device) <= columns[:, None]
        dtype = self._lm.dtype
        barred = torch.zeros(seen.shape, dtype=dtype, device=device)
        barred = barred.masked_fill(~seen, torch.finfo(dtype).min)[:, None, None]
        with torch.no_grad():
            log_probs, _ = self._lm.read_on(
                ids.to(device),
                _InPlace(self._layers, columns),
                position_ids=columns[:, None],
                attention_mask=barred,
            )
        told = log_probs.float().cpu()
        for seat in tokens:
            seat.log_probs, seat.length = told[seat.place], seat.length + 1


class _InPlace(DynamicCache):
    """Keys and values of all seats, written at each row's own column."""

    def __init__(self, layers: Sequence[Any], columns: Tensor) -> None:
        super().__init__()
        self._kept, self._columns = layers, columns
        self._rows = torch.arange(len(columns), device=columns.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._kept[layer_idx]
        keys[self._rows, :, self._columns] = key_states[:, :, 0].to(keys.dtype)
        values[self._rows, :, self._columns] = value_states[:, :, 0].to(values.dtype)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0
