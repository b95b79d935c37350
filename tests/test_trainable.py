"""Every kind of trainable: against formulas and peft's layers, where it begins, what it refuses."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

import toys
from uptake.adaptation.delta import Delta, Dense, Name, Part, fingerprint
from uptake.adaptation.delta.compacter import HypercomplexAdapters
from uptake.adaptation.delta.prompt import Prompt as SoftPrompt
from uptake.adaptation.delta.scale import Scale
from uptake.adaptation.delta.tarp import ONE, InputDependent, Rescaled
from uptake.adaptation.inner_loop import gradient_descent, token_loss
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.trainable import LoRA, Trainable, TrainableCopy
from uptake.adaptation.trainable.compacter import Compacter
from uptake.adaptation.trainable.ia3 import IA3
from uptake.adaptation.trainable.places import upper_blocks
from uptake.adaptation.trainable.prompt import Prompt
from uptake.adaptation.trainable.tarp import TARP
from uptake.adaptation.transforms import Losses
from uptake.errors import BadInput, Mismatch
from uptake.lm.causal import Causal
from uptake.lm.side_by_side import SideBySide, side_by_side, train_side_by_side
from uptake.lm.upper_blocks import UpperBlocks, above_frozen
from uptake.lm.wrappers import Prefixed
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.settings import parse, written
from uptake.text.tokenizer import Tokenizer

IDS = torch.tensor([[0, 5, 6, 7, 5, 6, 7, 9], [0, 9, 8, 7, 6, 5, 4, 3]])
KINDS: Mapping[str, Trainable] = {
    "ia3": IA3(),
    "prompt": Prompt(tokens=3),
    "compacter": Compacter(),
    "compacter++": Compacter(n=2, reduction=4, after="feed-forward", norms=False),
    "tarp": TARP(rank=2),
    "lora top": LoRA(rank=2, layers=1),
    "ia3 top": IA3(layers=1),
}
ATTENTION = {"gpt2": "transformer.h.0.attn", "llama": "model.layers.0.self_attn"}


def double(shape: str = "llama", seed: int = 0) -> Causal:
    return toys.lm(shape, seed=seed, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_probs(lm: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = lm.step(ids)[0]
        return found


def opened(lm: Causal, kind: Trainable, start: Delta | None = None, seed: int = 0) -> TrainableCopy:
    return kind.copy(lm.module, start or Delta(lm.fingerprint), generator(seed))


def trained(lm: Causal, copy: TrainableCopy, steps: int = 3, rate: float = 0.5) -> Tensor:
    private = lm.around(copy.module)

    def losses(ids: Tensor) -> Losses:
        return Losses.one(token_loss(private.step(ids[:, :-1])[0], ids[:, 1:]), "")

    gradient_descent(losses, copy.parameters, [IDS] * steps, SGD(rate))
    return log_probs(private)


def close(one: Tensor, other: Tensor, shape: str) -> bool:
    # Llama's norm works in float32, whatever the model's type is.
    return torch.allclose(one, other, atol=1e-5 if shape == "llama" else 1e-11)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", toys.SHAPES)
def test_it_begins_as_the_base_and_what_was_trained_is_what_the_delta_puts_back(
    shape: str, name: str, tmp_path: Path
) -> None:
    lm, kind = double(shape), KINDS[name]
    before = fingerprint(lm.module)
    copy = opened(lm, kind)
    assert copy.parameters and all(each.requires_grad for each in copy.parameters.values())
    begun = log_probs(lm.around(copy.module))
    assert torch.equal(begun, log_probs(lm)) == kind.neutral
    rate = 20.0 if name == "tarp" else 0.5  # its product of three small factors begins slowly
    after = trained(lm, copy, rate=rate)
    assert not torch.allclose(after, begun, atol=1e-3)
    ended = copy.delta()
    assert close(log_probs(lm.overlay(ended)), after, shape)
    assert {each.owner for each in ended.parts} <= {kind.owner, "weights"}
    ended.save(tmp_path / "delta")
    loaded = Delta.load(tmp_path / "delta", lm.fingerprint)
    assert loaded.fingerprint == ended.fingerprint
    # Training goes on where it ended, and every tensor in the delta is one that has moved.
    again = opened(lm, kind, loaded, seed=1)
    assert close(log_probs(lm.around(again.module)), after, shape)
    further = trained(lm, again, rate=rate)
    assert close(log_probs(lm.overlay(again.delta())), further, shape) and not close(further, after, shape)
    assert again.delta().parts.keys() == ended.parts.keys()
    for place, part in again.delta().parts.items():
        for key, value in part.tensors().items():
            assert not torch.equal(value, ended.parts[place].tensors()[key]), (place, key)
    assert fingerprint(lm.module) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.module.modules())


@pytest.mark.parametrize("name", KINDS)
def test_settings_write_it_and_read_it_back(name: str) -> None:
    kind = KINDS[name]
    assert parse(Trainable, written(kind), "trainable") == kind
    with pytest.raises(BadInput, match="owner 'two words'"):
        replace(kind, owner="two words")  # type: ignore[type-var]


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_ia3_merged_into_the_weights_is_ia3_applied(shape: str) -> None:
    """The naive version: W_k and W_v times l row by row, the last feed-forward's matrix column by column."""
    lm = double(shape)
    copy = opened(lm, IA3())
    after = trained(lm, copy)
    merged = {}
    for (_, path), part in copy.delta().parts.items():
        assert isinstance(part, Scale)
        layer: Any = lm.module.get_submodule(path)
        turned = not isinstance(layer, torch.nn.Linear)
        weight = layer.weight.T if turned else layer.weight
        if part.on == "input":
            change = weight * part.change
        else:
            out = torch.zeros(len(weight), dtype=torch.float64)
            places = [each for start, end in part.ranges for each in range(start, end)] or slice(None)
            out[places] = part.change
            change = weight * out[:, None]
            if layer.bias is not None:
                merged[f"{path}.bias"] = layer.bias * out
        merged[f"{path}.weight"] = change.T if turned else change
    naive = lm.overlay(Delta.dense(lm.fingerprint, merged))
    assert close(log_probs(naive), after, shape)


