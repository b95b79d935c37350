"""Every method found and three toys, each once, under every law."""

from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import conformance
import toy_methods
import toys
from uptake import methods
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import LoRA, Top
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Method
from uptake.methods.finetune import Finetune


def subject(name: str) -> Method[Any]:
    """Return a method's `example()` with what else its name stands for, such as how passages are drawn."""
    method = methods.find(name).method
    plain, example = type(method)(), type(method).example()
    own = {
        field.name: getattr(method, field.name)
        for field in fields(method)
        if getattr(method, field.name) != getattr(plain, field.name) == getattr(example, field.name)
    }
    return replace(example, **own)


SUBJECTS: dict[str, Method[Any]] = {name: subject(name) for name in methods.names()}
SUBJECTS |= {
    "toy memory": toy_methods.Memory.example(),
    "toy weights": toy_methods.Weights.example(),
    "toy router": toy_methods.Router.example(),
    "finetune lora": replace(Finetune.example(), trainable=LoRA(rank=4), optimizer=AdamW(1e-2)),
    "finetune top": replace(Finetune.example(), trainable=Top(1)),
    "finetune dropout": replace(Finetune.example(), dropout=True),
}


def apart(subjects: dict[str, Method[Any]]) -> dict[str, Method[Any]]:
    """Return each method once, under all its names: what differs in passages alone obeys the same laws."""
    names: list[tuple[Method[Any], list[str]]] = []
    for name, method in subjects.items():
        known = next((told for same, told in names if same == method), None)
        if known is None:
            names.append((method, [name]))
        else:
            known.append(name)
    return {"=".join(told): method for method, told in names}


APART = apart(SUBJECTS)
every_subject = pytest.mark.parametrize("method", APART.values(), ids=APART)


@cache
def other(shape: str = "llama") -> Causal:
    """Return a base that no state belongs to; nothing is ever read with it."""
    return toys.lm(shape, seed=1)


@pytest.mark.parametrize("law", conformance.LAWS.values(), ids=lambda law: law.__name__[4:])
@every_subject
def test_law(law: conformance.Law, method: Method[Any], tmp_path: Path) -> None:
    law(method, toys.lm("llama"), other(), tmp_path)


@pytest.mark.parametrize("shape", ["gpt2", "neox"])
@pytest.mark.parametrize("law", conformance.LAWS.values(), ids=lambda law: law.__name__[4:])
def test_law_on_other_shapes(law: conformance.Law, shape: str, tmp_path: Path) -> None:
    for name in ("ttt-nn", "in-context", "finetune lora"):
        law(SUBJECTS[name], toys.lm(shape), other(shape), tmp_path)


def test_every_method_file_is_a_way() -> None:
    for name in methods.names():
        assert methods.find(name).method is not None
        assert len(methods.summary(name)) > 20
