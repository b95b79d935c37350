"""Every kind of part of a delta: against the model changed by hand, algebra, files, and what is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import toys
from uptake.adaptation.delta import Delta, Dense, LowRank, Name, Part, fingerprint
from uptake.adaptation.delta.gated import Gated, Near
from uptake.adaptation.delta.module import Bottleneck, Inserted
from uptake.adaptation.delta.prompt import Prompt
from uptake.adaptation.delta.scale import Scale
from uptake.adaptation.inner_loop import gradient_descent, token_loss
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import All, LoRA, Trainable, TrainableCopy
from uptake.adaptation.trainable.opening import open_parts
from uptake.adaptation.transforms import Losses
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.export import export_peft
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.lm.side_by_side import SideBySide, side_by_side
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.state import load_state, save_state
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune

WIDTH, INNER, TOKENS = 32, 48, 3
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
MLP = {"gpt2": "transformer.h.1.mlp", "llama": "model.layers.1.mlp", "neox": "gpt_neox.layers.1.mlp"}
IDS = torch.tensor([[0, 5, 6, 7, 5, 6, 7, 9], [0, 9, 8, 7, 6, 5, 4, 3]])


@dataclass(frozen=True, eq=False)
class Rotation(Inserted):
    """The guest: a network of another build, in a file of its own, that replaces the output it is given."""

    turns: int = 1

    def build(self) -> nn.Module:
        width = len(self.values["weight"])
        return nn.Linear(width, width, bias=False)

    def run(self, network: nn.Module, output: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        for _ in range(self.turns):
            output = network(output)
        return output


def random(*shape: int, seed: int = 0, size: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(shape, generator=generator, dtype=torch.float64)


def part(kind: str, seed: int = 0) -> tuple[str, Part]:
    """A random part of a kind, and what it stands on in a Llama."""
    generator = torch.Generator().manual_seed(seed)
    low = LowRank(random(INNER, 2, seed=seed), random(2, WIDTH, seed=seed + 1), 0.5)
    bottleneck = Bottleneck.fresh(WIDTH, 4, generator)
    moved = {
        key: value.double() + random(*value.shape, seed=seed) for key, value in bottleneck.values.items()
    }
    gate = Near(random(2, WIDTH, seed=7), 100.0)
    return {
        "dense": (f"{UP}.weight", Dense(random(INNER, WIDTH, seed=seed))),
        "low rank": (f"{UP}.weight", low),
        "scale": (UP, Scale(random(INNER, seed=seed))),
        "scale input": (DOWN, Scale(random(INNER, seed=seed), "input")),
        "prompt": ("", Prompt(random(TOKENS, WIDTH, seed=seed))),
        "bottleneck": (MLP["llama"], Bottleneck(moved, "gelu")),
        "guest": (MLP["llama"], Rotation({"weight": random(WIDTH, WIDTH, seed=seed)}, turns=2)),
        "gated": (UP, Gated(low, gate, "weight")),
        "gated guest": (MLP["llama"], Gated(Rotation({"weight": random(WIDTH, WIDTH, seed=seed)}), gate)),
    }[kind]


KINDS = (
    "dense", "low rank", "scale", "scale input", "prompt", "bottleneck", "guest", "gated", "gated guest"
)  # fmt: skip
LINEAR = ("dense", "low rank", "scale", "scale input", "gated")


def delta(lm: Causal, *kinds: str, seed: int = 0) -> Delta:
    made = Delta(lm.fingerprint)
    for kind in kinds:
        path, one = part(kind, seed)
        made = made + Delta.of(lm.fingerprint, {path: one}, kind.replace(" ", "-"))
    return made


def log_probs(lm: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = lm.step(ids)[0]
        return found


def double(shape: str = "llama") -> Causal:
    return toys.lm(shape, dtype=torch.float64)


def close(one: Tensor, other: Tensor, shape: str = "llama") -> bool:
    # Llama's norm works in float32, whatever the model's type is.
    return torch.allclose(one, other, atol=1e-5 if shape == "llama" else 1e-11)


def value_of(one: Part) -> Tensor:
    """What a part that can be added is, as one tensor."""
    if isinstance(one, Gated):
        return value_of(one.inner)
    return one.change if isinstance(one, Scale) else one.difference()  # type: ignore[attr-defined, no-any-return]


@given(st.sampled_from(LINEAR), st.integers(0, 99), st.integers(0, 99), st.floats(-3, 3))
def test_algebra_is_that_of_the_values(kind: str, first: int, second: int, factor: float) -> None:
    path, one = part(kind, first)
    other = part(kind, second)[1]
    a, b = Delta.of("b", {path: one}, "x"), Delta.of("b", {path: other}, "x")

    def value(made: Delta) -> Tensor:
        return value_of(made.parts[Name("x", path)])

    assert torch.allclose(value(a + b), value(b + a)) and torch.allclose(value(a + b), value(a) + value(b))
    assert torch.allclose(value((a + b) - b), value(a), atol=1e-12)
    assert torch.allclose(value(a * factor), value(a) * factor)
    assert not value(a - a).abs().max() > 1e-12


@pytest.mark.parametrize("kind", LINEAR)
def test_what_is_taken_away_again_leaves_the_model_it_was_put_on(kind: str) -> None:
    lm = double()
    a, b = delta(lm, "dense"), delta(lm, kind, seed=5)
    if kind == "dense":
        b = b.owned_by("another")
    assert close(log_probs(lm.overlay((a + b) - b)), log_probs(lm.overlay(a)))
    assert not close(log_probs(lm.overlay(a + b)), log_probs(lm.overlay(a)))
    assert close(log_probs(lm.overlay(b * 0.0)), log_probs(lm))


@pytest.mark.parametrize("kind", ["prompt", "bottleneck", "guest", "gated guest"])
def test_what_is_no_difference_is_neither_added_nor_scaled_and_stands_beside(kind: str) -> None:
    lm = double()
    one, other = delta(lm, kind), delta(lm, kind, seed=3)
    with pytest.raises(Mismatch, match="cannot be added: give the two different owners"):
        one + other
    for wrong in (lambda: one * 2.0, lambda: -one, lambda: one - other):
        with pytest.raises(Mismatch, match="cannot be scaled or subtracted"):
            wrong()
    both = one.owned_by("first") + other.owned_by("second")
    stacked = lm.overlay(one.owned_by("first")).overlay(other.owned_by("second"))
    assert close(log_probs(lm.overlay(both)), log_probs(stacked)) or kind == "prompt"
    assert not close(log_probs(lm.overlay(both)), log_probs(lm.overlay(one)))
    swapped = other.owned_by("second") + one.owned_by("first")
    assert torch.equal(log_probs(lm.overlay(both)), log_probs(lm.overlay(swapped)))


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_scale_is_the_weights_scaled(shape: str) -> None:
    lm, plain = double(shape), toys.module(shape, dtype=torch.float64).eval()
    layer = plain.get_submodule(MLP[shape])
    name, linear = next(
        (n, m) for n, m in layer.named_modules() if hasattr(m, "weight") and m.weight.ndim == 2
    )
    turned = shape == "gpt2"
    into, out = linear.weight.shape if turned else linear.weight.shape[::-1]
    for on, size in (("output", out), ("input", into)):
        change = random(size, seed=2)
        made = Delta.of(lm.fingerprint, {f"{MLP[shape]}.{name}": Scale(change, on)}, "scale")  # type: ignore[arg-type]
        wide = (1 + change)[None] if (on == "output") == turned else (1 + change)[:, None]
        by_hand = toys.module(shape, dtype=torch.float64).eval()
        scaled = by_hand.get_submodule(f"{MLP[shape]}.{name}")
        with torch.no_grad():
            scaled.weight.mul_(wide)
            if on == "output" and scaled.bias is not None:
                scaled.bias.mul_(1 + change)
            expected = by_hand(input_ids=IDS).logits.log_softmax(-1)
        assert close(log_probs(lm.overlay(made)), expected, shape)
        assert not close(log_probs(lm), expected, shape)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_prompt_is_so_many_embeddings_before_the_text(shape: str) -> None:
    lm, plain = double(shape), toys.module(shape, dtype=torch.float64).eval()
    vectors = random(TOKENS, WIDTH, seed=4)
    prompted = lm.overlay(Delta.of(lm.fingerprint, {"": Prompt(vectors)}, "prompt"))

    def by_hand(ids: Tensor) -> Any:
        embedded = plain.get_input_embeddings()(ids)
        whole = torch.cat([vectors.expand(len(ids), -1, -1), embedded], 1)
        with torch.no_grad():
            return plain(inputs_embeds=whole, output_hidden_states=True)

    out = by_hand(IDS)
    expected = out.logits[:, TOKENS:].log_softmax(-1)
    assert torch.allclose(log_probs(prompted), expected, atol=1e-6) and not close(
        log_probs(lm), expected, shape
    )
    with torch.no_grad():
        hidden = prompted.hidden(IDS)[0]
        assert torch.allclose(hidden, out.hidden_states[-1][:, TOKENS:], atol=1e-5)
        layers, cache = prompted.layers(IDS[:, :5], prompted.start())
        assert [layer.shape[1] for layer in layers] == [5] * 3
        keys = prompted.step_with_keys(IDS)[1]
        assert keys.shape == (2, 8, WIDTH) and torch.allclose(prompted.keys(IDS), keys)
        # What goes on from a cache stands after the prompt and all before it.
        pieces = []
        cache = prompted.start()
        for start, end in ((0, 3), (3, 4), (4, 8)):
            piece, cache = prompted.step(IDS[:, start:end], cache)
            pieces.append(piece)
    assert torch.allclose(torch.cat(pieces, 1), expected, atol=1e-6)
    # Of the most input tokens it takes its own, and what is left can be filled.
    assert prompted.window == prompted.max_input_tokens(0) == lm.window - TOKENS
    long = torch.arange(1, 1 + prompted.window)[None]
    assert torch.allclose(
        log_probs(prompted, long), by_hand(long).logits[:, TOKENS:].log_softmax(-1), atol=1e-6
    )
    text = "the cat sat on a mat " * 8
    (scores,) = prompted.score([Segment(text)])
    assert len(scores.log_probs) == len(text) and scores.bits != lm.score([Segment(text)])[0].bits
    assert len(prompted.generate("the cat ", tokens=70)) and lm.max_input_tokens(0) == lm.window


def test_a_prompt_stands_before_padded_rows_too() -> None:
    """A mask of one row a text and places of one's own, as a model is given them that reads rows at once."""
    lm = double("gpt2")
    prompted = lm.overlay(delta_on("gpt2", lm))
    module: Any = prompted.module
    padded = torch.tensor([[0, 0, 0, 5, 6, 7], [0, 9, 8, 7, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = module(input_ids=padded, attention_mask=mask, position_ids=places)
        alone = module(input_ids=padded[:1, 2:])
        assert torch.allclose(out.logits[0, 2:], alone.logits[0], atol=1e-9)
        first = module(
            input_ids=padded[:, :4], attention_mask=mask[:, :4], position_ids=places[:, :4],
            past_key_values=prompted.start(), use_cache=True,
        )  # fmt: skip
        rest = module(
            input_ids=padded[:, 4:], attention_mask=mask, position_ids=places[:, 4:],
            past_key_values=first.past_key_values, use_cache=True,
        )  # fmt: skip
    assert torch.allclose(rest.logits, out.logits[:, 4:], atol=1e-9)
    with pytest.raises(BadInput, match="mask of one row a text"):
        module(input_ids=padded, attention_mask=torch.zeros(2, 1, 6, 6))


def delta_on(shape: str, lm: Causal) -> Delta:
    return Delta.of(lm.fingerprint, {"": Prompt(random(TOKENS, WIDTH, seed=4))}, "prompt")


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_an_inserted_module_is_what_it_makes_of_the_output(shape: str) -> None:
    lm, plain = double(shape), toys.module(shape, dtype=torch.float64).eval()
    _, bottleneck = part("bottleneck")
    _, guest = part("guest")
    assert isinstance(bottleneck, Bottleneck) and isinstance(guest, Rotation)
    made = Delta.of(lm.fingerprint, {MLP[shape]: bottleneck}, "adapter")
    made = made + Delta.of(lm.fingerprint, {MLP[shape]: guest}, "guest")

    def by_hand(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        v, turn = bottleneck.values, guest.values["weight"]
        inner = nn.functional.gelu(output @ v["down.weight"].T + v["down.bias"])
        output = output + inner @ v["up.weight"].T + v["up.bias"]
        return output @ turn.T @ turn.T

    plain.get_submodule(MLP[shape]).register_forward_hook(by_hand)
    with torch.no_grad():
        expected = plain(input_ids=IDS).logits.log_softmax(-1)
    found = lm.overlay(made)
    assert torch.allclose(log_probs(found), expected, atol=1e-5 if shape == "llama" else 1e-9)
    names = {name for name, _ in found.module.named_parameters()}
    assert names > {name for name, _ in lm.module.named_parameters()}, "no name of the base is another"
    assert f"{MLP[shape]}.inserted_by_guest.weight" in names
    fresh = Bottleneck.fresh(WIDTH, 4, torch.Generator().manual_seed(1))
    still = lm.overlay(Delta.of(lm.fingerprint, {MLP[shape]: fresh}, "adapter"))
    assert torch.equal(log_probs(still), log_probs(lm)), "a fresh one changes nothing"


@pytest.mark.parametrize("inner", ["low rank", "guest"])
def test_a_gate_picks_place_by_place(inner: str) -> None:
    lm, seen = double(), []
    path = UP if inner == "low rank" else MLP["llama"]
    probe = toys.module("llama", dtype=torch.float64).eval()
    probe.get_submodule(path).register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        probe(input_ids=IDS)
    edited = seen[0][0, 4]  # what enters at one place of the first row
    made = Gated(part(inner)[1], Near(edited[None], 1e-9), "weight" if inner == "low rank" else "")
    gated = lm.overlay(Delta.of(lm.fingerprint, {path: made}, "edit"))
    with_all = lm.overlay(Delta.of(lm.fingerprint, {f"{path}.{made.within}".rstrip("."): made.inner}, "edit"))
    before, after, whole = log_probs(lm), log_probs(gated), log_probs(with_all)
    assert torch.equal(after[1], before[1]), "no place of this row is near"
    assert torch.equal(after[0, :4], before[0, :4]) and not torch.allclose(
        after[0, 4], before[0, 4], atol=1e-3
    )
    if inner == "guest":  # the last block: no later place reads what was changed
        assert torch.equal(after[0, 5:], before[0, 5:])
        assert torch.allclose(after[0, 4], whole[0, 4], atol=1e-9)
    always = replace(made, gate=Near(edited[None], 1e9))
    assert torch.allclose(
        log_probs(lm.overlay(Delta.of(lm.fingerprint, {path: always}, "edit"))), whole, atol=1e-9
    )


def test_a_gate_stands_on_what_takes_and_returns_one_tensor() -> None:
    lm = double()
    low, everywhere = part("low rank")[1], Near(torch.zeros(1, WIDTH), 100.0)
    on_a_block = Gated(low, everywhere, "mlp.up_proj.weight")
    gated = lm.overlay(Delta.of(lm.fingerprint, {"model.layers.0": on_a_block}, "edit"))
    with pytest.raises(BadInput, match="put it on a feed-forward"):
        log_probs(gated)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_stays_and_all_that_did_not_change_is_shared(kind: str) -> None:
    lm = double()
    bits, hooks = fingerprint(lm.module), [len(part._forward_hooks) for part in lm.module.modules()]
    before = log_probs(lm)
    changed = lm.overlay(delta(lm, kind))
    assert not torch.allclose(log_probs(changed), before, atol=1e-3)
    assert fingerprint(lm.module) == bits and torch.equal(log_probs(lm), before)
    assert hooks == [len(part._forward_hooks) for part in lm.module.modules()]
    own = dict(changed.module.named_parameters())
    moved = {name for name, weight in lm.module.named_parameters() if own[name] is not weight}
    assert moved == ({f"{UP}.weight"} if kind in ("dense", "low rank") else set())
    assert changed.module.get_output_embeddings().weight is changed.module.get_input_embeddings().weight  # type: ignore[operator]
    assert changed.weights_fingerprint != lm.weights_fingerprint and changed.fingerprint == lm.fingerprint
    other = lm.overlay(delta(lm, kind, seed=1))
    assert other.weights_fingerprint != changed.weights_fingerprint
    # A tensor given in the place of a part's own counts, as in training that is gone through.
    for name in own.keys() - dict(lm.module.named_parameters()).keys():
        with torch.no_grad():
            given = changed.with_parameters({name: own[name] * 0.5})
        assert not torch.allclose(log_probs(given), log_probs(changed), atol=1e-6), name


def test_weights_that_only_a_gate_or_its_radius_tell_apart_have_their_own_fingerprint() -> None:
    lm = double()
    path, one = part("gated")
    assert isinstance(one, Gated) and isinstance(one.gate, Near)
    found = {
        lm.overlay(Delta.of(lm.fingerprint, {path: each}, "edit")).weights_fingerprint
        for each in (
            one,
            replace(one, gate=Near(one.gate.keys, 5.0)),
            replace(one, gate=Near(one.gate.keys + 1, 100.0)),
        )
    }
    assert len(found) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_back_every_bit(kind: str, tmp_path: Path) -> None:
    lm = double()
    made = delta(lm, kind)
    made.save(tmp_path / "delta")
    back = Delta.load(tmp_path / "delta", lm.fingerprint)
    assert back.parts.keys() == made.parts.keys() and back.kinds == made.kinds
    assert back.fingerprint == made.fingerprint != delta(lm, kind, seed=1).fingerprint
    assert torch.equal(log_probs(lm.overlay(back)), log_probs(lm.overlay(made)))
    for (_, one), (_, other) in zip(sorted(made.parts.items()), sorted(back.parts.items()), strict=True):
        assert one.settings() == other.settings() and one.tensors().keys() == other.tensors().keys()
        assert all(torch.equal(one.tensors()[key], other.tensors()[key]) for key in one.tensors())
    with pytest.raises(Mismatch, match="belongs to base model"):
        Delta.load(tmp_path / "delta", "other")
    save_state(WeightState(base=lm.fingerprint, delta=made), tmp_path / "state")
    assert load_state(WeightState, tmp_path / "state", lm).delta.fingerprint == made.fingerprint


def test_a_file_of_an_unknown_kind_or_without_its_tensors_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    lm = double()
    Rotation.__name__ = "Forgotten"
    try:
        delta(lm, "guest").save(tmp_path / "delta")
        save_state(WeightState(base=lm.fingerprint, delta=delta(lm, "guest")), tmp_path / "state")
    finally:
        Rotation.__name__ = "Rotation"
    unknown = r"'Forgotten' are not known here.*import the module that defines it"
    with pytest.raises(Mismatch, match=unknown):
        Delta.load(tmp_path / "delta", lm.fingerprint)
    with pytest.raises(Mismatch, match=unknown):
        load_state(WeightState, tmp_path / "state", lm)
    monkeypatch.setattr(Dense, "tensors", lambda self: {})
    delta(lm, "dense").save(tmp_path / "hollow")
    monkeypatch.undo()
    with pytest.raises(Damaged, match="no tensor values of a Dense"):
        Delta.load(tmp_path / "hollow", lm.fingerprint)


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("no.such", "scale", "changes 'no.such', which the model lacks"),
        ("no.such.weight", "dense", "changes 'no.such.weight', which the model lacks"),
        (f"{DOWN}.weight", "dense", "of shape"),
        (UP, "prompt", "stands before the whole text"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(path: str, kind: str, words: str) -> None:
    lm = double()
    with pytest.raises(Mismatch, match=words):
        lm.overlay(Delta.of(lm.fingerprint, {path: part(kind)[1]}, "wrong"))


def test_bad_parts_are_refused(tmp_path: Path) -> None:
    lm = double()
    narrow = Delta.of(lm.fingerprint, {"": Prompt(torch.zeros(2, 5))}, "wrong")
    with pytest.raises(Mismatch, match="embeddings of width 32"):
        lm.overlay(narrow)
    with pytest.raises(Mismatch, match="width 48"):
        log_probs(lm.overlay(Delta.of(lm.fingerprint, {UP: Scale(torch.zeros(5))}, "wrong")))
    with pytest.raises(Mismatch, match="has other parameters"):
        lm.overlay(Delta.of(lm.fingerprint, {UP: Bottleneck({"down.weight": torch.zeros(2, 3)})}, "wrong"))
    with pytest.raises(BadInput, match="cannot be gated"):
        Gated(Prompt(torch.zeros(2, WIDTH)), Near(torch.zeros(1, WIDTH), 1.0))
    wrong: Any = "both"
    for make in (
        lambda: Near(torch.zeros(1, 2), -1.0),
        lambda: Scale(torch.zeros(1), wrong),
        lambda: Bottleneck({}, wrong),
    ):
        with pytest.raises(BadInput, match="use"):
            make()
    with pytest.raises(BadInput, match=r"owner 'a\.b'"):
        Delta.of("b", {}, "a.b")
    with pytest.raises(BadInput, match=r"give \[out, rank\] and \[rank, in\]"):
        LowRank(torch.zeros(4, 3), torch.zeros(2, 4))
    for taken in (lm.window, lm.window + 9):  # scoring would cut windows of no token, without end
        whole = Delta.of(lm.fingerprint, {"": Prompt(torch.zeros(taken, WIDTH))}, "wrong")
        with pytest.raises(BadInput, match=f"{taken} of the model's 64 input tokens are taken"):
            lm.overlay(whole)
    (path, gated), (_, other) = part("gated"), part("gated")
    apart = Delta.of("b", {path: replace(other, gate=Near(torch.ones(1, WIDTH), 1.0))}, "x")  # type: ignore[type-var]
    with pytest.raises(Mismatch, match="different gates"):
        Delta.of("b", {path: gated}, "x") + apart
    with pytest.raises(Mismatch, match="enters and one what leaves"):
        Scale(torch.zeros(2)).plus(Scale(torch.zeros(2), "input"))
    mixed = Delta.of("b", {path: gated}, "x")
    with pytest.raises(Mismatch, match="is Gated and Scale: give them different owners"):
        mixed + Delta.of("b", {path: part("scale")[1]}, "x")
    with pytest.raises(Mismatch, match="several owners"):
        (mixed + mixed.owned_by("y")).owned_by("z")
    for kind in ("scale", "prompt", "guest", "gated"):
        with pytest.raises(BadInput, match=f"has a {type(part(kind)[1]).__name__} and a LoRA adapter"):
            export_peft(delta(lm, "low rank", kind), lm, tmp_path / "adapter")


def trained(copy: TrainableCopy, lm: Causal, steps: int = 2) -> Tensor:
    private = lm.around(copy.module)

    def losses(ids: Tensor) -> Losses:
        return Losses(
            torch.stack([token_loss(private.step(row[None, :-1])[0], row[None, 1:]) for row in ids]), "ab"
        )

    gradient_descent(losses, copy.parameters, [IDS] * steps, SGD(0.5))
    return log_probs(private)


@dataclass(frozen=True)
class Owned(Trainable):
    """Trains the parts it is given, of any kind: all that a new kind of trainable part has to write."""

    kinds: Sequence[str] = ()
    owner: str = "mine"
    neutral = False

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        parts = dict(part(kind) for kind in self.kinds)
        return open_parts(module, parts, self.owner, start)


@pytest.mark.parametrize("kind", ["scale", "scale input", "prompt", "bottleneck", "guest", "gated guest"])
def test_what_was_trained_of_a_part_is_what_the_delta_puts_back(kind: str) -> None:
    lm = double()
    start = delta(lm, "low rank", "bottleneck")
    copy = Owned((kind,)).copy(lm.module, start, torch.Generator())
    before = log_probs(lm.around(copy.module))
    after = trained(copy, lm)
    assert not torch.allclose(after, before, atol=1e-4)
    ended = copy.delta()
    assert close(log_probs(lm.overlay(ended)), after)
    assert ended.parts.keys() == start.parts.keys() | {Name("mine", part(kind)[0])}
    for name, one in start.parts.items():
        assert all(
            torch.equal(one.tensors()[key], value) for key, value in ended.parts[name].tensors().items()
        )
    again = Owned((kind,)).copy(lm.module, ended, torch.Generator())
    assert close(log_probs(lm.around(again.module)), after), "it goes on where it was"
    with pytest.raises(BadInput, match="nothing of a Dense trains as a part"):
        Owned(("dense",)).copy(lm.module, start, torch.Generator())


@pytest.mark.parametrize(
    "second", [LoRA(rank=2, owner="second"), LoRA(rank=3, owner="second"), All()], ids=str
)
def test_two_trainings_stand_in_one_delta_and_each_finds_its_own(second: Trainable) -> None:
    lm = double()
    under = delta(lm, "scale", "guest")
    first = LoRA(rank=2).copy(lm.module, under, torch.Generator().manual_seed(0))
    trained(first, lm)
    copy = second.copy(lm.module, first.delta(), torch.Generator().manual_seed(1))
    after = trained(copy, lm)
    ended = copy.delta()
    assert close(log_probs(lm.overlay(ended)), after)
    kept = ended.parts_of(LowRank, "lora")
    for name, one in first.delta().parts_of(LowRank, "lora").items():
        assert torch.equal(kept[name].up, one.up) and torch.equal(kept[name].down, one.down)
    # The first goes on from its own, the second's stays.
    again = LoRA(rank=2).copy(lm.module, ended, torch.Generator().manual_seed(2))
    assert close(log_probs(lm.around(again.module)), after)
    trained(again, lm)
    theirs = again.delta().without(lambda name, _: name.owner != second.owner)
    assert theirs.fingerprint == ended.without(lambda name, _: name.owner != second.owner).fingerprint
    with pytest.raises(BadInput, match=r"train at that rank, or give rank 5 an owner of its own"):
        LoRA(rank=5).copy(lm.module, ended, torch.Generator())


def test_weights_do_not_train_under_copies_of_them() -> None:
    lm = double()
    with pytest.raises(BadInput, match="train first, then gate"):
        All().copy(lm.module, delta(lm, "gated"), torch.Generator())
    above = LoRA(rank=2).copy(lm.module, delta(lm, "gated"), torch.Generator().manual_seed(0))
    after = trained(above, lm)
    assert close(log_probs(lm.overlay(above.delta())), after), "low-rank factors are shared with the copy"


def test_fine_tuning_trains_any_part_and_rows_of_different_kinds_answer_side_by_side() -> None:
    lm = toys.lm()
    method = Finetune(trainable=Owned(("prompt",)), optimizer=SGD(0.5), clip=None)
    read = [Evidence.of("the cat sat on the mat"), Evidence.of("a dog ran over the hill")]
    states = method.adapt([method.init(lm)] * 2, lm, read, Context())
    model = method.adapted(states, lm)
    assert model.max_input_tokens(0) == lm.window - TOKENS
    both = log_probs(model)
    assert not torch.allclose(both[0], log_probs(lm)[0], atol=1e-3)
    # The second reading goes on from the first, whose prompt takes up places of the window.
    long = Evidence.of("one fish, two fish, " * 8)
    (further,) = method.adapt(states[:1], lm, [long], Context())
    assert len(further.history) == 2
    lengths = [len(piece.example.inputs) for piece in method.pieces(model, long.passages)]
    assert max(lengths) == lm.window - TOKENS
    # What is scored is scored before it is learnt: no fused pass of a copy whose start changes something.
    segment = Segment("one fish")
    (scores,), _ = method.read([method.init(lm)], lm, [segment], Context())
    assert torch.equal(scores.log_probs, lm.score([segment])[0].log_probs)
    mixed = [states[0].delta, delta(lm, "guest"), delta(lm, "scale", "low rank"), Delta(lm.fingerprint)]
    rows = side_by_side(lm, mixed)
    assert not isinstance(rows, SideBySide)
    ids = IDS[:1].expand(4, -1)
    for row, one in enumerate(mixed):
        assert torch.allclose(log_probs(rows, ids)[row], log_probs(lm.overlay(one), ids[:1])[0], atol=1e-5)
