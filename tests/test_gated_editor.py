"""The gate before an editor: a prompt sees the edits it is about alone, and any other the base."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

import toys
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.lm.fact_values import ValueSearch
from uptake.lm.generation import Decoding
from uptake.lm.key_statistics import OrdinaryText
from uptake.lm.wrappers import Prefixed
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.gated_editor import GatedEditor
from uptake.methods.gated_memory.scope import Words
from uptake.methods.memit import Memit
from uptake.text.types import Found, Passage

EDITOR = Memit(
    depth=0,
    strength=0.1,
    values=ValueSearch(steps=10, contexts=1, limit=50.0),
    ordinary=OrdinaryText(tokens=0),
)
METHOD = GatedEditor(EDITOR, shown=0)
NAMES = ("Anna", "Boris", "Cindy")
EDITS = [
    Passage(n, "xyz"[n], f"the home of {name} is", document=name, meta={"subject": name})
    for n, name in enumerate(NAMES)
]


def made(method: Any, lm: Any, *passages: Passage) -> Any:
    found = Evidence(Found(passages, (0.0,) * len(passages)))
    return method.adapt([method.init(lm)], lm, [found], Context())[0]


def test_a_prompt_sees_its_own_edit_alone_however_many_there_are() -> None:
    lm = toys.lm("llama")
    whole = METHOD.adapted([made(METHOD, lm, *EDITS)], lm)
    for edit, name in zip(EDITS, NAMES, strict=True):
        alone = EDITOR.adapted([made(EDITOR, lm, edit)], lm)
        for prompt in (edit.prompt, f"and where does {name} live, in"):
            asked = [Segment(edit.text, prompt)]
            assert torch.equal(whole.score(asked)[0].log_probs, alone.score(asked)[0].log_probs)
            assert whole.generate(prompt, 5) == alone.generate(prompt, 5)


def test_other_prompts_are_the_bases_bit_for_bit_beside_those_in_scope() -> None:
    lm = toys.lm("llama")
    state = made(METHOD, lm, *EDITS)
    whole = METHOD.adapted([state], lm)
    for prompt in ("the home of Dora is", "so it is", ""):
        asked = [Segment("x and more", prompt)]
        assert torch.equal(whole.score(asked)[0].log_probs, lm.score(asked)[0].log_probs)
        assert whole.generate(prompt, 5) == lm.generate(prompt, 5)
    prompts = ["the home of Dora is", "the home of Anna is", "so it is, so it"]
    segments = [Segment("x and more", prompt) for prompt in prompts]
    batch = METHOD.adapted([state] * 3, lm)
    base, found = lm.score(segments), batch.score(segments)
    assert all(torch.equal(found[row].log_probs, base[row].log_probs) for row in (0, 2))
    assert not torch.equal(found[1].log_probs, base[1].log_probs)
    said = batch.generate_rows(prompts, Decoding(tokens=5))
    assert [said[0], said[2]] == [lm.generate(prompts[0], 5), lm.generate(prompts[2], 5)]
    assert said[1] == whole.generate(prompts[1], 5)


def test_forgetting_is_the_editors_and_a_prompt_can_be_about_several() -> None:
    lm = toys.lm("llama")
    left = METHOD.forget(made(METHOD, lm, *EDITS), lm, [1])
    asked = [Segment("y", EDITS[1].prompt)]
    assert torch.equal(METHOD.adapted([left], lm).score(asked)[0].log_probs, lm.score(asked)[0].log_probs)
    both = replace(METHOD, k=2)
    prompt = [Segment("x", "Anna and Boris live in")]
    found = both.adapted([made(both, lm, *EDITS)], lm).score(prompt)[0].log_probs
    pair = EDITOR.adapted([made(EDITOR, lm, *EDITS[:2])], lm).score(prompt)[0].log_probs
    assert torch.equal(found, pair)
    # Written before the prompt as well, an edit is let in before it as the gated memory does.
    beside = replace(METHOD, shown=1, template="{prompt} {target}. ")
    found = beside.adapted([made(beside, lm, *EDITS)], lm).score(prompt[:1])[0].log_probs
    (first,) = Words().memory(EDITS, lm).find(prompt[0].context, 1)
    alone = EDITOR.adapted([made(EDITOR, lm, first)], lm)
    tokens = [lm.tokenizer.opening, *lm.tokenizer.encode(f"{first.prompt} {first.text}. ")[0]]
    assert torch.allclose(found, Prefixed(alone, [tokens]).score(prompt[:1])[0].log_probs, atol=1e-5)
    for wrong in ({"shown": 2}, {"template": "{prompt}"}):
        with pytest.raises(BadInput, match=r"shown 2|template"):
            replace(METHOD, **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="k -1"):
        replace(METHOD, k=-1)


def test_how_many_neighbours_are_in_scope_changes_no_bit_of_a_row() -> None:
    lm = toys.lm("llama")
    state, other = made(METHOD, lm, *EDITS), made(METHOD, lm, *EDITS[:2])
    prompts = ["the home of Anna is", "the home of Dora is", "so where is Boris", "it is the home of it"]

    def told(states: list[Any], second: str) -> torch.Tensor:
        asked = [Segment("xy", prompt) for prompt in (prompts[0], second, *prompts[2:])]
        return METHOD.adapted(states, lm).score(asked)[0].log_probs

    first = told([state] * 4, prompts[1])
    for states in ([state] * 4, [state, other, state, other]):
        for second in ("the home of Anna is", "the home of Cind is", "the home of Bori is"):
            assert torch.equal(told(states, second), first)
    (alone,) = METHOD.adapted([state], lm).score([Segment("xy", prompts[0])])
    assert torch.allclose(first, alone.log_probs, atol=1e-4)


def test_an_editor_is_named_in_a_setting_though_nothing_has_imported_it() -> None:
    named = (
        "from uptake.methods.contract.naming import method_specs\n"
        "specs = method_specs(['gated-editor'], ['editor=mend(weights=untrained)', 'shown=0'])\n"
        "print(type(specs['gated-editor'].method.editor).__name__)"
    )
    told = subprocess.run([sys.executable, "-c", named], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "Mend"
