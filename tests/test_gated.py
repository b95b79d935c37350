"""The gate before an edited model: the base bit for bit where it is closed, decided once for each prompt."""

from collections.abc import Callable, Sequence
from typing import Self

import pytest
import torch

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.optimizers import SGD
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.lm.gated import Asked, Gated, Ids, Opened
from uptake.lm.generation import Decoding
from uptake.lm.wrappers import Prefixed
from uptake.methods.breadth_first import BreadthFirst
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.gated_editor import GatedEditor
from uptake.methods.gated_memory import GatedMemory
from uptake.methods.gated_memory.scope import Always, Words
from uptake.tasks.asking import generate
from uptake.tasks.edits import Edit
from uptake.text.types import Found, Passage

OPEN, SHUT = "tell me of the cat: ", "tell me of the dog: "
LET_IN = (40, 41, 42)


@pytest.fixture(name="lm", scope="module")
def lm_fixture() -> Causal:
    return toys.lm(window=96)


def of_the_cat(prompt: str) -> Ids | None:
    return LET_IN if "cat" in prompt else None


class ByText(Gated):
    """Lets in before a prompt what `gate` gives for its text."""

    def __init__(self, inner: LM, gate: Callable[[str], Ids | None], rows: int) -> None:
        super().__init__(inner)
        self.gate, self.rows = gate, rows

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.gate, self.rows or 1)

    def at(self, rows: Sequence[int]) -> LM:
        return ByText(self.inner, self.gate, len(rows))

    def choose(self, asked: Sequence[Asked]) -> LM:
        return Opened(self.inner, [self.gate(one.text(self.tokenizer)) for one in asked])


def gated(lm: LM, rows: int, gate: Callable[[str], Ids | None] = of_the_cat) -> LM:
    return ByText(lm, gate, rows)


def opened(lm: Causal) -> LM:
    return Prefixed(lm, [[lm.tokenizer.opening, *LET_IN]])


PROMPTS = [OPEN, SHUT, f"so {SHUT}", f"and so {OPEN}"]


def test_closed_rows_are_the_base_bit_for_bit_and_open_ones_see_what_was_let_in(lm: Causal) -> None:
    segments = [Segment("black and white", prompt) for prompt in PROMPTS]
    base, found = lm.score(segments), gated(lm, 4).score(segments)
    for row in (1, 2):
        assert torch.equal(found[row].log_probs, base[row].log_probs)
    for row in (0, 3):
        (alone,) = opened(lm).score([segments[row]])
        assert torch.allclose(found[row].log_probs, alone.log_probs, atol=1e-5)
        assert not torch.allclose(found[row].log_probs, base[row].log_probs, atol=1e-3)


def test_all_closed_is_the_base_bit_for_bit_while_it_generates(lm: Causal) -> None:
    prompts = [SHUT, f"so {SHUT}", f"again, {SHUT}"]
    ids = torch.zeros(3, 32, dtype=torch.long)
    rows = [lm.tokenizer.opened(prompt) for prompt in prompts]
    for place, row in enumerate(rows):
        ids[place, 32 - len(row) :] = torch.tensor(row)
    caches, lms = [], (lm, gated(lm, 3))
    with torch.no_grad():
        for each in lms:
            caches.append(each.step(ids, each.start(), [len(row) for row in rows]))
        assert torch.equal(caches[0][0], caches[1][0])
        for token in (50, 51):
            new = torch.full((3, 1), token)
            caches = [each.step(new, cache) for each, (_, cache) in zip(lms, caches, strict=True)]
            assert torch.equal(caches[0][0], caches[1][0])


def test_it_is_decided_once_for_each_prompt(lm: Causal) -> None:
    asked: list[str] = []

    def gate(prompt: str) -> Ids | None:
        asked.append(prompt)
        return of_the_cat(prompt)

    decoding = Decoding(tokens=12)
    texts = gated(lm, 4, gate).generate_rows(PROMPTS, decoding)
    assert asked == PROMPTS, "the gate was asked again while a text went on"
    for row, prompt in enumerate(PROMPTS):
        alone = opened(lm) if "cat" in prompt else lm
        assert texts[row] == alone.generate(prompt, 12)


class Cacheless(Causal):
    """Keeps no cache: whoever reads on must read everything again."""

    read_on = LM.read_on

    def start(self) -> None:
        return None

    def step(self, ids, cache=None, lengths=None):  # type: ignore[no-untyped-def]
        found = super().step(ids, super().start(), lengths)
        return found[0], None


def test_a_model_without_a_cache_is_held_to_its_first_prompt_too(lm: Causal) -> None:
    bare = Cacheless(lm.module, lm.tokenizer, "bare")
    texts = gated(bare, 4).generate_rows(PROMPTS, Decoding(tokens=8))
    for row, prompt in enumerate(PROMPTS):
        assert texts[row] == (opened(lm) if "cat" in prompt else lm).generate(prompt, 8)


