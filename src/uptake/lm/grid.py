"""Rows of many requests that go on in one pass, each joining and leaving when it likes.

A table has a fixed width, its key-value cache in place, and a row a seat. Which table a row sits at follows
from its own length and its own change (low rank, scales) alone, and no operation of a pass mixes rows: so no
neighbour changes a bit of a row, however many there are, whoever joins or leaves, and whatever their weights
hold. `Grid.check` tries that on this very machine. A row is read by itself before it takes its seat.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from uptake.adaptation.delta import LowRank
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.experts import mixed
from uptake.lm.grid_rows import Beginning, Heard, Kind, Own, RowMixture, Seat
from uptake.lm.grid_table import Stacked, Table
from uptake.lm.side_by_side import stands
from uptake.lm.wrappers import Prefixed

SIZES = (4, 8, 16, 32)  # rows of a pass: fewer take other kernels, with other last bits
NARROWEST = 64  # places of the smallest table; each next one has twice as many
SPARE = 16  # kinds of change whose stacks are kept though no table holds them: one is dear to make
AT_ONCE = 512  # tokens of a prompt that are read in one pass
CLOSE = 2e-3  # nats by which one pass for many rows may differ from a row by itself


class Grid:
    """Seats over one base model. For one thread."""

    def __init__(self, base: Causal, sizes: Sequence[int] = SIZES) -> None:
        if getattr(base.module, "reads_in_order", False):
            raise BadInput(
                f"{type(base.module).__name__} reads its last tokens side by side, and rows of a shared pass "
                "stand at places of their own: use a Transformer"
            )
        self.base, self.sizes = base, tuple(sizes)
        self._tables: dict[tuple[int, Kind], list[Table]] = {}
        self._alone: dict[Kind, Stacked] = {}
        self._spare: dict[Kind, Stacked] = {}  # of tables that were left

    def takes(self, own: Own) -> bool:
        """Whether rows may differ in these weights within a pass, and their keys are those of the base."""
        if own.experts:
            return all(self.takes(each) for each in own.experts)
        keyed = own.mixture is None or own.mixture.key_model is self.base
        return keyed and (not own.parts or stands(self.base, [own.parts]))

    def alone(self, own: Own) -> LM:
        """Return the LM that answers a row by itself, until another row of its kind is asked for."""
        lm: LM = self._alone_of(own)
        lm = Prefixed(lm, [own.prefix]) if own.prefix else lm
        return lm if own.mixture is None else own.mixture.around(lm)

    def begin(self, own: Own, ids: Sequence[int]) -> Beginning:
        """Read tokens as `join` does for a row that mixes nothing, and take no seat yet."""
        return self._begin(own, ids, False, False)[0]

    def join(self, own: Own, ids: Sequence[int], begun: Beginning | None = None) -> Seat:
        """Read tokens, the opening one first, behind the row's prefix, and give the row a seat.

        What has `begun` as this very row, with these tokens, is not read again.
        """
        if own.experts:
            return self._join_experts(own, ids)
        mixture, plain = own.mixture, not (own.parts or own.prefix)
        if begun is not None and mixture is None and begun.ids == tuple(ids):
            return self._seated(own, begun, False)
        every = mixture is not None and mixture.follows
        seat, log_probs, keys = self._read(own, ids, every, keyed=mixture is not None and plain)
        if mixture is not None:
            if not plain:  # keys are the base's own: it reads the text as well
                seat.beside, _, keys = self._read(Own(), ids, False, keyed=True)
            read = len(log_probs)
            heard = Heard(mixture, log_probs, keys[-read:], torch.tensor([*ids[-read:]]), None)
            try:
                ((seat.log_probs, seat.before),) = type(mixture).mixed([heard])
            except BaseException:
                self.leave(seat)
                raise
        return seat

    def _join_experts(self, own: Own, ids: Sequence[int]) -> Seat:
        """Let every expert read the text and take a seat; how well each predicted it weighs them."""
        assert own.sharing is not None
        seat = Seat(own, torch.empty(0), len(ids), before=own.sharing.start(torch.device("cpu")))
        told, following = list[Tensor](), torch.tensor(ids[1:], dtype=torch.long)[:, None]
        try:
            for each in own.experts:
                member, log_probs, _ = self._read(each, ids, True, keyed=False)
                member.log_probs = log_probs[-1].clone()  # a view would keep what follows every place
                seat.members = (*seat.members, member)
                told.append(log_probs[:-1].gather(1, following)[:, 0])
        except BaseException:
            self.leave(seat)
            raise
        _, seat.before = own.sharing.along(seat.before, torch.stack(told, -1))
        _weigh(seat)
        return seat

    def leave(self, seat: Seat) -> None:
        """Free a seat."""
        for one in (seat, seat.beside, *seat.members):
            if one is not None and one.table is not None:
                one.table.free(one)
                one.table = None
        self._tidy()

    def step(self, tokens: Mapping[Seat, int]) -> None:
        """Let rows read a token each; their `log_probs` say what follows, or `failed` why they do not."""
        mixing = {seat: token for seat, token in tokens.items() if seat.own.mixture is not None}
        tokens = {**tokens, **{seat.beside: token for seat, token in mixing.items() if seat.beside}}
        weighed = {seat: token for seat, token in tokens.items() if seat.members}
        for seat, token in weighed.items():
            assert seat.own.sharing is not None
            said = torch.stack([member.log_probs[token] for member in seat.members])
            seat.before = seat.own.sharing.after(seat.before, said)
            tokens = {**tokens, **dict.fromkeys(seat.members, token)}
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
        self._mix(mixing)
        for seat in weighed:
            _weigh(seat)
            seat.length += 1

    def _mix(self, tokens: Mapping[Seat, int]) -> None:
        """Let rows mix what was predicted with what their keys find, all of a kind in one call."""
        kinds: dict[type[RowMixture], list[tuple[Seat, Heard[RowMixture]]]] = {}
        for seat, token in tokens.items():
            mixture, keyed = seat.own.mixture, seat.beside or seat
            assert mixture is not None and keyed.keys is not None
            ids = torch.tensor([token])
            heard = Heard(mixture, seat.log_probs[None], keyed.keys[None], ids, seat.before)
            kinds.setdefault(type(mixture), []).append((seat, heard))
        for kind, rows in kinds.items():
            try:
                found = kind.mixed([heard for _, heard in rows])
            except Exception:
                # What one row reads may be damaged: that is no reason for its neighbours to stop.
                for seat, heard in rows:
                    try:
                        ((seat.log_probs, seat.before),) = kind.mixed([heard])
                    except Exception as error:
                        seat.failed = error
                continue
            for (seat, _), after in zip(rows, found, strict=True):
                seat.log_probs, seat.before = after

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

    def _read(self, own: Own, ids: Sequence[int], every: bool, keyed: bool) -> tuple[Seat, Tensor, Tensor]:
        """Read a text, and give it a seat.

        Return the seat, what follows the last of `ids`, or each of them, [places, vocabulary], and where it
        is `keyed` their keys [time, width].
        """
        begun, following, read = self._begin(own, ids, every, keyed)
        return self._seated(own, begun, keyed), following, read

    def _seated(self, own: Own, begun: Beginning, keyed: bool) -> Seat:
        seat = Seat(own, begun.log_probs, begun.length, keyed=keyed)
        self._seat(seat, begun.past)
        return seat

    def _begin(
        self, own: Own, ids: Sequence[int], every: bool, keyed: bool
    ) -> tuple[Beginning, Tensor, Tensor]:
        opening = self.base.tokenizer.opening
        text = list(ids[1:] if own.prefix and ids[0] == opening else ids)
        whole = torch.tensor([[*own.prefix, *text]], device=self.base.device)
        lm, cache = self._alone_of(own), DynamicCache()
        told, keys = list[Tensor](), list[Tensor]()
        with torch.no_grad():
            for start in range(0, whole.shape[1], AT_ONCE):
                some = whole[:, start : start + AT_ONCE]
                if keyed:
                    read = lm.step_with_keys if every else lm.read_on_with_keys
                    log_probs, seen, cache = read(some, cache)
                    keys.append(seen[0].cpu())
                else:
                    log_probs, cache = (lm.step if every else lm.read_on)(some, cache)
                told = [*(told if every else []), log_probs[0].float().cpu()]
        following = torch.cat(told)[-len(ids) :] if every else told[0][None]
        layers: Any = cache.layers
        past = [(layer.keys[0], layer.values[0]) for layer in layers]
        begun = Beginning(tuple(ids), whole.shape[1], following[-1], past)
        return begun, following, torch.cat(keys) if keys else torch.empty(0)

    def _alone_of(self, own: Own) -> Causal:
        kind = own.kind
        self._alone[kind] = stacked = self._alone.pop(kind, None) or Stacked.of(self.base, kind)
        if len(self._alone) > SPARE:  # the one used longest ago stands first
            del self._alone[next(iter(self._alone))]
        if stacked.stack is not None:
            stacked.stack.put([own.parts], 1)
        return stacked.lm

    def _seat(self, seat: Seat, past: Sequence[tuple[Tensor, Tensor]]) -> None:
        key = self.width(seat.length + 1), seat.own.kind
        tables = self._tables.setdefault(key, [])
        table = next((each for each in tables if len(each.seats) < self.sizes[-1]), None)
        if table is None:
            stacked = self._spare.pop(key[1], None) or Stacked.of(self.base, key[1])
            table = Table(stacked, key[0], self.sizes, past)
            tables.append(table)
        table.take(seat, past)

    def _tidy(self) -> None:
        kept: dict[tuple[int, Kind], list[Table]] = {}
        for (width, kind), tables in self._tables.items():
            for table in tables:
                if table.seats:
                    kept.setdefault((width, kind), []).append(table)
                else:
                    self._spare[kind] = table.stacked
        self._tables = kept
        while len(self._spare) > SPARE:
            del self._spare[next(iter(self._spare))]

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


def _weigh(seat: Seat) -> None:
    """Let a row of experts predict as they do together."""
    seat.log_probs = mixed([member.log_probs for member in seat.members], seat.before.logsumexp(-2))


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