def test_ia3_leaves_queries_as_they_are() -> None:
    for shape in ("gpt2", "neox"):
        lm = double(shape)
        (path, part) = next((name.path, p) for name, p in opened(lm, IA3()).delta().parts.items())
        assert isinstance(part, Scale) and len(part.change) == 64
        ones = replace(part, change=part.change + 1)
        changed = lm.overlay(Delta.of(lm.fingerprint, {path: ones}, "ia3"))
        inputs = torch.ones(1, 1, 32, dtype=torch.float64)
        with torch.no_grad():
            before = lm.module.get_submodule(path)(inputs)[0, 0]
            after = changed.module.get_submodule(path)(inputs)[0, 0]
        # GPT-2: all queries first. NeoX: 16 of a head's query, 16 of its key, 16 of its value.
        queries = torch.arange(96) < 32 if shape == "gpt2" else torch.arange(96) % 48 < 16
        assert torch.equal(after, torch.where(queries, before, 2 * before))


def test_ia3_is_what_pefts_layers_compute() -> None:
    from peft import IA3Config, inject_adapter_in_model

    lm = double()
    after = trained(lm, copy := opened(lm, IA3()))
    config = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    theirs: Any = inject_adapter_in_model(config, toys.module("llama", dtype=torch.float64))
    for (_, path), part in copy.delta().parts.items():
        assert isinstance(part, Scale)
        vector = theirs.get_submodule(path).ia3_l["default"]
        with torch.no_grad():
            vector.copy_((1 + part.change).view_as(vector))
    with torch.no_grad():
        assert close(torch.log_softmax(theirs(IDS).logits, -1), after, "llama")
    assert len(copy.parameters) == 6


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_soft_prompt_of_real_embeddings_is_those_tokens_before_the_text(shape: str) -> None:
    lm = double(shape)
    tokens = [9, 8, 7]
    embedding: Any = lm.module.get_input_embeddings()  # type: ignore[operator]
    made = Delta.of(lm.fingerprint, {"": SoftPrompt(embedding.weight[tokens].detach())}, "prompt")
    soft = lm.overlay(made)
    # What stands before the text stands before its opening token too.
    whole = log_probs(lm, torch.cat([torch.tensor([tokens]).expand(2, -1), IDS], 1))[:, 3:]
    assert close(log_probs(soft), whole, shape)
    opening = [*tokens, lm.tokenizer.opening]
    assert close(log_probs(soft), log_probs(Prefixed(lm, [opening, opening])), shape)
    cache = soft.start()
    parts = []
    with torch.no_grad():
        for stretch in (IDS[:, :3], IDS[:, 3:4], IDS[:, 4:]):
            found, cache = soft.step(stretch, cache)
            parts.append(found)
    assert close(torch.cat(parts, 1), whole, shape)
    assert soft.window == lm.window - 3