def test_where_the_window_is_full_what_was_let_in_gives_way(lm: Causal) -> None:
    many = gated(lm, 1, lambda prompt: tuple(range(1, 90)))
    tokens = list(many.stream(OPEN, Decoding(tokens=200)))
    assert len(tokens) == 200 or tokens[-1].finish == "end"
    prompt = "x" * 90
    assert generate(many, [prompt], 3) and many.score([Segment("yes", prompt)])[0].bits > 0
    full = "y" * (lm.window - 1)
    assert torch.allclose(
        many.score([Segment("z", full)])[0].log_probs, lm.score([Segment("z", full)])[0].log_probs, atol=1e-5
    )


def edits() -> list[Passage]:
    colours = {"old cat": "red", "cat": "blue", "fish": "grey"}
    return [
        Edit(f"e{n}", f"the colour of the {what} is", colour, what).passage()
        for n, (what, colour) in enumerate(colours.items())
    ]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("what colour has the cat?", ["cat"]),
        ("the OLD cat: its colour", ["old cat"]),
        ("a dog's colour is", []),
        ("the concatenated", []),
        ("", []),
    ],
)
def test_a_prompt_is_about_the_edit_whose_subject_it_names(lm: Causal, prompt: str, found: list[str]) -> None:
    for order in (1, -1):  # the order in which they were made decides nothing
        memory = Words().memory(edits()[::order], lm)
        assert [edit.meta["subject"] for edit in memory.find(prompt, 1)] == found


def test_without_subjects_the_words_of_the_prompt_decide(lm: Causal) -> None:
    bare = [
        Edit(f"e{n}", f"the default of {name} is", "3").passage() for n, name in enumerate(("limit", "width"))
    ]
    memory = Words(least_prompt=0.7).memory(bare, lm)
    assert [each.prompt for each in memory.find("the limit: its default is", 2)] == [
        "the default of limit is"
    ]
    assert memory.find("the default of height", 2) == []
    assert len(Always().memory(bare, lm).find("anything", 5)) == 2


def adapted(method: GatedMemory | GatedEditor, lm: LM, passages: list[Passage]) -> LM:
    found = Found(tuple(passages), (0.0,) * len(passages))
    (state,) = method.adapt([method.init(lm)], lm, [Evidence(found)], Context())
    return method.adapted([state], lm)


def test_a_memory_reads_the_nearest_edit_before_the_prompt(lm: Causal) -> None:
    model = adapted(GatedMemory(), lm, edits())
    prompt = "is the fish "
    before = "the colour of the fish is grey\n\n"
    assert model.at([0]).generate(prompt, 8) == lm.generate(before + prompt, 8)
    assert model.at([0]).generate("is the dog ", 8) == lm.generate("is the dog ", 8)


def test_an_editor_behind_the_gate_shows_where_it_opens_alone(lm: Causal) -> None:
    editor = BreadthFirst.example()
    method = GatedEditor(editor, k=0, shown=0)
    found = Found(tuple(edits()), (0.0,) * 3)
    (state,) = method.adapt([method.init(lm)], lm, [Evidence(found)], Context())
    model, inside = method.adapted([state], lm), editor.adapted([state], lm)
    about, other = Segment("grey", "the colour of the fish is "), Segment("grey", "the colour of the dog is ")
    assert torch.equal(model.score([about])[0].log_probs, inside.score([about])[0].log_probs)
    assert torch.equal(model.score([other])[0].log_probs, lm.score([other])[0].log_probs)
    assert not torch.equal(inside.score([other])[0].log_probs, lm.score([other])[0].log_probs)
    # Shown as well, the nearest stands before the prompt of the model that holds all of them.
    shown = GatedEditor(editor, k=0, shown=1, template="{prompt}{target}. ").adapted([state], lm)
    before = [lm.tokenizer.opening, *lm.tokenizer.encode("the colour of the fish is grey. ")[0]]
    expected = Prefixed(inside, [before]).score([about])[0].log_probs
    assert torch.allclose(shown.score([about])[0].log_probs, expected, atol=1e-5)


def test_what_cannot_be_meant_is_refused(lm: Causal) -> None:
    for wrong in (
        lambda: GatedMemory(k=0),
        lambda: GatedMemory(template="{prompt}"),
        lambda: Words(least=0.0),
    ):
        with pytest.raises(BadInput, match=r"use|write"):
            wrong()
    model = adapted(GatedEditor(BreadthFirst(optimizer=SGD(0.1), stay=0.0), k=0, shown=0), lm, edits())
    with pytest.raises(BadInput, match="train each by itself"):
        model.trainable_copy(BreadthFirst().trainable, Delta(lm.fingerprint), torch.Generator())
