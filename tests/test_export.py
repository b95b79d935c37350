"""Exported adapters: stock peft gives the same logits, and what is no adapter is refused by its reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from uptake import api, methods
from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.delta.scale import Scale
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import LoRA, Top, Trainable
from uptake.adaptation.trainable.compacter import Compacter
from uptake.adaptation.trainable.ia3 import IA3
from uptake.adaptation.trainable.places import block_matrices
from uptake.adaptation.trainable.prompt import Prompt
from uptake.adaptation.trainable.tarp import TARP
from uptake.cli.main import main
from uptake.errors import BadInput, Mismatch
from uptake.export import export_peft, only_delta
from uptake.lm.causal import Causal
from uptake.lm.loading import load
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.store.datastore import Datastore
from uptake.text.types import Document

TEXTS = ("the cat sat on the mat. ", "a dog ran over the hill.")


def learnt(lm: Causal, trainable: Trainable | None = None) -> Delta:
    method = Finetune(trainable=trainable or LoRA(rank=3, alpha=7), optimizer=AdamW(learning_rate=3e-2))
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of(*TEXTS)], Context())
    return state.delta


def stock(shape: str, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(toys.module(shape), str(folder)).eval()


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(torch.tensor([[0, 117, 105, 102, 33, 100, 98, 117]])).logits


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_stock_peft_gives_the_same_logits(shape: str, tmp_path: Path) -> None:
    lm = toys.lm(shape)
    delta = learnt(lm)
    folder = export_peft(delta, lm, tmp_path / "new" / "adapter")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    expected, base = logits(lm.overlay(delta).module), logits(lm.module)
    found = logits(stock(shape, folder))
    assert (found - expected).abs().max() < 1e-4 < 0.01 < (expected - base).abs().max()
    merged = logits(stock(shape, folder).merge_and_unload())
    assert (merged - expected).abs().max() < 1e-4
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and config["base_model_name_or_path"] == f"toy-{shape}"
    assert config["r"] == 3 and config["fan_in_fan_out"] == (shape == "gpt2")


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_parts_of_several_ranks_and_scales_on_some_layers(shape: str, tmp_path: Path) -> None:
    lm = toys.lm(shape)
    whole = learnt(lm) + 0.5 * learnt(lm, LoRA(rank=2))
    some = dict(sorted(whole.parts_of(LowRank).items())[::3])
    one = next(iter(some))
    some[one] = learnt(lm, LoRA(rank=2)).parts_of(LowRank)[one]
    delta = Delta.of(lm.fingerprint, some, "lora")
    assert {part.down.shape[0] for part in some.values()} == {2, 5}
    found = logits(stock(shape, export_peft(delta, lm, tmp_path / "a")))
    assert (found - logits(lm.overlay(delta).module)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [IA3(), Prompt(tokens=4)], ids=str)
@pytest.mark.parametrize("shape", toys.SHAPES)
def test_scales_and_prompts_are_adapters_of_their_own_kinds(
    shape: str, kind: Trainable, tmp_path: Path
) -> None:
    lm = toys.lm(shape)
    delta = learnt(lm, kind)
    if isinstance(kind, IA3):
        delta = delta + learnt(lm, IA3(owner="another"))
    ids = torch.tensor([[0, 117, 105, 102, 33, 100, 98, 117]])
    with torch.no_grad():
        expected, base = (torch.log_softmax(each.step(ids)[0], -1) for each in (lm.overlay(delta), lm))
        stocked = stock(shape, export_peft(delta, lm, tmp_path / "adapter"))
        more = {} if isinstance(kind, IA3) else {"use_cache": False}
        logits = stocked(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits
    found = torch.log_softmax(logits[:, -ids.shape[1] :], -1)
    assert (found - expected).abs().max() < 1e-4 < 0.01 < (expected - base).abs().max()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == ("IA3" if isinstance(kind, IA3) else "PROMPT_TUNING")


def test_scales_that_peft_cannot_hold_are_refused_by_their_reason(tmp_path: Path) -> None:
    lm, path = toys.lm(), "model.layers.0.mlp"
    ones = torch.ones(32)
    norm = Delta.of(lm.fingerprint, {path: Scale(ones)}, "a")
    both = {"a": Scale(ones), "b": Scale(torch.ones(48), "input")}
    twice = [Delta.of(lm.fingerprint, {f"{path}.down_proj": part}, owner) for owner, part in both.items()]
    for delta, words in (
        (norm, "a layer of kind LlamaMLP, and an .IA.+ adapter scales linear"),
        (twice[0] + twice[1], "what enters and what leaves it scaled"),
        (twice[0] * 0.0, "the delta is empty"),
        (learnt(lm, TARP()), "has a InputDependent and a LoRA adapter holds low-rank parts only"),
        (learnt(lm, Compacter()), "has a HypercomplexAdapters and a LoRA adapter"),
        (learnt(lm, IA3()) + learnt(lm, Prompt(tokens=2)), r"has a (Prompt|Scale) and a LoRA adapter"),
    ):
        with pytest.raises(BadInput, match=words):
            export_peft(delta, lm, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def on(lm: Causal, name: str) -> Delta:
    rows, columns = lm.module.get_parameter(name).shape
    return Delta.of(lm.fingerprint, {name: LowRank(torch.ones(rows, 1), torch.ones(1, columns))}, "lora")


def test_what_is_no_adapter_is_refused_by_its_reason(tmp_path: Path) -> None:
    llama, neox = toys.lm("llama"), toys.lm("neox")
    unmoved = {name: LowRank(torch.zeros(2, 1), torch.ones(1, 2)) for name in block_matrices(llama.module)}
    refused = [
        ("has a dense difference.*trainable=lora", learnt(llama, Top(1)), llama),
        ("the delta is empty", Delta(llama.fingerprint), llama),
        ("the delta is empty", Delta.of(llama.fingerprint, unmoved, "lora"), llama),
        ("is the output embedding", on(llama, "model.embed_tokens.weight"), llama),  # they are tied
        ("is the output embedding", on(neox, output_name(neox)), neox),
        ("a layer of kind Embedding", on(neox, "gpt_neox.embed_in.weight"), neox),
    ]
    for words, delta, lm in refused:
        with pytest.raises(BadInput, match=words):
            export_peft(delta, lm, tmp_path / "a")
    with pytest.raises(Mismatch, match="belongs to base model"):
        export_peft(learnt(llama), toys.lm("llama", seed=1), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def output_name(lm: Causal) -> str:
    head = lm.module.get_output_embeddings().weight  # type: ignore[operator]
    return next(name for name, parameter in lm.module.named_parameters() if parameter is head)


def test_what_is_more_than_weights_is_refused() -> None:
    lm, evidence = toys.lm(), [Evidence.of(*TEXTS)]
    for name in ("ttt-nn", "in-context", "ttt-nn-guarded", "ttt-nn+in-context", "base"):
        method = type(methods.find(name).method).example()
        (state,) = method.adapt([method.init(lm)], lm, evidence, Context())
        if name == "ttt-nn":
            assert only_delta(state, method.adapted([state], lm)) is state.delta
            continue
        with pytest.raises(BadInput, match="more than weights"):
            only_delta(state, method.adapted([state], lm))


def test_tied_layers_are_refused(tmp_path: Path) -> None:
    module = toys.module("llama")
    module.model.layers[1].mlp.up_proj.weight = module.model.layers[0].mlp.up_proj.weight
    lm = Causal(module, toys.lm().tokenizer, "tied")
    with pytest.raises(BadInput, match=r"layers\.0\.mlp\.up_proj\.weight is tied to .*layers\.1"):
        export_peft(on(lm, "model.layers.0.mlp.up_proj.weight"), lm, tmp_path / "a")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    lm = toys.lm()
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(BadInput, match="give a new or an empty folder"):
            export_peft(learnt(lm), lm, folder)
    with pytest.raises(BadInput, match="cannot make"):
        export_peft(learnt(lm), lm, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_verb_writes_an_adapter_and_says_what_cannot_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toys.module("gpt2").save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    Datastore.create(tmp_path / "s", retriever="lexical").add(
        [Document("a", TEXTS[0]), Document("b", TEXTS[1])]
    )

    def run(*more: str, folder: str = "new") -> tuple[Any, str]:
        given = [
            "adapt",
            "-m",
            tmp_path / "model",
            "-s",
            tmp_path / "s",
            "-k",
            "2",
            *more,
            "the cat and a dog",
        ]
        monkeypatch.setattr("sys.argv", ["uptake", *map(str, given), str(tmp_path / folder)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, capsys.readouterr().err

    rate = "learning_rate=3e-2"
    code, said = run("--set", rate, "--set", "trainable=lora(rank=2)", folder="adapter")
    assert code == 0 and "read 2 neighbours" in said
    lm = load(str(tmp_path / "model"))
    store = Datastore.open(tmp_path / "s")
    session = api.adapt(lm, "the cat and a dog", store=store, k=2, settings=[rate, "trainable=lora(rank=2)"])
    ids = torch.tensor([[0, 117, 105, 102, 33, 100]])
    with torch.no_grad():
        expected = session.adapted.step(ids)[0]
        found = torch.log_softmax(stock("gpt2", tmp_path / "adapter")(ids).logits, -1)
    assert (found - expected).abs().max() < 1e-4
    assert run(folder="adapter")[0] == 2
    for words, more in {
        "has a dense difference": ("--set", "trainable=all"),
        "more than weights": ("--method", "in-context"),
        "the delta is empty": ("--max-steps", "0"),
        "no adapter was written": ("--set", "learning_rate=1e38"),
        "did you mean 'learning_rate'": ("--set", "learning_rat=1"),
    }.items():
        code, said = run(*more)
        assert code == 2 and words in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()
