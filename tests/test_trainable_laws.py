"""Every kind of trainable in every method that takes one, under every law."""

from pathlib import Path

import pytest

import conformance
from conformance import Subject
from test_conformance import COMBINED, lm
from uptake import methods, settings
from uptake.errors import BadInput
from uptake.methods.contract.method import MethodSpec

KINDS = {
    "lora": "lora(rank=4)",
    "ia3": "ia3",
    "prompt": "prompt(tokens=3)",
    "compacter": "compacter",
    "tarp": "tarp",
}


REFUSED: dict[tuple[str, str], str] = {}


def subjects() -> dict[tuple[str, str], Subject]:
    """Return every method that takes a trainable, with every kind; none that does what another does."""
    found: dict[tuple[str, str], Subject] = {}
    told: set[str] = set()
    for name in ("finetune", *methods.names(), *COMBINED):  # first: others differ from it in selection alone
        spec = conformance.example(methods.find(name))
        for kind, written in KINDS.items():
            try:
                method = settings.apply(spec.method, f"trainable={written}")
                if kind == "prompt":
                    method.check(lm("llama"))
            except settings.NoSuchSetting:
                continue
            except BadInput as error:
                REFUSED[name, kind] = str(error)
                continue
            if repr(method) not in told:
                told.add(repr(method))
                found[name, kind] = Subject(MethodSpec(method, spec.select, spec.segment))
    return found


SUBJECTS = subjects()


QUICK = [subject for subject in SUBJECTS if subject[0] == "finetune" and subject[1] != "lora"]
REST = [subject for subject in SUBJECTS if subject not in QUICK]
LAWS = pytest.mark.parametrize("law", conformance.LAWS.values(), ids=lambda law: law.__name__[4:])


@LAWS
@pytest.mark.parametrize("subject", QUICK, ids="-".join)
def test_law(law: conformance.Law, subject: tuple[str, str], tmp_path: Path) -> None:
    law(SUBJECTS[subject], lm("llama"), lm("llama", seed=1), tmp_path)


@pytest.mark.long
@LAWS
@pytest.mark.parametrize("subject", REST, ids="-".join)
def test_law_in_other_methods(law: conformance.Law, subject: tuple[str, str], tmp_path: Path) -> None:
    law(SUBJECTS[subject], lm("llama"), lm("llama", seed=1), tmp_path)


@pytest.mark.long
@LAWS
@pytest.mark.parametrize("shape", ["gpt2", "neox"])
def test_law_on_other_shapes(law: conformance.Law, shape: str, tmp_path: Path) -> None:
    for subject in QUICK:
        (tmp_path / subject[1]).mkdir()
        law(SUBJECTS[subject], lm(shape), lm(shape, seed=1), tmp_path / subject[1])


def test_every_method_that_trains_takes_every_kind_but_two_a_prompt() -> None:
    assert REFUSED.keys() == {("fwl", "prompt"), ("ttt-nn+retro", "prompt")}
    names = {name for name, _ in SUBJECTS}
    assert {kind for name, kind in SUBJECTS if name == "finetune"} == KINDS.keys()
    assert {"finetune", "dynamic-evaluation", "camels", "source-code", "ttt-nn-guarded", "fwl"} < names
    assert len(SUBJECTS) == len(names) * len(KINDS) - len(REFUSED)
