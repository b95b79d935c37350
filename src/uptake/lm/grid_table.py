"""The tables of a grid: seats of one width, whose keys and values lie in place, stepped in one pass."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uptake.adaptation.side_by_side import Stack
from uptake.lm.causal import Causal
from uptake.lm.grid_rows import Kind, Seat
from uptake.lm.in_place import InPlace


@dataclass(frozen=True, eq=False)
class Stacked:
    """A base whose rows may each have changes of one kind, which `stack` puts there; None for no change."""

    lm: Causal
    stack: Stack | None

    @classmethod
    def of(cls, base: Causal, kind: Kind) -> "Stacked":
        stack = Stack(base.module, [name for name, _ in kind]) if kind else None
        return cls(base if stack is None else base.around(stack.module), stack)


class Table:
    """Seats of one width and one kind of change, stepped together; one without seats holds no change."""

    def __init__(
        self, stacked: Stacked, width: int, sizes: Sequence[int], like: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        self.width, self._sizes, self.stacked = width, sizes, stacked
        self.seats: dict[int, Seat] = {}
        self._stack, self._lm = stacked.stack, stacked.lm
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
        where: dict[str, Any] = {"position_ids": columns[:, None], "attention_mask": barred}
        keys, cache = None, InPlace(self._layers, columns[:, None])
        with torch.no_grad():
            if any(seat.keyed for seat in tokens):
                log_probs, keys, _ = self._lm.read_on_with_keys(ids.to(device), cache, **where)
                keys = keys[:, -1].cpu()
            else:
                log_probs, _ = self._lm.read_on(ids.to(device), cache, **where)
        told = log_probs.float().cpu()
        for seat in tokens:
            seat.log_probs, seat.length = told[seat.place], seat.length + 1
            if keys is not None and seat.keyed:
                seat.keys = keys[seat.place]
