"""GGUF files as models: what is read equals the folder of the same weights, and a bad file is one line."""

import json
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

import gguf_files as files
from cli_world import Run, World, made_fixture, run_fixture, world_fixture  # noqa: F401
from cli_world import refused as refused_line
from uptake.cache import cache_root
from uptake.errors import BadInput, UptakeError
from uptake.gguf import dequantised
from uptake.gguf.convert import convert
from uptake.gguf.header import read_header
from uptake.gguf.pretokenizers import PATTERNS, WHOLE_PIECES
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.lm.loading import load, load_tokenizer
from uptake.text.encoders import make_encoder

TOKENS = 512
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def folder(path: Path, model: Any) -> Path:
    """The same model as transformers saves it."""
    model.save_pretrained(path)
    files.tokenizer().save_pretrained(path)
    return path


def log_probs(lm: Causal) -> torch.Tensor:
    ids = torch.arange(3, 103)[None]
    with torch.no_grad():
        return lm.step(ids)[0]


def equal(one: Causal, other: Causal) -> None:
    first, second = one.module.state_dict(), other.module.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(log_probs(one), log_probs(other))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_it_is_the_folder_of_the_same_weights(tmp_path: Path, kind: str, tied: bool) -> None:
    model = files.module(kind, tie_word_embeddings=tied)
    read = load(str(files.write(tmp_path / "a.gguf", model, files.tokenizer())))
    equal(read, load(str(folder(tmp_path / "a", model))))
    assert read.quantisation == "F32 100 %" and read.window == 128


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "F16", "BF16"])
def test_only_the_quantisation_is_lost(tmp_path: Path, kind: str) -> None:
    model = files.module()
    read = load(str(files.write(tmp_path / "a.gguf", model, files.tokenizer(), kind)))
    number = GGMLQuantizationType[kind]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # rounded in place, blocks run along rows whatever their order
                rounded = dequantize(quantize(parameter.numpy(), number), number)
                parameter.copy_(torch.from_numpy(np.asarray(rounded)))
    equal(read, load(str(folder(tmp_path / "a", model))))
    assert read.quantisation == f"{kind} 100 %"


def naive(kind: str, raw: bytes) -> list[float]:
    """The numbers of blocks of 32, one at a time, as the format defines them."""
    width = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]
    found: list[float] = []
    for start in range(0, len(raw), width):
        block = raw[start : start + width]
        scale, least = struct.unpack("<ee", block[:4])
        if kind == "Q8_0":
            found += [scale * number for number in struct.unpack("<32b", block[2:])]
            continue
        packed = block[2:] if kind == "Q4_0" else block[4:]
        numbers = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
        found += [scale * (n - 8) if kind == "Q4_0" else scale * n + least for n in numbers]
    return found


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_are_read_as_the_format_defines_them(tmp_path: Path, kind: str) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer(), kind)
    stored = read_header(path).tensors["blk.1.ffn_down.weight"]
    raw = path.read_bytes()[stored.offset : stored.offset + stored.size]
    read = load(str(path)).module.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert stored.kind == kind and stored.shape == (64, 96)
    assert torch.allclose(read.flatten().double(), torch.tensor(naive(kind, raw)).double(), rtol=1e-6)


def test_weights_of_16_bit_are_kept_in_16_bit(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer(), "BF16")
    with dequantised(str(path)) as found:
        size = sum(file.stat().st_size for file in found.folder.glob("*.safetensors"))
    half = load(str(path), dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert size < 2.2 * sum(parameter.numel() for parameter in half.module.parameters())


SCALED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"rope_type": "linear", "rope_theta": 50_000.0, "factor": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    ),
    (
        {"rope_type": "linear", "rope_theta": 50_000.0, "factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
    ),
    (
        {"rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 32,
        },
    ),
]


@pytest.mark.parametrize(("rope", "values"), SCALED, ids=["linear", "linear of old", "yarn"])
def test_scaled_positions(tmp_path: Path, rope: dict[str, Any], values: dict[str, Any]) -> None:
    model = files.module(rope_parameters=rope)
    path = files.write(tmp_path / "a.gguf", model, files.tokenizer(), values=values)
    equal(load(str(path)), load(str(folder(tmp_path / "a", model))))


