"""Who answers from a state: a row of the grid where that can be, an LM by itself where it cannot."""

from collections.abc import Sequence
from typing import Any

from uptake.lm.causal import Causal
from uptake.lm.grid import Grid
from uptake.lm.grid_rows import Beginning, Unmerged, own
from uptake.methods.contract.method import Method, State
from uptake.methods.contract.weight_state import WeightState
from uptake.server.engine.kept import tensors
from uptake.server.engine.rows import Answers
from uptake.session import finite_after


class Answering:
    """Makes of states who answers. It belongs to the thread that computes."""

    def __init__(self, lm: Causal, grid: Grid | None) -> None:
        self._lm, self._grid = lm, grid
        self._base, self._unmerged = tensors(lm), Unmerged(lm)

    def of(self, method: Method[Any], state: State) -> Answers:
        """Return who answers. Weights are merged only for one who cannot sit in the grid."""
        grid = self._grid
        if grid is not None and isinstance(state, WeightState):
            parts = own(method.adapted([state], self._unmerged))
            if parts is not None and grid.takes(parts):
                return Answers(own=parts)
        adapted = method.adapted([state], self._lm)
        parts = None if grid is None else own(adapted)
        if grid is not None and parts is not None and grid.takes(parts):
            # Experts of one kind cannot be asked by themselves in turns, as a score asks them.
            return Answers(own=parts, lm=adapted if parts.experts else None)
        return Answers(lm=adapted)

    def tried(self, answers: Answers, query: str, ids: Sequence[int]) -> tuple[Beginning | None, bool]:
        """Return whether who answers gives numbers, after what a row that will read `ids` goes on from.

        Where such a row sits in the grid it is tried on these very tokens, which it then need not read;
        elsewhere, and where no row is known, on the query.
        """
        row = answers.own
        if row is None or row.mixture is not None or row.experts or self._grid is None:
            lm = answers.lm
            if lm is None and row is not None and self._grid is not None:
                lm = self._grid.alone(row)
            assert lm is not None
            return None, finite_after(lm, query)
        read = ids or self._lm.tokenizer.opened(query)
        begun = self._grid.begin(row, read[-(self._lm.window - len(row.prefix)) :])
        return begun, not bool(begun.log_probs.isnan().any())

    def bytes(self, answers: Answers) -> int:
        """Return the bytes that who answers takes beside the base."""
        return sum(size for place, size in tensors(answers).items() if place not in self._base)
