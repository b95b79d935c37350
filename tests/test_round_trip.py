"""What a tokenizer does not give back is not scored: against a naive account of tokenizers that lose text."""

import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

import toys
from uptake.errors import BadInput
from uptake.text.round_trip import round_trip
from uptake.text.tokenizer import Tokenizer

LETTERS = "abcehst,.[] "
ODD = "ACS\u0130\u00e9\u00c9\u0301\u2460\ufb01\u4e2d\u6587\U0001f600\u2581\n\t"
TEXTS = st.text(alphabet=LETTERS + ODD, max_size=30)


def inner(backend: Backend, **special: str) -> Tokenizer:
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", **special))


def characters(normalizer: Any = None, fuse: bool = False, merges: bool = False) -> Tokenizer:
    """One token a character of LETTERS, [UNK] for any other."""
    known = ["[UNK]", "<s>", *LETTERS] + (["ab", "abc", "th"] if merges else [])
    pairs = [("a", "b"), ("ab", "c"), ("t", "h")] if merges else []
    backend = Backend(
        models.BPE({one: i for i, one in enumerate(known)}, pairs, unk_token="[UNK]", fuse_unk=fuse)
    )
    backend.normalizer, backend.decoder = normalizer, decoders.Fuse()
    return inner(backend, unk_token="[UNK]")


