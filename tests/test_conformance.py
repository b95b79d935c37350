"""Every method that has a name, several at once, and toys, under every law."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import conformance
import toy_methods
import toys
from conformance import Subject
from uptake import methods
from uptake.adaptation.optimizers import RMS, AdamW
from uptake.adaptation.trainable import LoRA, Top
from uptake.lm.causal import Causal
from uptake.methods.finetune import Finetune
from uptake.methods.fwl import FWL
from uptake.methods.in_context import InContext
from uptake.text.select import Nearest

COMBINED = (
    "ttt-nn+in-context", "ttt-nn+knn-lm", "ttt-nn+retro", "random+in-context+knn-lm", "in-context+retomaton",
    "dynamic-evaluation+knn-lm", "source-code+in-context", "in-context/ttt-nn",
    "knn-lm/random+in-context/retro",
)  # fmt: skip


def subjects() -> dict[str, Subject]:
    """Return every subject by a name, none that does what another does."""
    every = {name: Subject(conformance.example(methods.find(name))) for name in (*methods.names(), *COMBINED)}
    # First those that read the nearest passages: one name stands for all that differ in their selection.
    named = dict(sorted(every.items(), key=lambda each: each[1].spec.select != Nearest()))
    found: dict[str, Subject] = {}
    told: set[str] = set()
    for name, subject in named.items():
        # Reading bare texts, methods that differ in their selection alone are one.
        if repr(subject.method) not in told:
            told.add(repr(subject.method))
            found[name] = subject
        # What the nearest passages give is what bare texts give.
        if subject.spec.searches and subject.spec.select != Nearest():
            found[f"{name} from a store"] = replace(subject, stored=True)
    anew = replace(methods.find("in-context"), method=InContext(refresh=4))
    rms = RMS(learning_rate=0.1, decay=0.1, statistics="even")
    dynamic = named["dynamic-evaluation"].method
    return found | {
        "in-context found anew": Subject(anew, stored=True),
        "dynamic-evaluation rms": Subject.of(replace(dynamic, optimizer=rms)),
        "toy memory": Subject.of(toy_methods.Memory.example()),
        "toy weights": Subject.of(toy_methods.Weights.example()),
        "toy router": Subject.of(toy_methods.Router.example()),
        "finetune lora": Subject.of(
            replace(Finetune.example(), trainable=LoRA(rank=4), optimizer=AdamW(1e-2))
        ),
        "finetune top": Subject.of(replace(Finetune.example(), trainable=Top(1))),
        "fwl beside its base": Subject.of(FWL(weights="untrained", base_weight=0.3, own_prefix=True)),
        "finetune dropout": Subject.of(replace(Finetune.example(), dropout=True)),
    }


SUBJECTS = subjects()


@cache
def lm(shape: str, seed: int = 0) -> Causal:
    """The laws hold that nothing changes it, so all share it."""
    return toys.lm(shape, seed=seed)


@pytest.mark.parametrize("law", conformance.LAWS.values(), ids=lambda law: law.__name__[4:])
@pytest.mark.parametrize("name", SUBJECTS)
def test_law(law: conformance.Law, name: str, tmp_path: Path) -> None:
    law(SUBJECTS[name], lm("llama"), lm("llama", seed=1), tmp_path)


@pytest.mark.parametrize("shape", ["gpt2", "neox"])
@pytest.mark.parametrize("law", conformance.LAWS.values(), ids=lambda law: law.__name__[4:])
def test_law_on_other_shapes(law: conformance.Law, shape: str, tmp_path: Path) -> None:
    for name in ("finetune", "in-context", "ttt-nn+knn-lm", "finetune lora"):
        (tmp_path / name).mkdir()
        law(SUBJECTS[name], lm(shape), lm(shape, seed=1), tmp_path / name)


def test_every_name_meets_the_laws_by_itself_or_as_one_that_does_the_same() -> None:
    met = {repr(subject.method) for subject in SUBJECTS.values()}
    for name in methods.names():
        assert repr(conformance.example(methods.find(name)).method) in met
        assert len(methods.summary(name)) > 20
    for name, setting in (
        ("retomaton from a store", "pointers=16"),
        ("knn-lm-random from a store", "draw='random'"),
        ("retro-random from a store", "draw='random'"),
    ):
        assert setting in repr(SUBJECTS[name].method) and SUBJECTS[name].stored