def test_the_frequencies_of_llama_3_come_as_a_tensor(tmp_path: Path) -> None:
    model = files.module(rope_parameters=LLAMA3)
    plain = 1 / 50_000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = {"rope_freqs.weight": plain / model.model.rotary_emb.inv_freq}
    read = load(str(files.write(tmp_path / "a.gguf", model, files.tokenizer(), extra=factors)))
    other = load(str(folder(tmp_path / "a", model)))
    assert torch.allclose(log_probs(read), log_probs(other), atol=2e-5)
    without = load(str(files.write(tmp_path / "b.gguf", model, files.tokenizer())))
    assert not torch.allclose(log_probs(without), log_probs(other), atol=2e-2)


# Tokenizers


def test_the_tokenizer_is_the_folders(tmp_path: Path) -> None:
    model = files.module()
    (kind,) = PATTERNS["gpt-2"]
    tokens = files.tokenizer(kind)
    path = files.write(tmp_path / "a.gguf", model, tokens)
    model.save_pretrained(tmp_path / "a")
    tokens.save_pretrained(tmp_path / "a")
    ours, other = load_tokenizer(str(path)), load_tokenizer(str(tmp_path / "a"))
    assert ours.encode(files.TEXT) == other.encode(files.TEXT)
    assert ours.decode(ours.encode(files.TEXT)[0]) == files.TEXT
    assert (ours.opening, ours.end, len(ours)) == (1, 2, TOKENS)
    asked = [{"role": "user", "content": "hello"}]
    assert ours.inner.apply_chat_template(asked, tokenize=False) == "<|im_start|>hello<|im_end|>"
    assert ours.inner.model_max_length == 128 and ours.inner.unk_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "in 2024 it's", ["in", " ", "2", "0", "2", "4", " it", "'s"]),
        ("gpt-2", "in 2024 it's", ["in", " 2024", " it", "'s"]),
        ("llama-bpe", "in 20245 IT'S", ["in", " ", "202", "45", " IT", "'S"]),
        ("qwen2", "in 2024\n\nx", ["in", " ", "2", "0", "2", "4", "\n\n", "x"]),
        ("falcon", "a:1234", ["a", ":", "123", "4"]),
        ("tekken", "parseURL 12", ["parse", "URL", " ", "1", "2"]),
        ("gpt-4o", "parseURL's 1234", ["parse", "URL's", " ", "123", "4"]),
        ("deepseek-v3", "ab日本 1234", ["ab", "日本", " ", "123", "4"]),
        ("default", "a+1234", ["a", "+", "123", "4"]),
        ("superbpe", "a 1234567", ["a ", "1", "234", "567"]),
        ("bloom", "one, two", ["one", ",", " two"]),
    ],
)
def test_each_kind_cuts_a_text_as_its_models_do(
    tmp_path: Path, pre: str, text: str, pieces: list[str]
) -> None:
    # A way that is not the usual one of the model's kind, so that nobody can take that for the file's.
    model = files.module("qwen2" if pre != "qwen2" else "llama")
    path = files.write(tmp_path / "a.gguf", model, files.tokenizer(), pre=pre)
    backend = load_tokenizer(str(path)).inner.backend_tokenizer
    found = backend.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in found] == pieces


def test_every_kind_is_a_tokenizer_that_loses_nothing(tmp_path: Path) -> None:
    header = read_header(files.write(tmp_path / "a.gguf", files.module(), files.tokenizer()))
    from uptake.gguf.vocabulary import tokenizer_of

    for kind in PATTERNS:
        header.values["tokenizer.ggml.pre"] = kind
        made = tokenizer_of(header, TOKENS, 128)
        ids = made(files.TEXT, add_special_tokens=False)["input_ids"]
        assert made.decode(ids, clean_up_tokenization_spaces=False) == files.TEXT, kind
        assert made.backend_tokenizer.model.ignore_merges == (kind in WHOLE_PIECES)


