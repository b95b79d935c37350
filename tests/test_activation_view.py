"""What frozen blocks make of a store's passages is kept, and training from it ends where it did without."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.token_weights import BaseLoss, RandomTokens
from uptake.adaptation.trainable import All, LoRA, Top
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.lm.activations import ActivationReader, fingerprint_of
from uptake.lm.causal import Causal
from uptake.lm.examples import encode, training_pieces
from uptake.lm.frozen_layers import FrozenLayers
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.store import Datastore
from uptake.store.views import view_writer
from uptake.text.types import Chunking, Document, Passage

TEXTS = (
    "the cat sat on the mat, and London was quiet in 1984; nobody knew why, and nobody asked for long.",
    "a dog ran over the hill.",
    "for each of the passages, what enters the upper block is kept once, and every query reads it again.",
)
SPANS = [(place, place + 1) for place in range(8)]
PIECES = 5  # of at most 64 inputs each
QUERY = "the cat and the dog of London passages"
IN_VIEW = Finetune(trainable=Top(1), optimizer=SGD(0.1), activations="view")


def make(path: Any, texts: Any = TEXTS, characters: int = 200) -> Datastore:
    store = Datastore.create(path, retriever="lexical", chunking=Chunking(characters))
    store.add([Document(str(place), text) for place, text in enumerate(texts)])
    return store


def trained(method: Finetune, lm: Causal, store: Datastore) -> WeightState:
    source = store.source(QUERY)
    evidence = Evidence(source.search(9), QUERY, source)
    assert len(evidence.passages) == len(TEXTS)
    (state,) = method.adapt([method.init(lm)], lm, [evidence], Context())
    return state


def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the inputs that go through the frozen blocks from now on."""
    seen: list[tuple[int, ...]] = []
    whole = FrozenLayers.of

    def of(self: FrozenLayers, ids: tuple[int, ...]) -> torch.Tensor:
        if ids != (0,):  # which it tries once, to see what the blocks give
            seen.append(ids)
        return whole(self, ids)

    monkeypatch.setattr(FrozenLayers, "of", of)
    return seen


