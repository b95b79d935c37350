"""What frozen blocks make of a text is kept, and what trains above them ends bit for bit where it did."""

from dataclasses import replace

import pytest
import torch

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.token_weights import SalientSpans
from uptake.adaptation.trainable import All, LoRA, Named, Top, Trainable
from uptake.lm import upper_blocks
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import encode
from uptake.lm.scoring import token_log_probs_at
from uptake.lm.upper_blocks import UpperBlocks, above_frozen
from uptake.methods import finetune
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune

TEXTS = ("the cat sat on the mat, and London was quiet in 1984.", "a dog ran over the hill.")
TRAINED = Finetune(trainable=Top(1), optimizer=SGD(0.1))


def trained(method: Finetune, lm: LM, times: int = 1) -> WeightState:
    (state,) = [method.init(lm)]
    for _ in range(times):
        (state,) = method.adapt([state], lm, [Evidence.of(*TEXTS, query="so ")], Context())
    return state


def without_upper_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "above_frozen", lambda lm, private, *_: private)


@pytest.mark.parametrize("shape", toys.SHAPES)
@pytest.mark.parametrize("times", [1, 2])
def test_training_above_frozen_blocks_changes_no_bit(
    shape: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = toys.lm(shape)
    made: list[UpperBlocks] = []
    whole = upper_blocks.UpperBlocks.__init__

    def seen(self: UpperBlocks, *given: object) -> None:
        made.append(self)
        whole(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(UpperBlocks, "__init__", seen)
    found = trained(TRAINED, lm, times).delta
    assert len(made) == times
    without_upper_blocks(monkeypatch)
    expected = trained(TRAINED, toys.lm(shape), times).delta
    assert found.names == expected.names and found.names
    for name in expected.names:
        assert torch.equal(found.difference(name), expected.difference(name)), name
        assert expected.difference(name).abs().max() > 0 or name.endswith("bias")
    assert len(made) == times


def test_a_text_goes_through_the_frozen_blocks_once() -> None:
    lm = toys.lm()
    runs: list[int] = []
    lm.module.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    frozen = lm.frozen_layers(1)
    assert lm.frozen_layers(1) is frozen
    before = len(runs)
    trained(TRAINED, lm)
    assert len(runs) == before + len(TEXTS)
    trained(TRAINED, lm)
    trained(replace(TRAINED, optimizer=SGD(0.2)), lm)
    assert len(runs) == before + len(TEXTS)


def test_what_is_kept_is_what_enters_the_block_and_has_a_bound() -> None:
    from uptake.lm.frozen_layers import FrozenLayers

    lm = toys.lm()
    ids = tuple(lm.tokenizer.opened(TEXTS[0]))
    expected = lm.layers(torch.tensor([ids]))[0][1]
    assert torch.equal(lm.frozen_layers(1).of(ids), expected)
    small = FrozenLayers(lm.module, 1, lambda module, ids: module(ids), kept=2 * expected.nbytes)
    others = [(*ids[:-1], last) for last in range(4)]
    for text in (ids, *others):
        small.of(text)
    assert len(small._kept) == 2 and small._kept.bytes == 2 * expected.nbytes
    assert torch.equal(small.of(ids), expected)
    # One text larger than the bound is computed and not kept.
    none = FrozenLayers(lm.module, 1, lambda module, ids: module(ids), kept=1)
    assert torch.equal(none.of(ids), expected) and not len(none._kept) and not none._kept.bytes


@pytest.mark.parametrize(
    "trainable", [All(), Named("embed"), Named("layers.0"), LoRA(2), Top(2)], ids=lambda each: repr(each)[:12]
)
def test_where_something_below_trains_all_is_run(trainable: Trainable) -> None:
    lm = toys.lm()
    start = Delta(lm.fingerprint)
    private, opened = lm.trainable_copy(trainable, start, torch.Generator())
    assert above_frozen(lm, private, opened, start) is private


def test_a_start_that_changes_a_lower_block_is_run_whole() -> None:
    lm = toys.lm()
    (start,) = toys.low_rank(lm, [2])
    private, opened = lm.trainable_copy(Top(1), start, torch.Generator())
    assert above_frozen(lm, private, opened, start) is private


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_tokens_that_count_for_nothing_are_left_out_and_change_nothing(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = replace(TRAINED, token_weights=SalientSpans())
    lm = toys.lm(shape, dtype=torch.float64)
    found = trained(method, lm).delta
    without_upper_blocks(monkeypatch)
    monkeypatch.setattr(
        finetune, "token_log_probs_at", lambda lm, example, places: lm.token_log_probs([example])[0][places]
    )
    expected = trained(method, toys.lm(shape, dtype=torch.float64)).delta
    for name in expected.names:
        assert torch.allclose(found.difference(name), expected.difference(name), atol=1e-12), name
    assert max(expected.difference(name).abs().max() for name in expected.names) > 1e-4


@pytest.mark.parametrize("upper", [False, True])
def test_chosen_places_are_those_of_the_whole(upper: bool) -> None:
    lm: LM = toys.lm(dtype=torch.float64)
    if upper:
        start = Delta(lm.fingerprint)
        private, opened = lm.trainable_copy(Top(1), start, torch.Generator())
        lm = above_frozen(lm, private, opened, start)
        assert isinstance(lm, UpperBlocks)
    example = encode(lm.tokenizer, "some text ", "and what follows it")
    whole = lm.token_log_probs([example])[0]
    places = torch.tensor([0, 3, 4, 11])
    assert torch.allclose(token_log_probs_at(lm, example, places), whole[places], atol=1e-12)
    plain = Causal(toys.module(dtype=torch.float64), toys.lm().tokenizer)
    assert torch.allclose(whole, plain.token_log_probs([example])[0], atol=1e-12)
