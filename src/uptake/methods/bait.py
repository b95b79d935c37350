"""BAIT (Ash et al. 2021): TTT-NN on the neighbours that together tell the model's last layer most.

The steps are those of `ttt-nn`; which passages they are taken on goes by the Fisher information of the model
that will learn them, one pass over each candidate. Needs no vectors.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.fisher import FisherReader
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.text.bait import bait
from uptake.text.select import Select
from uptake.text.types import Found, Source

MOST_ROWS = 1 << 13  # every pair of them is weighed: 0.5 GB


@dataclass(frozen=True, slots=True)
class Bait(Select):
    """Of the nearest, those that together leave least to be told about all of them, or about the query.

    Forward and backward greedy on tr(M^-1 F): M sums what each chosen text tells, F is what is to be told.
    `regularisation` is in units of what a candidate tells. What is chosen for one k need not hold what
    is chosen for a smaller one.
    """

    candidates: int = 100  # the nearest among which it chooses
    regularisation: float = 0.01
    about: Literal["candidates", "query"] = "candidates"
    classes: int = 16
    width: int = 32
    rows: int = 16

    def __post_init__(self) -> None:
        for name in ("candidates", "classes", "width", "rows"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} {getattr(self, name)}: use 1 or more")
        if self.candidates * self.rows > MOST_ROWS:
            raise BadInput(
                f"{self.candidates} candidates of {self.rows} rows: use at most {MOST_ROWS:,} rows in all"
            )
        if not 0 < self.regularisation < float("inf"):
            raise BadInput(f"regularisation {self.regularisation}: use a positive number such as 0.01")
        if self.about not in ("candidates", "query"):
            raise BadInput(f"about {self.about!r}: use candidates or query")

    @property
    def name(self) -> str:
        return "bait"

    def check(self, source: Source, k: int) -> None:
        if k > self.candidates:
            raise BadInput(
                f"k is {k} and BAIT has {self.candidates} candidates: set candidates to {k} or more"
            )

    def for_model(self, model: object) -> Select:
        if not isinstance(model, LM):
            raise BadInput("BAIT weighs passages by a language model: give one")
        return BaitOfModel(self, model)

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        raise BadInput("BAIT weighs passages by the model that learns them: choose by `for_model`")


@dataclass(frozen=True, slots=True)
class BaitOfModel(Select):
    """BAIT's choice by one model."""

    settings: Bait
    model: LM

    @property
    def name(self) -> str:
        return self.settings.name

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        own = self.settings
        own.check(source, k)
        found = source.search(own.candidates)
        if not found.passages:
            return found
        texts = [passage.text for passage in found.passages]
        query = [source.query_text()] if own.about == "query" else []
        reader = FisherReader(own.classes, own.width, own.rows)
        seed = torch.Generator().manual_seed(int(generator.integers(1 << 62)))
        factors = in_units(
            np.stack([each.factor for each in reader.read(self.model, [*texts, *query], seed)]), len(texts)
        )
        about = factors[-1] if query else None
        return found.at(bait(factors[: len(texts)], k, about, own.regularisation))


def in_units(factors: NDArray[np.float64], candidates: int) -> NDArray[np.float64]:
    """Return factors [texts, rows, dimensions] scaled so that the mean candidate tells 1 in all.

    So one regularisation fits every model. Where no candidate tells anything they stay as they are.
    """
    told = float(np.square(factors[:candidates]).sum((1, 2)).mean())
    return factors / told**0.5 if told > 0 else factors


spec = MethodSpec(Finetune(), Bait())
