"""SERAC: a trained scope decides which edit a prompt is about, an editor answers it (Mitchell et al. 2022).

The gated editor behind the scope classifier of the paper (arXiv 2206.06520). Its small counterfactual model
is here any editor's, which reads the edit before the prompt as well.
"""

from dataclasses import dataclass, field
from typing import Self

from uptake.methods.contract.method import MethodSpec
from uptake.methods.gated_editor import GatedEditor
from uptake.methods.gated_memory.scope import Scope
from uptake.methods.gated_memory.trained import Trained
from uptake.methods.memit import Memit


@dataclass(frozen=True)
class Serac(GatedEditor):
    """`uptake train serac` trains the scope; it is used with `scope.weights=FILE`."""

    scope: Scope = field(default_factory=Trained)

    @classmethod
    def example(cls) -> Self:
        return cls(Memit.example(), Trained(weights="untrained", size=4, threshold=0.0), shown=0)


spec = MethodSpec(Serac(), learner=Trained())