@pytest.mark.parametrize("prefixed", [True, False])
def test_sentencepiece_joins_the_best_pair_first(tmp_path: Path, prefixed: bool) -> None:
    tokens = load_tokenizer(str(files.sentencepiece(tmp_path / "a.gguf", prefixed)))
    pieces = tokens.inner.convert_ids_to_tokens(tokens.encode("thing here €")[0])
    begin = ["▁thing"] if prefixed else ["th", "ing"]
    assert pieces == [*begin, "▁", "he", "r", "e", "▁", "<0xE2>", "<0x82>", "<0xAC>"]
    assert tokens.decode(tokens.encode("thing here €")[0]) == "thing here €"
    assert tokens.opening == 1 and tokens.end == 2


def test_biases_are_permuted_as_their_rows(tmp_path: Path) -> None:
    model = files.module(attention_bias=True, mlp_bias=True)
    path = files.write(tmp_path / "a.gguf", model, files.tokenizer())
    equal(load(str(path)), load(str(folder(tmp_path / "a", model))))


# Where a model is named


def test_the_report_names_the_quantisation(run: Run, world: World, tmp_path: Path) -> None:
    path = files.write(tmp_path / "toy.gguf", files.module(), files.tokenizer(), "Q8_0")
    asked = ("-m", path, "-s", world.lexical, "--data", world.data, "--suffix", "40", "-k", "1")
    page, report = tmp_path / "page.html", tmp_path / "report.json"
    more = ("--limit", "2", "--no-leak-filter", "--json", report, "--html", page, "--methods", "base,random")
    ran = run("compare", *asked, *more)
    assert ran.code == 0 and "toy.gguf: dequantised from Q8_0 100 %" in ran.out, ran
    assert json.loads(report.read_text())["model"]["quantisation"] == "Q8_0 100 %"
    assert "Q8_0 100 %" in page.read_text()


def test_a_bad_file_is_one_line_on_the_command_line(run: Run, world: World, tmp_path: Path) -> None:
    path = files.write(tmp_path / "toy.gguf", files.module(), files.tokenizer())
    assert run("generate", "-m", path, "--method", "base", "--tokens", "3", "hello").code == 0
    path.write_bytes(path.read_bytes()[:-50])
    refused_line(
        run("generate", "-m", path, "--method", "base", "hello"), "cut short", "fetch the file again"
    )
    refused_line(run("generate", "-m", "no.gguf", "--method", "base", "hello"), "no.gguf", "No such file")


def test_a_stores_encoder_may_be_one(tmp_path: Path) -> None:
    model = files.module()
    path = files.write(tmp_path / "a.gguf", model, files.tokenizer())
    model.save_pretrained(tmp_path / "a")
    files.tokenizer(PATTERNS["gpt-2"][0]).save_pretrained(tmp_path / "a")
    ours, other = make_encoder(f"lm:{path}"), make_encoder(f"lm:{tmp_path / 'a'}")
    assert np.array_equal(ours.embed(["one text", "and another"]), other.embed(["one text", "and another"]))
    assert ours.spec == f"lm:{path}"


# The cache


def entries() -> list[Path]:
    return sorted(path for path in (cache_root() / "models").iterdir() if path.is_dir())


def test_a_file_is_dequantised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer(), "Q8_0")
    first = load(str(path))
    monkeypatch.setattr("uptake.gguf.models.convert", lambda *_: pytest.fail("made again"))
    other = shutil.copy(path, tmp_path / "elsewhere.GGUF")
    assert load(str(other)).fingerprint == first.fingerprint
    assert len(entries()) == 1


def test_two_that_ask_at_once_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer())
    made: list[Path] = []

    def slowly(header: Any, folder: Path) -> None:
        made.append(folder)
        convert(header, folder)

    monkeypatch.setattr("uptake.gguf.models.convert", slowly)
    with ThreadPoolExecutor(4) as pool:
        prints = list(pool.map(lambda _: load(str(path)).fingerprint, range(4)))
    assert len(made) == 1 and len(set(prints)) == 1


