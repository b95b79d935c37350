"""A model that cannot be right is refused in one line: weights that are no numbers, files that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import toys
from cli_world import Run, World, made_fixture, refused, run_fixture, world_fixture  # noqa: F401
from uptake.api import stream
from uptake.errors import Diverged, UptakeError
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.running import Running
from uptake.evaluation.protocols.whole import Whole
from uptake.evaluation.run import run as run_plan
from uptake.lm import loading
from uptake.lm.base import LM, Cache, Segment
from uptake.lm.causal import Causal
from uptake.methods.base import Base
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.report.summary import summary
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.encoders import StatesEncoder
from uptake.text.select import Nothing
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Document


def saved(folder: Path, shape: str = "llama", change: Callable[[Any], object] | None = None) -> Path:
    """A toy model's folder, its module changed before it is written."""
    module = toys.module(shape)
    with torch.no_grad():
        if change:
            change(module)
    module.save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return folder


def edit(folder: Path, **values: object) -> Path:
    """The same folder with these entries in config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def refusal(folder: Path, dtype: str = "float32") -> str:
    with pytest.raises(UptakeError) as caught:
        loading.load(str(folder), dtype=dtype)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float) -> None:
    def spoil(module: Any) -> None:
        module.model.layers[1].mlp.up_proj.weight[3, 2] = value

    message = refusal(saved(tmp_path, change=spoil))
    assert "not finite" in message and "model.layers.1.mlp.up_proj.weight" in message
    assert "1 of its" in message


def test_a_number_too_large_for_the_format_is_told_from_a_broken_file(tmp_path: Path) -> None:
    def enlarge(module: Any) -> None:
        module.model.layers[0].mlp.down_proj.weight[0, 0] = 1e6

    folder = saved(tmp_path, change=enlarge)
    loading.load(str(folder))
    assert "float16 cannot hold" in refusal(folder, "float16")


def test_a_module_from_python_is_checked_as_well() -> None:
    module = toys.module()
    module.model.norm.weight.data[0] = float("nan")
    with pytest.raises(UptakeError, match=r"not finite.*model\.norm\.weight"):
        Causal(module, Tokenizer(toys.tokenizer()))


def test_a_model_of_zeros_is_a_uniform_one(tmp_path: Path) -> None:
    def clear(module: Any) -> None:
        for parameter in module.parameters():
            parameter.zero_()

    lm = loading.load(str(saved(tmp_path, change=clear)))
    (scores,) = lm.score([Segment("abc")])
    assert scores.log_probs.exp().tolist() == pytest.approx([1 / 257] * 3)


def test_fewer_embeddings_than_tokens(tmp_path: Path) -> None:
    folder = saved(tmp_path, change=lambda module: module.resize_token_embeddings(200))
    message = refusal(folder)
    assert "200 rows" in message and "256" in message and "tokenizer" in message
    wide = saved(tmp_path / "wide", change=lambda module: module.resize_token_embeddings(300))
    loading.load(str(wide)).score([Segment("more rows than tokens are padding")])


def test_a_head_with_fewer_words_than_the_tokenizer(tmp_path: Path) -> None:
    def cut(module: Any) -> None:
        module.config.tie_word_embeddings = False
        module.lm_head = torch.nn.Linear(32, 100, bias=False)

    module = toys.module()
    cut(module)
    with pytest.raises(UptakeError, match="100 outputs"):
        Causal(module, Tokenizer(toys.tokenizer()))
    # In a file the two cannot differ from config.json, which transformers checks.
    folder = saved(tmp_path, change=cut)
    assert "sizes" in refusal(folder) or "100 outputs" in refusal(folder)


def test_an_opening_token_the_model_has_no_row_for(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    inner = AutoTokenizer.from_pretrained(folder)
    inner.add_special_tokens({"bos_token": AddedToken("<new>", special=True)})
    inner.save_pretrained(folder)
    assert "257 rows" in refusal(folder) and "<new>" in refusal(folder)


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_ids_of_the_configuration_outside_the_vocabulary(tmp_path: Path, name: str) -> None:
    folder = edit(saved(tmp_path), **{name: 9999})
    if name == "pad_token_id":
        assert "9999" in refusal(folder) or "pad" in refusal(folder).lower()
    else:  # ours come from the tokenizer: nothing of it is used
        loading.load(str(folder)).generate("a", 3)


@pytest.mark.parametrize("window", [0, -4, 1e30, 1 << 40, "many", float("nan"), 12.5])
def test_a_context_length_that_cannot_be(tmp_path: Path, window: object) -> None:
    # Only what is read when the weights are there already: the shape does not depend on it.
    folder = edit(saved(tmp_path), max_position_embeddings=window)
    message = refusal(folder)
    assert "max_position_embeddings" in message or "longest input" in message


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(folder)


def test_the_command_line_refuses_a_broken_base(run: Run, world: World, tmp_path: Path) -> None:
    def spoil(module: Any) -> None:
        module.model.embed_tokens.weight[5] = float("nan")

    folder = saved(tmp_path / "model", change=spoil)
    asked = ("eval", "-m", folder, "--data", world.data, "--method", "base")
    refused(run(*asked), "not finite", "embed_tokens")


def test_a_base_whose_predictions_are_no_numbers_is_refused(run: Run, world: World, tmp_path: Path) -> None:
    def enlarge(module: Any) -> None:
        module.config.tie_word_embeddings = False
        module.lm_head.weight = torch.nn.Parameter(torch.full_like(module.lm_head.weight, 3e38))

    folder = saved(tmp_path / "model", change=enlarge)
    first = json.loads(world.data.read_text().splitlines()[0])["id"]
    asked = ("-m", folder, "--data", world.data)
    for protocol in ("whole", "running"):
        done = run(
            "eval", *asked, "--method", "base", "--protocol", protocol, "--json", tmp_path / "out.json"
        )
        refused(done, "not finite", f"{first}#0")
        assert not [
            *tmp_path.glob("out.json*")
        ]  # nor a journal, which would stand in the way of the next run
    refused(run("generate", *asked[:2], "--method", "base", "The pump"), "not finite")


class Fragile(Causal):
    """No number comes out where a Z went in."""

    read_on = LM.read_on

    def step(self, ids: Tensor, cache: Cache = None, lengths: Any = None) -> tuple[Tensor, Cache]:
        log_probs, cache = super().step(ids, cache, lengths)
        odd = (ids == self.tokenizer.encode("Z")[0][0]).any(-1)
        return torch.where(odd[:, None, None], float("nan"), log_probs), cache


def fragile() -> Fragile:
    return Fragile(toys.module(), Tokenizer(toys.tokenizer()), "fragile")


def test_a_document_the_base_cannot_score_is_named_and_counts_nowhere() -> None:
    documents = [Document(name, text * 9) for name, text in (("a", "abc "), ("b", "aZb "), ("c", "bcd "))]
    for protocol in (Whole(), Running(segment=9)):
        plan = Plan(method_specs(["base"]), protocol, batch=3)
        results = run_plan(fragile(), plan, Inputs.of(documents))
        figures = summary(results)["methods"]["base"]
        (failure,) = figures["failures"]
        assert failure["query"] == "b#0" and "not finite" in failure["reason"]
        sound = summary(run_plan(fragile(), plan, Inputs.of([documents[0], documents[2]])))["methods"]["base"]
        assert figures["bits_per_byte"] == pytest.approx(sound["bits_per_byte"])
        with pytest.raises(UptakeError, match=r"nothing was scored.*b#0.*not finite"):
            run_plan(fragile(), plan, Inputs.of([documents[1]]))


def test_a_method_that_is_not_finite_for_a_query_counts_at_the_base_and_says_so(tmp_path: Path) -> None:
    class Broken(Base):
        reads = True

        def adapted(self, states: Any, lm: LM) -> LM:
            return fragile()

    documents = [Document(name, text * 9) for name, text in (("a", "abc "), ("b", "aZb "))]
    plan = Plan({"base": MethodSpec(Base()), "broken": MethodSpec(Broken(), Nothing())}, Whole())
    broken = summary(run_plan(toys.lm(), plan, Inputs.of(documents)))["methods"]["broken"]
    assert [failure["query"] for failure in broken["failures"]] == ["b#0"]
    assert broken["bits_per_byte"] == broken["base_bits_per_byte"] and broken["gain"] == 0


def test_a_stream_is_not_compared_with_a_base_that_answers_nothing() -> None:
    documents = [Document("a", "abc " * 9)]
    question = Question("q", "Z?", ("abc",), document="a")
    with pytest.raises(UptakeError, match=r"base model.*not finite"):
        stream(fragile(), documents, [question], ["online"], asking=Asking("{question}", tokens=2))


def test_a_continuation_is_not_made_of_no_numbers() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(Diverged, match="not finite"):
            fragile().generate("aZ", 3, temperature)


def test_encoders_are_checked_as_well(tmp_path: Path) -> None:
    folder = saved(tmp_path / "few", change=lambda module: module.resize_token_embeddings(200))
    with pytest.raises(UptakeError, match="200 rows"):
        StatesEncoder(str(folder))

    def spoil(module: Any) -> None:
        module.model.layers[0].mlp.up_proj.weight[:] = float("nan")

    with pytest.raises(UptakeError, match="not finite"):
        StatesEncoder(str(saved(tmp_path / "nan", change=spoil)))
    assert AutoModel  # imported lazily by the encoder


def test_a_file_of_tokens_is_not_made_by_a_model_that_does_not_fit(run: Run, world: World, tmp_path) -> None:
    folder = saved(tmp_path / "few", change=lambda module: module.resize_token_embeddings(200))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("High bytes: é, ü. " * 30)
    refused(run("index", "build", tmp_path / "s.store", corpus, "--encoder", f"lm:{folder}"), "200 rows")
    assert not (tmp_path / "s.store").exists()