@cache
def pieces() -> Tokenizer:
    """Like SentencePiece: a space before the text, spaces as U+2581, bytes where a character is unknown."""
    known = ["<s>", "\u2581", *"abchst,.", "\u2581a", "\u2581ab", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(
        models.BPE(
            {one: i for i, one in enumerate(known)}, [("\u2581", "a"), ("\u2581a", "b")], byte_fallback=True
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    spaces = decoders.Replace("\u2581", " ")
    backend.decoder = decoders.Sequence(
        [spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner(backend)


def plain(character: str) -> str:
    """What is left of a character once accents are stripped."""
    return "".join(c for c in unicodedata.normalize("NFD", character) if unicodedata.category(c) != "Mn")


def known_only(change: Callable[[str], str]) -> Callable[[str], str]:
    return lambda c: "".join(one if one in LETTERS else "[UNK]" for one in change(c))


@cache
def toy(name: str) -> tuple[Tokenizer, Callable[[str], str]]:
    """A tokenizer, and what it makes of one character by its rules alone."""
    if name == "bytes":
        return Tokenizer(toys.tokenizer()), lambda c: c
    if name == "lower":
        return characters(normalizers.Lowercase()), known_only(str.lower)
    if name == "merged":
        return characters(normalizers.Lowercase(), merges=True), known_only(str.lower)
    if name == "unknown":
        return characters(), known_only(str)
    if name == "fused":
        return characters(fuse=True), known_only(str)
    if name == "accents":
        steps = [normalizers.NFD(), normalizers.StripAccents()]
        return characters(normalizers.Sequence(steps)), known_only(plain)
    if name == "nfkc":
        return characters(normalizers.NFKC()), known_only(lambda c: unicodedata.normalize("NFKC", c))
    return pieces(), lambda c: " " if c == "\u2581" else c


def naive(text: str, spans: tuple[tuple[int, int], ...], rule: Callable[[str], str]) -> tuple[set[int], int]:
    """Return the tokens that are not scored and the bytes that are, one character after another."""
    # A character that is changed takes every token with it that covers it, and these all that they cover.
    gone = {place for place, c in enumerate(text) if rule(c) != c}
    covered = {place for start, end in spans for place in range(start, end)}
    gone |= {place for place in range(len(text)) if place not in covered}
    lost: set[int] = set()
    while True:
        more = {i for i, (start, end) in enumerate(spans) if gone & set(range(start, end))}
        gone |= {place for i in more for place in range(*spans[i])}
        if more == lost:
            return lost, sum(len(c.encode()) for place, c in enumerate(text) if place not in gone)
        lost = more


@pytest.mark.parametrize(
    "name", ["bytes", "lower", "merged", "unknown", "fused", "accents", "nfkc", "pieces"]
)
@given(text=TEXTS)
def test_what_is_scored_is_what_a_naive_account_says(name: str, text: str) -> None:
    tokenizer, rule = toy(name)
    # NFKC composes a letter with the accent behind it, which no rule for one character says.
    text = text.replace("\u0301", "") if name == "nfkc" else text
    ids, spans = tokenizer.encode(text)
    found = round_trip(tokenizer, text, ids, spans)
    lost, size = naive(text, spans, rule)
    assert ({*found.lost}, found.bytes) == (lost, size)
    assert found.bytes + found.bytes_lost == len(text.encode())
    if tokenizer.decode(ids) == text:
        assert not found.lost and not found.bytes_lost


@given(text=st.text(max_size=40))
def test_no_byte_of_a_lossless_tokenizer_is_lost(text: str) -> None:
    for name in ("bytes", "pieces"):
        tokenizer, _ = toy(name)
        text = text.replace("\u2581", "_")
        found = round_trip(tokenizer, text, *tokenizer.encode(text))
        assert (found.lost, found.bytes, found.bytes_lost) == ((), len(text.encode()), 0)


def lost_of(tokenizer: Tokenizer, text: str) -> tuple[list[str], int]:
    """Return the pieces of text that are not scored, and how many bytes are not."""
    ids, spans = tokenizer.encode(text)
    found = round_trip(tokenizer, text, ids, spans)
    return [text[slice(*spans[place])] for place in found.lost], found.bytes_lost


def test_words_with_white_space_between() -> None:
    words = ["[UNK]", "<s>", "the", "cat", ",", "don", "'", "t", "##s"]
    backend = Backend(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    backend.decoder = decoders.WordPiece()
    tokenizer = inner(backend, unk_token="[UNK]")
    assert lost_of(tokenizer, "the cats, the cat") == ([], 0)
    # A space that is put in, or left out before the text, is no byte that is lost.
    assert lost_of(tokenizer, "don't") == ([], 0) and lost_of(tokenizer, " the,cat") == ([], 0)
    # One of two spaces is lost, a line's end becomes a space, and nothing gives back what ends a text.
    assert lost_of(tokenizer, "the  cat") == ([], 2) and lost_of(tokenizer, "the\ncat ") == ([], 2)
    assert lost_of(tokenizer, "The cat") == (["The"], 3)
    assert lost_of(tokenizer, "the xyz cat") == (["xyz"], 4)
    assert lost_of(tokenizer, "t\x00he") == (["t"], 3) or lost_of(tokenizer, "the\x00") == ([], 1)


def test_composed_letters_of_a_byte_tokenizer_that_normalises() -> None:
    backend = Backend.from_str(toys.tokenizer().backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFC()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=toys.END))
    assert lost_of(tokenizer, "caf\u00e9 ok") == ([], 0)
    pieces, size = lost_of(tokenizer, "cafe\u0301 ok")
    assert size == 3 and {*pieces} == {"e"}


def test_special_tokens_in_a_text() -> None:
    tokenizer = Tokenizer(toys.tokenizer())
    assert lost_of(tokenizer, f"a{toys.END}b") == ([], 0)
    backend = Backend(models.WordLevel({"[UNK]": 0, "<s>": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_tokens([AddedToken("<m>", lstrip=True)])
    greedy = inner(backend, unk_token="[UNK]")
    assert lost_of(greedy, "a <m> b")[1] <= 1 and lost_of(greedy, "a  <m> b")[1] == 5


def test_nothing_at_all() -> None:
    tokenizer, _ = toy("lower")
    assert lost_of(tokenizer, "") == ([], 0)
    nothing = inner(Backend(models.BPE({"<s>": 0}, [])))
    assert lost_of(nothing, "all is lost") == ([], 11)


def test_half_a_character_is_refused_in_one_line() -> None:
    with pytest.raises(BadInput, match="half a character"):
        Tokenizer(toys.tokenizer()).encode("a\ud800b")