def test_a_prompt_is_what_peft_puts_before_the_text() -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    lm = double()
    after = trained(lm, copy := opened(lm, Prompt(tokens=3)))
    config = PromptTuningConfig(num_virtual_tokens=3, task_type=TaskType.CAUSAL_LM)
    theirs: Any = get_peft_model(toys.module("llama", dtype=torch.float64), config)
    (part,) = copy.delta().parts.values()
    with torch.no_grad():
        weight = theirs.prompt_encoder["default"].embedding.weight
        weight.data = part.tensors()["vectors"]
        logits = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits
    assert close(torch.log_softmax(logits[:, 3:], -1), after, "llama")


def test_a_prompt_begins_with_embeddings_of_drawn_tokens() -> None:
    lm = double()
    drawn = [opened(lm, Prompt(tokens=5), seed=seed).delta().parts[Name("prompt", "")] for seed in (0, 0, 1)]
    first, again, other = (part.tensors()["vectors"] for part in drawn)
    assert torch.equal(first, again) and not torch.equal(first, other)
    table: Any = lm.module.get_input_embeddings().weight  # type: ignore[operator]
    rows = [int((table == vector).all(1).nonzero()) for vector in first]
    assert len(set(rows)) == 5


def kron_sum(part: HypercomplexAdapters, path: str, which: str) -> Tensor:
    s, t = part.values[f"{path}|{which}_s"], part.values[f"{path}|{which}_t"]
    return torch.stack([torch.kron(part.shared[i], s[i] @ t[i]) for i in range(len(part.shared))]).sum(0)


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_compacter_adds_an_adapter_of_kronecker_sums(shape: str) -> None:
    lm = double(shape)
    copy = opened(lm, Compacter(n=2, reduction=4, norms=False))
    trained(lm, copy)
    ended = copy.delta()
    ((_, part),) = ended.parts.items()
    assert isinstance(part, HypercomplexAdapters) and part.shared.shape == (2, 2, 2)
    adapted = lm.overlay(ended).module
    assert len({path.partition("|")[0] for path in part.values}) == 4, "after attention and feed-forward"
    for path in {each.partition("|")[0] for each in part.values}:
        if path.endswith(("attn", "attention")):
            continue  # it takes more than one tensor; the same code
        given = torch.randn(2, 5, 32, dtype=torch.float64, generator=generator())
        with torch.no_grad():
            plain = lm.module.get_submodule(path)(given)
            inner = torch.nn.functional.gelu(
                plain @ kron_sum(part, path, "down") + part.values[f"{path}|down_bias"]
            )
            wanted = plain + inner @ kron_sum(part, path, "up") + part.values[f"{path}|up_bias"]
            found = adapted.get_submodule(path)(given)
        assert kron_sum(part, path, "down").shape == (32, 8)
        assert torch.allclose(found, wanted, atol=1e-12) and not torch.allclose(found, plain, atol=1e-4)


def test_compacter_shares_one_tensor_over_all_layers_and_trains_norms() -> None:
    lm = double()
    copy = opened(lm, Compacter())
    trained(lm, copy)
    shared = [name for name in copy.parameters if name.endswith(".shared")]
    assert len(shared) == 1
    kinds = copy.delta().kinds
    assert kinds == {Dense, HypercomplexAdapters}
    norms = copy.delta().without(lambda _, part: not isinstance(part, Dense)).names
    assert norms == {name for name, _ in lm.module.named_parameters() if "layers" in name and "norm" in name}
    # A tensor given in place of the shared one counts in every adapter.
    private = lm.around(copy.module)
    values = {name: value.detach() for name, value in copy.parameters.items()}
    zero = {**values, shared[0]: torch.zeros_like(values[shared[0]])}
    biases = copy.delta().parts
    bare = {
        name: replace(part, shared=torch.zeros_like(part.shared))
        if isinstance(part, HypercomplexAdapters)
        else part
        for name, part in biases.items()
    }
    wanted = log_probs(lm.overlay(Delta(lm.fingerprint, bare)))
    assert close(log_probs(private.with_parameters(zero)), wanted, "llama")
    assert close(log_probs(private.with_parameters(values)), log_probs(private), "llama")