@pytest.mark.parametrize("how", ["flipped", "missing", "extra", "no sums"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, how: str) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer())
    first = load(str(path)).fingerprint
    (entry,) = entries()
    (weights,) = entry.glob("*.safetensors")
    if how == "flipped":
        raw = bytearray(weights.read_bytes())
        raw[-9] ^= 64
        weights.write_bytes(raw)
    elif how == "missing":
        weights.unlink()
    elif how == "extra":
        (entry / "adapter_config.json").write_text("{}")
    else:
        (entry / "sums.json").write_text("[")
    assert load(str(path)).fingerprint == first
    assert len(entries()) == 1


def test_the_folders_used_longest_ago_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        str(files.write(tmp_path / f"{seed}.gguf", files.module(seed=seed), files.tokenizer()))
        for seed in range(3)
    ]
    for name in names[:2]:
        load_tokenizer(name)
    size = sum(file.stat().st_size for file in entries()[0].iterdir())
    load_tokenizer(names[0])  # now the second is the older one
    kept = set(entries())
    monkeypatch.setenv("UPTAKE_CACHE_MODELS", str(2.5 * size / 1e9))
    load_tokenizer(names[2])
    (gone,) = kept - set(entries())
    monkeypatch.setenv("UPTAKE_CACHE_MODELS", "0")
    with dequantised(names[0]) as held, dequantised(names[1]) as other:
        assert held.folder.exists() and other.folder.exists(), "one that is being read stays"
        assert len(entries()) == 2 and gone in entries()


def test_the_size_of_the_cache_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer())
    monkeypatch.setenv("UPTAKE_CACHE_MODELS", "plenty")
    with pytest.raises(BadInput, match="'plenty'"):
        load(str(path))


def test_a_cache_without_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UptakeError, match="UPTAKE_CACHE"):
        load(str(path))
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    few = type("usage", (), {"free": 1000})
    monkeypatch.setattr("uptake.gguf.models.shutil.disk_usage", lambda _: few)
    with pytest.raises(UptakeError, match=r"takes 0\.0 GB there, and 0\.0 GB are free"):
        load(str(path))
    assert not entries()


def test_what_a_killed_one_left_is_cleared(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer())
    load(str(path))
    (entry,) = entries()
    draft = entry.with_name(f".draft-{entry.name}")
    entry.rename(draft)
    (draft / "model-00001.safetensors").write_bytes(b"half")
    load(str(path))
    assert entries() == [entry] and not draft.exists()


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    model = files.module()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    path = files.write(tmp_path / "a.gguf", model, files.tokenizer())
    with pytest.raises(BadInput, match=r"blk\.1\.ffn_up\.weight holds numbers that are not finite"):
        load(str(path))
    assert not entries()


def test_scores_are_those_of_the_folder(tmp_path: Path) -> None:
    model = files.module()
    (kind,) = PATTERNS["gpt-2"]
    path = files.write(tmp_path / "a.gguf", model, files.tokenizer(kind))
    model.save_pretrained(tmp_path / "a")
    files.tokenizer(kind).save_pretrained(tmp_path / "a")
    segment = [Segment(files.TEXT, "so ")]
    (ours,), (other,) = load(str(path)).score(segment), load(str(tmp_path / "a")).score(segment)
    assert torch.equal(ours.log_probs, other.log_probs) and ours.spans == other.spans


def test_the_index_says_where_each_weight_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uptake.gguf.convert._SHARD", 40_000)
    model = files.module()
    path = files.write(tmp_path / "a.gguf", model, files.tokenizer())
    with dequantised(str(path)) as found:
        index = json.loads((found.folder / "model.safetensors.index.json").read_text())
        assert {file.name for file in found.folder.glob("*.safetensors")} == set(index["weight_map"].values())
        assert len(set(index["weight_map"].values())) > 2
    equal(load(str(path)), load(str(folder(tmp_path / "a", model))))
