"""Every method found, and three toys, under every law."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conformance
import toy_methods
import toys
from uptake import methods
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import LoRA, Top
from uptake.methods.contract.method import Method
from uptake.methods.finetune import Finetune

SUBJECTS: dict[str, Method[Any]] = {
    name: type(methods.find(name).method).example() for name in methods.names()
}
SUBJECTS |= {
    "toy memory": toy_methods.Memory.example(),
    "toy weights": toy_methods.Weights.example(),
    "toy router": toy_methods.Router.example(),
    "finetune lora": replace(Finetune.example(), trainable=LoRA(rank=4), optimizer=AdamW(1e-2)),
    "finetune top": replace(Finetune.example(), trainable=Top(1)),
    "finetune dropout": replace(Finetune.example(), dropout=True),
}


@pytest.mark.parametrize("law", conformance.LAWS.values(), ids=lambda law: law.__name__[4:])
@pytest.mark.parametrize("name", SUBJECTS)
def test_law(law: conformance.Law, name: str, tmp_path: Path) -> None:
    law(SUBJECTS[name], toys.lm("llama"), toys.lm("llama", seed=1), tmp_path)


@pytest.mark.parametrize("shape", ["gpt2", "neox"])
@pytest.mark.parametrize("law", conformance.LAWS.values(), ids=lambda law: law.__name__[4:])
def test_law_on_other_shapes(law: conformance.Law, shape: str, tmp_path: Path) -> None:
    for name in ("ttt-nn", "in-context", "finetune lora"):
        law(SUBJECTS[name], toys.lm(shape), toys.lm(shape, seed=1), tmp_path)


def test_every_method_file_is_a_way() -> None:
    for name in methods.names():
        assert methods.find(name).method is not None
        assert len(methods.summary(name)) > 20