def test_a_reduction_that_does_not_divide_is_refused_and_left_out_it_is_one_that_does() -> None:
    smollm2 = 576
    assert Compacter().reduction_of(smollm2) == 36
    assert Compacter(reduction=24).reduction_of(smollm2) == 24
    with pytest.raises(BadInput, match=r"reduction 32: 576 / 32 is no multiple of n 4, use reduction=36"):
        Compacter(reduction=32).reduction_of(smollm2)
    with pytest.raises(BadInput, match=r"n 5 does not divide the model's width of 576: use n=4"):
        Compacter(n=5).reduction_of(smollm2)
    assert Compacter().reduction_of(1024) == 32
    with pytest.raises(BadInput, match="reduction 5"):
        opened(double(), Compacter(reduction=5))


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_tarp_rescales_the_weight_and_adds_what_depends_on_the_input(shape: str) -> None:
    lm = double(shape)
    copy = opened(lm, TARP(rank=2))
    trained(lm, copy)
    ended = copy.delta()
    layers = [path for path in ended.names if not path.endswith(".weight")]
    assert len(layers) == (8 if shape == "llama" else 4) and all("attn" in path for path in layers)
    private, adapted = copy.module, lm.overlay(ended).module
    for path in layers:
        rescaled, dynamic = (ended.parts[Name("tarp", each)] for each in (f"{path}.weight", path))
        assert isinstance(rescaled, Rescaled) and isinstance(dynamic, InputDependent)
        layer: Any = lm.module.get_submodule(path)
        weight = layer.weight if shape == "llama" else layer.weight.T
        factor = torch.nn.functional.softplus(rescaled.up @ rescaled.down + ONE)
        given = torch.randn(3, 32, dtype=torch.float64, generator=generator())
        values = dynamic.values
        wanted = []
        for x in given:
            phi = (values["phi.weight"] @ x + values["phi.bias"]).reshape(2, 2)
            added = values["p.weight"] @ (phi @ (values["q.weight"] @ x))
            bias = 0 if layer.bias is None else layer.bias
            wanted.append((factor * weight) @ x + bias + added)
        for module in (private, adapted):
            with torch.no_grad():
                found = module.get_submodule(path)(given[None])[0]
            assert torch.allclose(found, torch.stack(wanted), atol=1e-12)


def test_what_others_add_to_a_weight_is_not_rescaled_whoever_trains_last() -> None:
    lm = double()
    scales = opened(lm, TARP(rank=2))
    trained(lm, scales)
    low = opened(lm, LoRA(rank=2), scales.delta())
    after = trained(lm, low)
    both = low.delta()
    assert close(log_probs(lm.overlay(both)), after, "llama")
    again = opened(lm, TARP(rank=2), both)
    assert close(log_probs(lm.around(again.module)), after, "llama")
    after = trained(lm, again)
    assert close(log_probs(lm.overlay(again.delta())), after, "llama")
    other = opened(lm, TARP(rank=3, owner="another"), again.delta())
    after = trained(lm, other)
    assert close(log_probs(lm.overlay(other.delta())), after, "llama")
    first = opened(lm, TARP(rank=2), other.delta())
    after = trained(lm, first)
    assert close(log_probs(lm.overlay(first.delta())), after, "llama")


ALGEBRA: Mapping[str, tuple[bool, bool]] = {  # adds, scales
    "ia3": (True, True),
    "prompt": (False, False),
    "compacter": (False, False),
    "tarp": (False, False),
}


