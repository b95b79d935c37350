"""Bad GGUF files: cut short, foreign, absurd or flipped ones are one line, and nothing is kept of them."""

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_files as files
from uptake.cache import cache_root
from uptake.errors import BadInput, Missing, UptakeError
from uptake.gguf import is_gguf
from uptake.gguf.architectures import target_of
from uptake.gguf.header import read_header
from uptake.gguf.vocabulary import tokenizer_of
from uptake.lm.loading import load


def refused(path: Path, *words: str, kind: type[UptakeError] = BadInput) -> None:
    with pytest.raises(kind) as caught:
        load(str(path))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for word in words:
        assert word in message, message
    models = cache_root() / "models"
    assert not models.exists() or not [path for path in models.iterdir() if path.is_dir()]


def test_what_is_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").mkdir()
    (tmp_path / "weights").write_bytes(b"GGUF and more")
    assert not is_gguf(str(tmp_path / "model.gguf")) and not is_gguf("gpt2") and is_gguf("nowhere.gguf")
    assert is_gguf(str(tmp_path / "weights"))


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / "a.gguf", "a.gguf", kind=Missing)


def test_wrong_magic(tmp_path: Path) -> None:
    for raw in (b"", b"GG", b"GGML" + bytes(64)):
        (tmp_path / "a.gguf").write_bytes(raw)
        refused(tmp_path / "a.gguf", "is not a GGUF file")


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_another_version(tmp_path: Path, version: int) -> None:
    (tmp_path / "a.gguf").write_bytes(files.head({}, [], version) + bytes(64))
    refused(tmp_path / "a.gguf", "byte order" if version > 9 else f"version {version}")


def test_cut_short_anywhere(tmp_path: Path) -> None:
    raw = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer()).read_bytes()
    path = tmp_path / "b.gguf"
    for size in (5, 23, 40, 700, 5000, len(raw) // 2, len(raw) - 40):
        path.write_bytes(raw[:size])
        refused(path, "head" if size == 5 else "", "fetch the file again")


@pytest.mark.parametrize(
    ("values", "tensors", "words"),
    [
        ({}, [files.entry("a", (1 << 40,))], "cut short"),
        ({}, [files.entry("a", (1 << 62, 1 << 62))], "cut short"),
        ({}, [files.entry("a", (4,), offset=1 << 60)], "cut short"),
        ({}, [files.entry("a", (4,), offset=3)], "at 3"),
        ({}, [files.entry("a", (0, 4))], "[0, 4]"),
        ({}, [files.entry("a", (33,), kind=8)], "Q8_0"),
        ({}, [files.entry("a", (4,), kind=999)], "999"),
        ({}, [files.entry("a", (1, 1, 1, 1, 1))], "5 dimensions"),
        ({}, [files.entry("a", (8,)), files.entry("a", (8,), offset=32)], "twice"),
        ({}, [files.entry("a", (9,)), files.entry("b", (8,), offset=32)], "over another"),
        ({"general.alignment": 24}, [], "alignment"),
        ({"general.alignment": 0}, [], "alignment"),
        ({"general.alignment": "x"}, [], "alignment"),
        ({"a": b"\xff\xfe"}, [], "UTF-8"),
    ],
)
def test_absurd_heads(tmp_path: Path, values: dict[str, Any], tensors: list[bytes], words: str) -> None:
    (tmp_path / "a.gguf").write_bytes(files.head(values, tensors) + bytes(256))
    refused(tmp_path / "a.gguf", words)


def test_absurd_counts_allocate_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    huge = struct.pack("<Q", 1 << 60)
    heads = [
        b"GGUF" + struct.pack("<I", 3) + huge + huge,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + huge + b"name",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("a") + struct.pack("<I", 8) + huge,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("a") + struct.pack("<II", 9, 4) + huge,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("a") + struct.pack("<II", 9, 8) + huge,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("a") + struct.pack("<IIQ", 9, 9, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + files.text("a") + struct.pack("<I", 77),
    ]
    for raw in heads:
        path.write_bytes(raw + bytes(200))
        refused(path, "fetch the file again")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"general.architecture": None}, "has no general.architecture"),
        ({"general.architecture": 5}, "general.architecture is no str"),
        ({"general.architecture": "mamba"}, "is of architecture 'mamba'"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.block_count": None}, "has no llama.block_count"),
        ({"llama.block_count": 2_000_000_000}, "2,000,000,000"),
        ({"llama.block_count": 1}, "layers"),
        ({"llama.embedding_length": 1 << 30}, "its settings"),
        ({"llama.feed_forward_length": 1 << 30}, "its settings"),
        ({"llama.attention.head_count": 1 << 30}, "its settings"),
        ({"llama.attention.head_count": 2}, "o_proj"),
        ({"llama.attention.head_count_kv": 3}, "k_proj"),
        ({"llama.attention.head_count": [4, 4]}, "is no int"),
        ({"llama.rope.dimension_count": 8}, "8 of 16 dimensions"),
        ({"llama.context_length": 0}, "context_length is 0"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "is nan"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope'"),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"tokenizer.ggml.model": None}, "has no tokenizer"),
        ({"tokenizer.ggml.model": "none"}, "has no tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre"),
        ({"tokenizer.ggml.pre": "of tomorrow"}, "'of tomorrow'"),
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "2 tokens for an embedding of 512"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "no list of texts"),
        ({"tokenizer.ggml.merges": None}, "has no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "do not go together"),
        ({"tokenizer.ggml.merges": ["a"]}, "do not go together"),
        ({"tokenizer.ggml.bos_token_id": 512}, "no token 512"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "no list of 512 numbers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_settings_that_do_not_fit(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer())
    refused(files.with_values(path, values), words)


def test_a_tensor_that_is_not_known(tmp_path: Path) -> None:
    known = {"blk.7.attn_q.weight": "its 2 layers", "blk.0.attn_q.bias": "k_proj.bias"}
    for name in (*known, "blk.0.ffn_gate_exps.weight", "extra.weight"):
        extra = {name: torch.zeros(64)}
        path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer(), extra=extra)
        refused(path, known.get(name, name))


def test_a_tensor_that_is_missing(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer())
    raw = path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")
    path.write_bytes(raw)
    refused(path, "blk.1.ffn_xx.weight")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = files.write(tmp_path_factory.mktemp("toy") / "a.gguf", files.module(), files.tokenizer(), "Q8_0")
    return path.read_bytes()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_flip_in_the_head_is_one_line_or_a_model(
    toy: bytes, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "whole.gguf").write_bytes(toy)
    begin = min(stored.offset for stored in read_header(folder / "whole.gguf").tensors.values())
    raw = bytearray(toy)
    for place, byte in flips:
        raw[int(place * begin)] = byte
    path = folder / "a.gguf"
    path.write_bytes(raw)
    try:
        header = read_header(path)
        assert all(stored.offset + stored.size <= len(toy) for stored in header.tensors.values())
        target = target_of(header, lambda _: [1.0] * 8)
        tokenizer_of(header, target.config.vocab_size, target.config.max_position_embeddings)
    except UptakeError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_one_line(tmp_path_factory: pytest.TempPathFactory, raw: bytes, counted: bool) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.gguf"
    path.write_bytes(b"GGUF" + (struct.pack("<IQQ", 3, 1, 1) if counted else b"") + raw)
    with pytest.raises(BadInput) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)


def test_without_the_package_the_cure_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write(tmp_path / "a.gguf", files.module(), files.tokenizer())
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    refused(path, "pip install 'uptake[gguf]'", kind=Missing)
