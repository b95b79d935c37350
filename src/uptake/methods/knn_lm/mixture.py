"""A model's predictions mixed with the tokens that followed the nearest keys: kNN-LM and RetoMaton.

p = share softmax(-d / temperature) + (1 - share) p_model over the tokens at the k nearest keys, d
their squared distances (Khandelwal et al. 2020, arXiv 1911.00172, equations 2 and 3). This file knows
no store: a memory is whatever can be searched by key.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uptake.errors import BadInput
from uptake.lm.base import LM, Cache
from uptake.lm.capabilities import FeedForwardKeys
from uptake.lm.examples import Example, padded
from uptake.lm.grid_rows import Heard, RowMixture
from uptake.methods.knn_lm.memory import Floats, SearchableTokens
from uptake.methods.knn_lm.weights import Bayes, Weight
from uptake.text.near import Near


@dataclass(frozen=True)
class Mixing:
    """How neighbours are searched for and how much they count.

    With `pointers` (RetoMaton, Alon et al. 2022, arXiv 2201.12431, each token its own state) the
    tokens that follow the last neighbours which were right are the next neighbours, for as long as
    there are at least so many of them; only where they run low is the memory searched.
    """

    neighbours: int = 1024
    temperature: float = 1.0
    weight: Weight = field(default_factory=Bayes)
    pointers: int = 0

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.pointers < 0:
            raise BadInput(
                f"neighbours {self.neighbours}, pointers {self.pointers}: use 1 or more, and 0 or more"
            )
        if not 0 < self.temperature < float("inf"):
            raise BadInput(f"temperature {self.temperature}: use a positive number")


class KnnMixture(RowMixture):
    """Row i mixes what `inner` predicts with what followed the places near to its own in `memories[i]`.

    Keys are those of `key_model`, the model that read the memory; where that is `inner` itself, one pass
    serves both. A row without a memory, or with nothing near, is `inner` bit for bit. `score` searches
    for neighbours of the scored positions alone; pointers begin where a call to `step`, or scoring, does.
    """

    def __init__(
        self,
        inner: LM,
        key_model: FeedForwardKeys,
        memories: Sequence[SearchableTokens | None],
        mixing: Mixing,
    ) -> None:
        super().__init__(inner)
        self.key_model, self.memories, self.mixing = key_model, list(memories), mixing
        self.rows = len(self.memories)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.key_model, self.memories, self.mixing)

    def at(self, rows: Sequence[int]) -> "KnnMixture":
        return KnnMixture(
            self.inner.at(rows), self.key_model, [self.memories[row] for row in rows], self.mixing
        )

    def start(self) -> Cache:
        inner, key_model = (
            self.inner.start(),
            None if self.inner is self.key_model else self.key_model.start(),
        )
        return None if inner is None else [inner, key_model, [None] * len(self.memories)]

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        inner, key_model, before = cache if cache is not None else (None, None, [None] * len(self.memories))
        log_probs, keys, inner, key_model = self._forward(ids, inner, key_model, lengths)
        mixed, after = [], []
        for row in range(len(ids)):
            gap = 0 if lengths is None else ids.shape[1] - lengths[row]
            own = log_probs[row, gap:]
            whole, reached = self._row(row, own, keys[row, gap:], ids[row, gap:], before[row])
            mixed.append(torch.cat([log_probs[row, :gap], whole]) if gap else whole)
            after.append(reached)
        return torch.stack(mixed), None if cache is None else [inner, key_model, after]

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        found = []
        for example, (own, near) in zip(examples, self._at_targets(examples), strict=True):
            if near is None:
                found.append(own)
            elif isinstance(self.mixing.weight, Bayes):
                targets = torch.tensor(example.target, dtype=torch.long, device=own.device)
                sharing = self.mixing.weight.sharing
                along, _ = sharing.along(sharing.start(own.device), self._experts(own, near, targets))
                found.append(self._weigh(own, near, along))
            else:
                found.append(self._mix(own, near))
        return found

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        found = []
        for example, (log_probs, near) in zip(examples, self._at_targets(examples), strict=True):
            targets = torch.tensor(example.target, dtype=torch.long, device=log_probs.device)
            own = log_probs.gather(-1, targets[:, None])
            if near is not None and isinstance(self.mixing.weight, Bayes):
                sharing = self.mixing.weight.sharing
                experts = self._experts(log_probs, near, targets)
                along, _ = sharing.along(sharing.start(own.device), experts)
                mixed = (along.to(own.dtype) + experts).logsumexp(-1, keepdim=True)
                own = torch.where(_found(near, own), mixed, own)
            elif near is not None:
                # Only the target's share is needed: no distribution over the vocabulary is mixed.
                share, probabilities, values = self._neighbours(near, own)
                right = (probabilities * (values == targets[:, None])).sum(-1, keepdim=True)
                own = _joined(own, right, share)
            found.append(own[:, 0])
        return found

    @property
    def follows(self) -> bool:
        return bool(self.mixing.pointers) or isinstance(self.mixing.weight, Bayes)

    @classmethod
    def mixed(cls, rows: Sequence[Heard[Self]]) -> list[tuple[Tensor, Any]]:
        found = _searched(rows)
        mixed: list[tuple[Tensor, Any]] = []
        for place, row in enumerate(rows):
            mixture, before = row.mixture, row.before
            last = None if before is None else before.near
            near = found[place] if place in found else mixture._near(0, row.keys, row.ids, last)
            if near is None:
                mixed.append((row.log_probs[-1], None))
                continue
            along, reached = mixture._reach(row.log_probs, near, row.ids, before)
            whole = mixture._at(row.log_probs[-1:], near.at(-1), None if along is None else along[-1:])
            mixed.append((whole[0], reached))
        return mixed

    def _row(
        self, row: int, own: Tensor, keys: Tensor, ids: Tensor, before: "_Reached | None"
    ) -> tuple[Tensor, "_Reached | None"]:
        """Return one row's predictions after `ids`, and what it goes on from."""
        near = self._near(row, keys, ids, None if before is None else before.near)
        if near is None:
            return own, None
        along, reached = self._reach(own, near, ids, before)
        return self._at(own, near, along), reached

    def _reach(
        self, own: Tensor, near: Near, ids: Tensor, before: "_Reached | None"
    ) -> tuple[Tensor | None, "_Reached"]:
        """Return the experts' log-weights at each place [time, experts], if any, and where it got to."""
        last, weight = near.at(-1), self.mixing.weight
        if not isinstance(weight, Bayes):
            return None, _Reached(last)
        weights = weight.sharing.start(own.device)
        if before is not None and before.weights is not None and before.own is not None:
            (seen,) = self._experts(before.own, before.near, ids[:1])
            weights = weight.sharing.after(before.weights, seen)
        ahead = Near(near.places[:-1], near.distances[:-1], near.values[:-1])
        along, weights = weight.sharing.along(weights, self._experts(own[:-1], ahead, ids[1:]))
        along = torch.cat([along, weights.logsumexp(-2)[None]])
        return along, _Reached(last, own[-1:].detach(), weights)

    def _at(self, own: Tensor, near: Near, along: Tensor | None) -> Tensor:
        """Return the predictions at places where the experts have these log-weights, None for a share."""
        return self._mix(own, near) if along is None else self._weigh(own, near, along)

    def _at_targets(self, examples: Sequence[Example]) -> Iterator[tuple[Tensor, Near | None]]:
        """Yield what the inner model says at the target's places, and what is near to them."""
        self._check_rows(len(examples))
        inputs = [example.inputs for example in examples]
        ids = padded(inputs).to(self.device)
        log_probs, keys, *_ = self._forward(ids, None, None)
        for row, example in enumerate(examples):
            places = slice(len(inputs[row]) - len(example.target), len(inputs[row]))
            yield log_probs[row, places], self._near(row, keys[row, places], ids[row, places], None)

    def _forward(
        self, ids: Tensor, inner: Cache, key_model: Cache, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor, Cache, Cache]:
        if self.inner is self.key_model:
            log_probs, keys, inner = self.key_model.step_with_keys(ids, inner, lengths)
        else:
            log_probs, inner = self.inner.step(ids, inner, lengths)
            if key_model is None:
                keys = self.key_model.keys(ids, lengths)
            else:
                _, keys, key_model = self.key_model.step_with_keys(ids, key_model, lengths)
        return log_probs, keys, inner, key_model

    def _near(self, row: int, keys: Tensor, ids: Tensor, last: Near | None) -> Near | None:
        """Return the neighbours at each place of a row, None where there are none at all."""
        memory, mixing = self.memories[row], self.mixing
        if memory is None:
            return None
        wide = keys.detach().cpu().numpy()
        if not mixing.pointers:
            near = memory.search(wide, mixing.neighbours)
        else:
            near = _follow_pointers(memory, wide, ids.tolist(), last, mixing)
        return near if near.places.size else None

    def _neighbours(self, near: Near, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the neighbours' share [time, 1], and their probabilities and values [time, k]."""
        losses = torch.from_numpy(near.distances).to(like)
        found = losses.isfinite()
        nearest = torch.where(found, losses, torch.inf).amin(-1, keepdim=True)
        share = torch.where(found.any(-1, keepdim=True), self.mixing.weight.of(nearest), 0.0)
        probabilities = _probabilities(losses, self.mixing.temperature)
        return share, probabilities, torch.from_numpy(near.values).to(like.device)

    def _mix(self, log_probs: Tensor, near: Near) -> Tensor:
        share, probabilities, values = self._neighbours(near, log_probs)
        return _joined(log_probs, _mass(log_probs, probabilities, values), share)

    def _at_temperatures(self, near: Near, like: Tensor) -> Tensor:
        """Return the neighbours' probabilities at each of the temperatures, [time, k, temperatures]."""
        assert isinstance(self.mixing.weight, Bayes)
        losses = torch.from_numpy(near.distances).to(like)
        each = [factor * self.mixing.temperature for factor in self.mixing.weight.temperatures]
        return torch.stack([_probabilities(losses, temperature) for temperature in each], -1)

    def _experts(self, log_probs: Tensor, near: Near, targets: Tensor) -> Tensor:
        """Return every expert's log-probability of the targets [time], which follow the places."""
        assert isinstance(self.mixing.weight, Bayes)
        own = log_probs.gather(-1, targets[:, None])[:, 0]
        values = torch.from_numpy(near.values).to(own.device)
        right = self._at_temperatures(near, own) * (values == targets[:, None])[..., None]
        experts = self.mixing.weight.experts(own, right.sum(1))
        # Where nothing was found all experts are the model.
        return torch.where(_found(near, own), experts, own[:, None])

    def _weigh(self, log_probs: Tensor, near: Near, weights: Tensor) -> Tensor:
        """Return the predictions of all experts, which have these log-weights [time, experts]."""
        assert isinstance(self.mixing.weight, Bayes)
        rest, shares = self.mixing.weight.combined(weights)
        shares = shares.to(log_probs.dtype)
        probabilities = (self._at_temperatures(near, log_probs) * shares[:, None]).sum(-1)
        values = torch.from_numpy(near.values).to(log_probs.device)
        mass = _mass(log_probs, probabilities, values)
        mixed = torch.logaddexp(rest.to(log_probs.dtype) + log_probs, mass.log())
        return torch.where(_found(near, log_probs), mixed, log_probs)


@dataclass(frozen=True, slots=True)
class _Reached:
    """Where a row goes on: its last neighbours, and under `Bayes` the model's last word and the weights."""

    near: Near
    own: Tensor | None = None
    weights: Tensor | None = None


def _searched(rows: "Sequence[Heard[KnnMixture]]") -> dict[int, Near]:
    """Return what is near to the keys of rows that go on by a token: rows that read alike in one search."""
    alike: dict[tuple[Hashable, int], list[int]] = {}
    for place, row in enumerate(rows):
        (memory,), mixing = row.mixture.memories, row.mixture.mixing
        if memory is not None and not mixing.pointers and len(row.ids) == 1:
            alike.setdefault((memory.reads, mixing.neighbours), []).append(place)
    found: dict[int, Near] = {}
    for (_, k), places in alike.items():
        (memory,) = rows[places[0]].mixture.memories
        assert memory is not None
        near = memory.search_each(torch.cat([rows[place].keys for place in places]).numpy(), k)
        found.update({place: near.at(key) for key, place in enumerate(places) if near.places.size})
    return found


def _found(near: Near, like: Tensor) -> Tensor:
    """Return [time, 1], whether anything was found at a place."""
    return torch.from_numpy(np.isfinite(near.distances).any(-1, keepdims=True)).to(like.device)


def _probabilities(losses: Tensor, temperature: float) -> Tensor:
    """Return the softmax of -losses / temperature over the last axis, 0 where a loss is infinite."""
    found = losses.isfinite()
    logits = torch.where(found, -losses / temperature, -torch.inf)
    return torch.where(found.any(-1, keepdim=True), logits, 0.0).softmax(-1) * found


def _mass(log_probs: Tensor, probabilities: Tensor, values: Tensor) -> Tensor:
    """Return the neighbours' probabilities added up by their tokens, [time, vocabulary]."""
    mass = torch.zeros(log_probs.shape, dtype=log_probs.dtype, device=log_probs.device)
    return mass.scatter_add_(-1, values, probabilities)


def _joined(log_probs: Tensor, mass: Tensor, share: Tensor) -> Tensor:
    """Return log(share mass + (1 - share) exp(log_probs)), the model's own where the share is 0."""
    mixed = torch.logaddexp(torch.log1p(-share) + log_probs, torch.log(share * mass))
    return torch.where(share > 0, mixed, log_probs)


def _follow_pointers(
    memory: SearchableTokens, keys: Floats, ids: Sequence[int], last: Near | None, mixing: Mixing
) -> Near:
    """Return the neighbours of consecutive places, following pointers while enough of them are live."""
    found: list[Near] = []
    for place, token in enumerate(ids):
        key = keys[place : place + 1]
        live = np.empty(0, np.int64)
        if last is not None:
            # Those whose token came: what followed them may follow here.
            live = memory.after(last.places[0][(last.values[0] == token) & (last.places[0] >= 0)])
            live = live[live >= 0]
        if len(live) >= mixing.pointers:
            last = memory.measure(key, live[None])
        else:
            last = memory.search(key, mixing.neighbours)
        found.append(last)
    most = max((near.places.shape[1] for near in found), default=0)

    def whole(rows: Sequence[NDArray[np.generic]], rest: float) -> NDArray[np.generic]:
        return np.concatenate(
            [np.pad(r, ((0, 0), (0, most - r.shape[1])), constant_values=rest) for r in rows]
        )

    return Near(
        whole([near.places for near in found], -1),  # type: ignore[arg-type]
        whole([near.distances for near in found], np.inf),  # type: ignore[arg-type]
        whole([near.values for near in found], 0),  # type: ignore[arg-type]
    )