@pytest.mark.parametrize("name", ALGEBRA)
def test_it_adds_and_scales_where_that_means_something(name: str) -> None:
    lm = double()
    copy = opened(lm, KINDS[name])
    trained(lm, copy)
    ended = copy.delta()
    adds, scales = ALGEBRA[name]
    if adds:
        doubled = ended + ended
        assert close(log_probs(lm.overlay(doubled)), log_probs(lm.overlay(2 * ended)), "llama")
        assert torch.equal(log_probs(lm.overlay(ended - ended)), log_probs(lm))
    else:
        with pytest.raises(Mismatch, match="cannot be added: give the two different owners"):
            ended + ended
    if not scales:
        for use in (lambda: ended * 0.5, lambda: -ended, lambda: Delta(lm.fingerprint) - ended):
            with pytest.raises(Mismatch, match="cannot be scaled or subtracted: leave it out"):
                use()


@pytest.mark.parametrize("name", KINDS)
def test_upper_blocks_alone_train_above_frozen_ones(name: str) -> None:
    if name == "prompt":
        return  # it stands below all blocks
    lm = double("gpt2")
    kind: Any = replace(KINDS[name], layers=1)  # type: ignore[type-var]
    start = Delta(lm.fingerprint)
    for _ in range(2):  # from the base, then from what was trained
        private, copy = lm.trainable_copy(kind, start, generator())
        assert all(".h.1." in each for each in copy.parameters)
        assert all(".h.1" in each for each in copy.delta().names)
        quick = above_frozen(lm, private, copy, start)
        assert isinstance(quick, UpperBlocks)
        trained(lm, copy)
        start = copy.delta()
    assert not kind.stacks
    with pytest.raises(BadInput, match="the model has 2 blocks, use 1 to 2"):
        opened(lm, replace(kind, layers=3))


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_scales_of_many_rows_train_and_answer_in_one_pass(shape: str) -> None:
    from test_side_by_side_training import SIZES, pieces

    lm = double(shape)
    starts, states = [Delta(lm.fingerprint)] * len(SIZES), [{} for _ in SIZES]
    for seed in (0, 1):
        given = pieces(seed=seed)
        ended = train_side_by_side(
            lm, IA3(), starts, [generator() for _ in SIZES], given, AdamW(1e-2), (), states
        )
        assert ended is not None
        for row, (delta, end) in enumerate(ended):
            private, copy = lm.trainable_copy(IA3(), starts[row], generator())

            def losses(piece: Any, private: Any = private) -> Losses:
                found = private.step(torch.tensor([piece.example.inputs]))[0]
                target = torch.tensor([piece.example.target])
                return Losses.one(token_loss(found, target, piece.weights[None]), piece.document)

            state = gradient_descent(losses, copy.parameters, given[row], AdamW(1e-2), (), states[row])
            wanted = copy.delta()
            assert state.keys() == end.optimizer_state.keys() and delta.parts.keys() == wanted.parts.keys()
            for name, part in wanted.parts.items():
                mine = delta.parts[name].tensors()["change"]
                assert torch.allclose(mine, part.tensors()["change"], atol=1e-8), name
                assert float(mine.abs().max()) > 1e-4
        starts, states = [delta for delta, _ in ended], [end.optimizer_state for _, end in ended]
    low = toys.low_rank(lm, [2])[0].owned_by("low")
    rows = [starts[0], low, Delta(lm.fingerprint), starts[1] + low]
    both = side_by_side(lm, rows)
    assert isinstance(both, SideBySide)
    ids = IDS[:1].expand(4, -1)
    for row, delta in enumerate(rows):
        assert close(log_probs(both, ids)[row], log_probs(lm.overlay(delta), ids[:1])[0], shape)
    # Two owners' scales of one layer multiply, which a stack cannot hold: the loop can.
    twice = [starts[0], starts[1] + starts[0].owned_by("another")]
    apart = side_by_side(lm, twice)
    assert not isinstance(apart, SideBySide)
    assert close(log_probs(apart)[1], log_probs(lm.overlay(twice[1]))[1], shape)


