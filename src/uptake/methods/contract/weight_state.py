"""The state of methods that train the model's weights: their change, and the optimizer state."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uptake.adaptation.delta import Delta
from uptake.adaptation.privacy.dp import Claim
from uptake.errors import BadInput
from uptake.methods.contract.method import Context, Evidence, State
from uptake.text.types import Passage


@dataclass(frozen=True, kw_only=True)
class WeightState(State):
    """The change of the weights, and the optimizer state with which reading can go on.

    `ended` means that the optimizer state was dropped: the state can answer, and can read nothing more.
    """

    delta: Delta
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)
    ended: bool = False
    claims: tuple[Claim, ...] = ()  # of the private trainings it went through, in order

    @property
    def claim(self) -> Claim | None:
        """What is kept about each unit, None where nothing was to be: no unit was in two trainings."""
        return Claim.joined(self.claims) if self.claims else None

    def after_training(
        self,
        evidence: Evidence,
        context: Context,
        delta: Delta,
        optimizer_state: dict[str, Tensor],
        keep: bool = False,
        claims: tuple[Claim, ...] = (),
    ) -> "WeightState":
        """Return the state after reading; its optimizer state stays if more will be read, or with `keep`."""
        continues = keep or context.continues
        return self.after(
            evidence,
            context,
            delta=delta,
            optimizer_state=optimizer_state if continues else {},
            ended=not continues,
            claims=(*self.claims, *claims),
        )

    def resumed(self) -> dict[str, Tensor]:
        """Return the optimizer state to continue from. Raises BadInput where it was dropped."""
        if self.ended:
            raise BadInput(
                "the state was made to answer only, and its optimizer state was dropped: to read more, adapt "
                "with Context(continues=True)"
            )
        return self.optimizer_state


@dataclass(frozen=True)
class RowReading:
    """What one row reads in one call of `adapt`."""

    row: int
    state: WeightState
    evidence: Evidence
    passages: Sequence[Passage]

    def generator(self, context: Context) -> torch.Generator:
        """Return the generator of gradient transforms; later readings draw other numbers."""
        return context.generator("transforms", self.evidence.query, str(len(self.state.history)))
