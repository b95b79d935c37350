"""A stream under a budget: which documents of every few are learnt, against the choice made by hand."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.privacy.dp import DP
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.naming import method_specs
from uptake.methods.contract.state import load_state, save_state
from uptake.methods.finetune import Finetune
from uptake.methods.online_chosen import ChoosingState, OnlineChosen
from uptake.tasks.questions import Question
from uptake.text.types import Document

TEXTS = (
    "the cat sat on the mat. ", "a dog ran over the hill.", "one fish, two fish, red.", "0x7f 0x80 0x81 0x82",
    "over the hill and far away", "the cat sat on the mat; ", "zzzz qqqq zzzz qqqq", "it was a dark night",
)  # fmt: skip


def method(**changed: object) -> OnlineChosen:
    return OnlineChosen(Finetune.example(), **{"keep": 2, "of": 4, "by": "loss", **changed})  # type: ignore[arg-type]


def read(own: OnlineChosen, lm: LM, *texts: str, state: ChoosingState | None = None) -> ChoosingState:
    state = own.init(lm) if state is None else state
    for text in texts:
        (state,) = own.adapt([state], lm, [Evidence.of(text)], Context(seed=3))
    return state


def same(one: Delta, other: Delta) -> bool:
    left, right = one.differences, other.differences
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def nats(lm: LM, text: str) -> float:
    (scores,) = lm.score([Segment(text)])
    return float(-scores.log_probs.mean())


def test_the_worst_predicted_of_each_block_are_learnt_by_the_model_as_it_is_by_then() -> None:
    lm, own = toys.lm(), method()
    expected = own.inner.init(lm)
    for start in (0, 4):
        block = TEXTS[start : start + 4]
        losses = {text: nats(lm.overlay(expected.delta), text) for text in block}
        worst = sorted(block, key=lambda text: -losses[text])[:2]
        kept = [text for text in block if text in worst]
        (expected,) = own.inner.adapt([expected], lm, [Evidence.of(*kept)], Context(seed=3))
    found = read(own, lm, *TEXTS)
    assert same(found.delta, expected.delta)
    assert found.waiting == () and len(found.passages) == 8


def test_bait_learns_what_is_said_thrice_once() -> None:
    lm, own = toys.lm(), method(by="bait")
    block = (TEXTS[0], TEXTS[0] + " ", TEXTS[0] + "  ", TEXTS[6])
    waiting = ChoosingState(
        base=lm.fingerprint, delta=Delta(lm.fingerprint), waiting=Evidence.of(*block).passages
    )
    chosen = own.chosen(lm, waiting, Context(seed=3))
    assert len(chosen) == 2 and 3 in chosen


def test_until_a_block_is_whole_nothing_is_learnt() -> None:
    lm, own = toys.lm(), method()
    state = read(own, lm, *TEXTS[:3])
    assert same(state.delta, Delta(lm.fingerprint))
    assert [passage.text for passage in state.waiting] == [*TEXTS[:3]]
    assert not same(read(own, lm, TEXTS[3], state=state).delta, Delta(lm.fingerprint))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from(["bait", "loss", "random"]))
def test_how_the_documents_are_handed_over_makes_no_difference(sizes: list[int], by: str) -> None:
    lm, own = toys.lm(), method(by=by)
    texts = [f"{number} {TEXTS[number % 8]}" for number in range(sum(sizes))]
    state, start = own.init(lm), 0
    for size in sizes:
        (state,) = own.adapt([state], lm, [Evidence.of(*texts[start : start + size])], Context(seed=3))
        start += size
    alone = read(own, lm, *texts)
    assert same(state.delta, alone.delta) and state.waiting == alone.waiting
    assert len(state.waiting) == len(texts) % 4


@pytest.mark.parametrize("place", [1, 6])
def test_forgetting_a_document_is_never_having_read_it(place: int) -> None:
    lm, own = toys.lm(), method()
    state = read(own, lm, *TEXTS)
    gone = own.forget(state, lm, [state.passages[place].id])
    others = read(own, lm, *(text for at, text in enumerate(TEXTS) if at != place))
    assert same(gone.delta, others.delta) and gone.waiting == others.waiting


def test_what_waits_is_kept_on_disk(tmp_path: Path) -> None:
    lm, own = toys.lm(), method(by="bait")
    state = read(own, lm, *TEXTS[:6])
    save_state(state, tmp_path / "state")
    loaded = load_state(ChoosingState, tmp_path / "state", lm)
    assert loaded.waiting == state.waiting
    assert same(read(own, lm, *TEXTS[6:], state=loaded).delta, read(own, lm, *TEXTS[6:], state=state).delta)


def test_a_block_that_diverges_is_passed_over() -> None:
    lm = toys.lm()
    inner = method_specs(["online"], ["learning_rate=1e30", "clip=none"])["online"].method
    own = OnlineChosen(inner, keep=1, of=2, by="random")  # type: ignore[arg-type]
    context = Context(seed=3)
    (state,) = own.adapt([own.init(lm)], lm, [Evidence.of(*TEXTS)], context)
    assert context.ledger(0).failed and state.waiting == () and len(state.passages) == 8
    # Only the block whose loss is no number is; the step before it stands.
    assert context.ledger(0).steps == 4 and state.delta.differences


def test_a_stream_takes_half_the_steps() -> None:
    documents = [Document(str(number), text) for number, text in enumerate(TEXTS)]
    question = Question("q", "where is the cat?", ("mat",), documents[0].id)
    chosen = ["keep=2", "of=4", "by=bait", "trainable=top(layers=1)"]
    results = uptake.stream(toys.lm(), documents, [question], ["online", "online-chosen"], settings=chosen)
    told = uptake.summary(results)["methods"]
    assert told["online-chosen"]["steps"] * 2 == told["online"]["steps"] == 8
    assert told["online-chosen"]["tokens_read"] > 0


def test_what_cannot_be_is_refused() -> None:
    for changed, reason in (
        ({"keep": 0}, "keep 0 of 4"),
        ({"keep": 5}, "keep 5 of 4"),
        ({"by": "size"}, "by 'size'"),
        ({"regularisation": 0.0}, "regularisation 0"),
    ):
        with pytest.raises(BadInput, match=reason):
            method(**changed)
    private = OnlineChosen(Finetune(privacy=DP()))
    with pytest.raises(BadInput, match="under privacy"):
        _ = private.private