def test_a_batch_of_scales_is_trained_together_and_other_kinds_one_by_one() -> None:
    lm = toys.lm()
    read = [Evidence.of("one fish, two fish"), Evidence.of("blue fish " * 4)]
    for name, kind in KINDS.items():
        method = Finetune(trainable=kind, optimizer=SGD(0.1))
        assert method.separate == (name != "ia3")
        together = method.adapt([method.init(lm)] * 2, lm, read, Context())
        for row, state in enumerate(together):
            (alone,) = method.adapt([method.init(lm)], lm, read[row : row + 1], Context())
            assert state.delta.parts.keys() == alone.delta.parts.keys()
            assert torch.allclose(
                log_probs(lm.overlay(state.delta)), log_probs(lm.overlay(alone.delta)), atol=1e-5
            )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TARP(rank=0), "TARP rank 0: use 1 or more"),
        (lambda: LoRA(rank=0), "rank 0"),
        (lambda: Prompt(tokens=0), "prompt tokens 0: use 1 or more"),
        (lambda: Compacter(n=0), "n 0"),
        (lambda: Compacter(reduction=0), "reduction 0"),
        (lambda: Compacter(after="before"), "use both or feed-forward"),  # type: ignore[arg-type]
        (lambda: opened(double(), Prompt(tokens=300)), "at most 257"),
        (lambda: double().trainable_copy(Prompt(tokens=64), Delta(double().fingerprint), generator()),
         "64 of the model's 64 input tokens are taken by soft prompts, which leaves no room for a text"),
        (lambda: Rescaled(torch.ones(2, 1), torch.ones(2, 2)), r"give \[out, rank\] and \[rank, in\]"),
        (lambda: Scale(torch.ones(3), "output", ((0, 2),)), "as many entries as they have"),
        (lambda: Scale(torch.ones(3), "output", ((2, 4), (0, 1))), "ranges in order"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_cure(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        make()


def test_a_start_of_other_sizes_is_refused() -> None:
    lm = double()
    for kind, other in (
        (Prompt(tokens=3), Prompt(tokens=4)),
        (TARP(rank=2), TARP(rank=3)),
        (Compacter(reduction=4), Compacter(reduction=8)),
    ):
        start = opened(lm, kind).delta()
        with pytest.raises(BadInput, match="made with other settings: train with those"):
            opened(lm, other, start)
    scale: Part = Rescaled(torch.ones(3, 1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    weight = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(Mismatch, match=r"rescales .* use the base it was made on"):
        lm.overlay(Delta.of(lm.fingerprint, {weight: scale}, "x"))


@pytest.mark.parametrize("kind", [IA3(), Compacter(), TARP()], ids=str)
def test_an_architecture_without_a_place_for_it_is_told_what_to_use(kind: Trainable) -> None:
    lm = double()
    for block in lm.module.model.layers:  # type: ignore[union-attr]
        block.rwkv, block.channel = block.self_attn, block.mlp
        del block.self_attn, block.mlp
    with pytest.raises(BadInput, match=r"no place for this trainable.*use trainable=lora"):
        opened(lm, kind)
    strange = double()
    for block in strange.module.model.layers:  # type: ignore[union-attr]
        block.self_attn.mixed = block.self_attn.k_proj
        del block.self_attn.k_proj
    if isinstance(kind, IA3):
        with pytest.raises(BadInput, match="layers that make keys and values, known by their names"):
            opened(strange, kind)


def test_lora_leaves_out_the_layer_of_a_state_space_that_peft_refuses() -> None:
    sizes: Any = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    module = MambaForCausalLM(MambaConfig(**sizes, max_position_embeddings=64))
    lm = Causal(module, Tokenizer(toys.tokenizer()), "toy-mamba")
    method = Finetune(trainable=LoRA(rank=2), optimizer=SGD(0.1))
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of("A few words.")], Context())
    moved = {name.path.rpartition("mixer.")[2] for name in state.delta.parts}
    assert moved == {"in_proj.weight", "x_proj.weight", "dt_proj.weight"}
    ids = torch.tensor([[0, 5, 6, 7]])
    assert not torch.equal(method.adapted([state], lm).step(ids)[0], lm.step(ids)[0])


def test_blocks_are_the_outermost_list_however_many_experts_each_has() -> None:
    blocks = nn.ModuleList(
        nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(5))}) for _ in range(2)
    )
    module = nn.ModuleDict({"layers": blocks, "head": nn.Linear(2, 2)})
    assert [*upper_blocks(module, None)] == ["layers.0", "layers.1"]
    assert [*upper_blocks(module, 1)] == ["layers.1"]