@pytest.mark.parametrize("shape", toys.SHAPES)
@pytest.mark.parametrize("opening", [True, False])
def test_in_float32_training_from_the_view_changes_no_bit(
    tmp_path: Any, shape: str, opening: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, store = toys.lm(shape), make(tmp_path / "s")
    read = store.read_activations(ActivationReader(lm, 1, opening, "float32"))
    assert read.documents == 3 and read.total == read.tokens > 200
    method = replace(IN_VIEW, opening_token=opening)
    expected = trained(replace(method, activations="memory"), toys.lm(shape), store).delta
    seen = computed(monkeypatch)
    found = trained(method, toys.lm(shape), store).delta
    assert seen == []
    assert found.names == expected.names and found.names
    for name in expected.names:
        assert torch.equal(found.difference(name), expected.difference(name)), name
    assert max(expected.difference(name).abs().max() for name in expected.names) > 1e-3


@pytest.mark.parametrize(("dtype", "off"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_in_16_bits_it_ends_as_near_as_the_rounding_is(tmp_path: Any, dtype: str, off: float) -> None:
    lm, store = toys.lm(), make(tmp_path / "s")
    store.read_activations(ActivationReader(lm, 1, dtype=dtype))
    found = trained(IN_VIEW, lm, store).delta
    expected = trained(replace(IN_VIEW, activations="memory"), lm, store).delta
    length = sum(expected.difference(name).square().sum() for name in expected.names).sqrt()
    apart = sum(
        (found.difference(name) - expected.difference(name)).square().sum() for name in expected.names
    )
    assert 0 < apart.sqrt() < 10 * off * length


def test_what_is_kept_is_what_enters_the_block_and_the_loss_of_each_token(tmp_path: Any) -> None:
    lm, store = toys.lm(window=32), make(tmp_path / "s")
    store.read_activations(ActivationReader(lm, 1, dtype="float32"))
    kept = store.source("x").activations(fingerprint_of(lm, 1, True, 32))
    longest = 0
    for text in TEXTS:
        cut = [piece for _, piece in training_pieces(encode(lm.tokenizer, "", text), 32, True)]
        longest = max(longest, len(cut))
        for piece in cut:
            found = kept.find(piece.inputs)
            assert found is not None and found.targets.tolist() == list(piece.target)
            entered = lm.layers(torch.tensor([piece.inputs]))[0][1][0]
            assert np.array_equal(found.hidden.view(np.float32), entered.numpy())
            assert np.allclose(found.losses, -lm.token_log_probs([piece])[0].numpy(), atol=1e-6)
            assert kept.find((*piece.inputs[:-1], 200)) is None
            assert kept.find(piece.inputs[:-1]) is None
    assert longest > 2


def test_texts_of_the_same_inputs_and_other_ends_have_their_own_losses(tmp_path: Any) -> None:
    lm, store = toys.lm(), make(tmp_path / "s", ("to and fro", "to and fre", *TEXTS[2:]))
    store.read_activations(ActivationReader(lm, 1, dtype="float32"))
    method = replace(IN_VIEW, token_weights=BaseLoss(0.1))
    source = store.source("to and fro")
    one, other = (
        method.adapt([method.init(lm)], lm, [Evidence(source.search(9), "q", each)], Context())[0].delta
        for each in (source, None)
    )
    assert all(torch.equal(one.difference(name), other.difference(name)) for name in other.names)


def test_a_passage_that_was_not_kept_is_computed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, store = toys.lm(), make(tmp_path / "s")
    ids = sorted(store._table.ids.tolist())
    told = store.read_activations(ActivationReader(lm, 1, dtype="float32"), passages=ids[:1])
    assert told.documents == 1
    expected = trained(replace(IN_VIEW, activations="memory"), toys.lm(), store).delta
    seen = computed(monkeypatch)
    found = trained(IN_VIEW, toys.lm(), store).delta
    assert {*seen} and len({*seen}) < PIECES
    assert all(torch.equal(found.difference(name), expected.difference(name)) for name in expected.names)
    told = store.read_activations(ActivationReader(lm, 1, dtype="float32"))
    assert told.documents == 2
    seen.clear()
    trained(IN_VIEW, toys.lm(), store)
    assert seen == []


def test_a_text_without_a_store_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toys.lm()
    seen = computed(monkeypatch)
    evidence = Evidence.of(*TEXTS, query="so ")
    states = [
        method.adapt([method.init(lm)], lm, [evidence], Context())[0]
        for method in (IN_VIEW, replace(IN_VIEW, activations="memory"))
    ]
    assert len(seen) == 2 * PIECES
    one, other = (state.delta for state in states)
    assert all(torch.equal(one.difference(name), other.difference(name)) for name in one.names)


@pytest.mark.parametrize("weights", [BaseLoss(0.25), RandomTokens(0.25)], ids=["worst", "random"])
def test_losses_from_the_view_choose_the_tokens_that_the_bases_own_do(tmp_path: Any, weights: Any) -> None:
    lm, store = toys.lm(), make(tmp_path / "s")
    store.read_activations(ActivationReader(lm, 1, dtype="float32"))
    method = replace(IN_VIEW, token_weights=weights)
    found = trained(method, lm, store).delta
    expected = trained(replace(method, activations="memory"), lm, store).delta
    assert all(torch.equal(found.difference(name), expected.difference(name)) for name in expected.names)
    uniform = trained(IN_VIEW, lm, store).delta
    assert any(not torch.equal(found.difference(name), uniform.difference(name)) for name in uniform.names)


def test_the_worst_predicted_tokens_count_and_the_control_draws_as_many() -> None:
    losses = torch.tensor([0.5, 3.0, 0.1, 3.0, 2.0, 0.0, 1.0, 0.2])
    passage = Passage(7, "eightful")
    assert BaseLoss(0.25).of_losses(passage, losses).nonzero()[:, 0].tolist() == [1, 3]
    assert BaseLoss(0.125).of_losses(passage, losses).nonzero()[:, 0].tolist() == [1]
    assert BaseLoss(0.01).of_losses(passage, losses).sum() == 1
    assert BaseLoss(1.0).of_losses(passage, losses).tolist() == [1.0] * 8
    drawn = [RandomTokens(0.25).of(replace(passage, id=key), SPANS) for key in range(40)]
    assert all(each.sum() == 2 for each in drawn)
    assert torch.stack(drawn).sum(0).min() > 3, "every place is drawn now and then"
    assert torch.equal(drawn[3], RandomTokens(0.25).of(replace(passage, id=3), SPANS))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_beyond_all_is_refused(share: float) -> None:
    for kind in (BaseLoss, RandomTokens):
        with pytest.raises(BadInput, match="above 0 and up to 1"):
            kind(share)


def test_where_no_model_gives_losses_they_are_asked_for(tmp_path: Any) -> None:
    with pytest.raises(BadInput, match="token_weights=baseloss goes by a model's losses"):
        BaseLoss().of(Passage(0, "a"), [(0, 1)])


@pytest.mark.parametrize(
    ("method", "lm"),
    [
        (IN_VIEW, toys.lm(seed=1)),
        (replace(IN_VIEW, opening_token=False), toys.lm()),
        (replace(IN_VIEW, chunk_tokens=16), toys.lm()),
        (IN_VIEW, toys.lm("gpt2")),
    ],
    ids=["other weights", "no opening token", "other pieces", "another shape"],
)
def test_activations_of_another_making_are_refused_in_one_line(
    tmp_path: Any, method: Finetune, lm: Causal
) -> None:
    store = make(tmp_path / "s")
    store.read_activations(ActivationReader(toys.lm(), 1))
    for do in (
        lambda: method.check(lm, store.source(QUERY)),
        lambda: trained(method, lm, store),
        lambda: store.read_activations(ActivationReader(toys.lm(seed=1), 1)),
    ):
        with pytest.raises(
            Mismatch, match="enter the top 1 blocks of toy-llama, read with the opening"
        ) as told:
            do()
        assert "\n" not in str(told.value) and "--fresh" in str(told.value)


def test_what_cannot_use_a_view_says_so(tmp_path: Any) -> None:
    lm, store = toys.lm(), make(tmp_path / "s")
    with pytest.raises(BadInput, match="holds no activations; make them with `uptake index activations"):
        IN_VIEW.check(lm, store.source(QUERY))
    for trainable in (All(), LoRA(2), Top(2)):
        with pytest.raises(BadInput, match=r"use trainable=top\(layers=N\)"):
            replace(IN_VIEW, trainable=trainable).check(lm, store.source(QUERY))
    for bad in ({"dropout": True}, {"key_penalty": 0.1}, {"after_context": True}):
        with pytest.raises(BadInput, match="leave dropout, key_penalty and after_context out"):
            replace(IN_VIEW, **bad)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="use memory or view"):
        Finetune(activations="disk")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="keep what enters the top 1 to 1"):
        ActivationReader(lm, 2)
    with pytest.raises(BadInput, match="use float16, bfloat16, float32"):
        ActivationReader(lm, 1, dtype="int8")
    large = toys.module()
    with torch.no_grad():
        large.model.embed_tokens.weight.mul_(1e7)
    with pytest.raises(BadInput, match="too large for float16: keep them as bfloat16"):
        store.read_activations(ActivationReader(Causal(large, lm.tokenizer), 1))
    assert store.read_activations(
        ActivationReader(Causal(large, lm.tokenizer), 1, dtype="bfloat16"), fresh=True
    ).total


def test_it_stays_within_its_bytes_and_goes_on_from_there(tmp_path: Any) -> None:
    lm, store = toys.lm(), make(tmp_path / "s")
    reader = ActivationReader(lm, 1)
    whole = make(tmp_path / "whole")
    total = whole.read_activations(reader).total
    size = sum(file.stat().st_size for file in (tmp_path / "whole/activations").glob("*/*"))
    told = store.read_activations(reader, most_bytes=size * 2 // 3)
    held = sum(file.stat().st_size for file in (tmp_path / "s/activations").glob("*/*"))
    assert 0 < told.documents < 3 and 0 < told.total < total and held <= size * 2 // 3
    assert store.info()["activations"] == told.total
    assert store.read_activations(reader, most_bytes=size * 2 // 3).documents == 0
    told = store.read_activations(reader, most_bytes=size)
    assert told.total == total
    facts = store.info()
    assert facts["activations_enter_top"] == 1 and facts["activations_dtype"] == "float16"
    with pytest.raises(Mismatch, match="kept as float16, asked for is bfloat16"):
        store.read_activations(ActivationReader(lm, 1, dtype="bfloat16"))


def test_an_interrupted_reading_goes_on(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_writer, "COMMIT", 1)
    monkeypatch.setattr(view_writer, "CHARACTERS", 1)
    lm, store = toys.lm(), make(tmp_path / "s")
    reader, read = ActivationReader(lm, 1), []

    def pressed(passage: Passage) -> Any:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(passage.id)
        return ActivationReader.read(reader, passage)

    monkeypatch.setattr(reader, "read", pressed)
    with pytest.raises(KeyboardInterrupt):
        store.read_activations(reader)
    for file in (tmp_path / "s/activations").glob("*/*"):  # what a harder crash leaves
        with file.open("ab") as tail:
            tail.write(b"torn")
    told = store.read_activations(ActivationReader(lm, 1))
    assert told.documents == 1
    assert store.verify() == []
    whole = make(tmp_path / "whole")
    whole.read_activations(ActivationReader(lm, 1))
    one, other = (trained(IN_VIEW, lm, each).delta for each in (store, whole))
    assert all(torch.equal(one.difference(name), other.difference(name)) for name in one.names)


READER = """
import sys
import toys
from uptake.lm.activations import ActivationReader
from uptake.store import Datastore
from uptake.store.views import view_writer
view_writer.COMMIT = view_writer.CHARACTERS = 1
store = Datastore.open(sys.argv[1])
store.read_activations(ActivationReader(toys.lm(), 1), progress=lambda done, every: print(done, flush=True))
"""


@pytest.mark.long
def test_a_reading_that_is_killed_at_any_moment_goes_on(tmp_path: Any) -> None:
    words = np.random.default_rng(0).choice("amber birch cedar delta ember fjord".split(), (24, 9))  # noqa: SIM905
    texts = tuple(" ".join(each) for each in words)
    store, lm = make(tmp_path / "s", texts), toys.lm()
    draws = np.random.default_rng(1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = 0
    for _ in range(8):
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(tmp_path / "s")],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdout is not None
        begun = int(reader.stdout.readline())
        assert begun >= done, "what was committed is there"
        for _ in range(int(draws.integers(0, 3))):
            done = int(reader.stdout.readline() or done)
        time.sleep(float(draws.uniform(0, 0.02)))
        reader.kill()
        reader.communicate()
        store = Datastore.open(tmp_path / "s")
        assert not [line for line in store.verify() if "activations" in line]
    store.read_activations(ActivationReader(lm, 1))
    assert store.verify() == []
    whole = make(tmp_path / "whole", texts)
    whole.read_activations(ActivationReader(lm, 1))
    for text in texts:
        inputs = encode(lm.tokenizer, "", text).inputs
        one, other = (
            each.source("x").activations(fingerprint_of(lm, 1, True, 64)).find(inputs)
            for each in (store, whole)
        )
        assert one is not None and other is not None
        assert np.array_equal(one.hidden, other.hidden) and np.array_equal(one.losses, other.losses)


@pytest.mark.parametrize("name", ["hidden", "values", "losses", "pieces", "passages"])
@pytest.mark.parametrize("how", ["bit", "cut"])
def test_damage_is_refused_told_and_mended(tmp_path: Any, name: str, how: str) -> None:
    lm, store = toys.lm(), make(tmp_path / "s")
    store.read_activations(ActivationReader(lm, 1, dtype="float32"))
    expected = trained(IN_VIEW, lm, store).delta
    (file,) = (tmp_path / "s/activations").glob(f"*/{name}")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw if how == "bit" else raw[:-1])
    store = Datastore.open(tmp_path / "s")
    with pytest.raises(
        Damaged, match=f"{name}: not what was written; `uptake index activations` reads it again"
    ):
        trained(IN_VIEW, lm, store)
    assert any(f"activations/{name}: not what was written" in line for line in store.verify())
    store.read_activations(ActivationReader(lm, 1, dtype="float32"))
    found = trained(IN_VIEW, lm, Datastore.open(tmp_path / "s")).delta
    assert all(torch.equal(found.difference(name), expected.difference(name)) for name in expected.names)
    assert store.verify() == []


def test_purging_leaves_no_number_of_what_was_removed(tmp_path: Any) -> None:
    lm = toys.lm()
    store = make(tmp_path / "s")
    store.read_activations(ActivationReader(lm, 1, dtype="float32"))
    piece = encode(lm.tokenizer, "", TEXTS[1])
    mark = np.array(piece.target, "<i4").tobytes()
    hidden = lm.layers(torch.tensor([piece.inputs]))[0][1][0].numpy().tobytes()

    def there() -> list[bool]:
        whole = b"".join(
            file.read_bytes() for file in (tmp_path / "s/activations").rglob("*") if file.is_file()
        )
        return [mark in whole, hidden in whole]

    assert there() == [True, True]
    store.remove(["1"], purge=True)
    assert there() == [False, False]
    assert store.verify() == [] and store.info()["activations"] > 0
