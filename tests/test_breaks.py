"""Where texts are cut: at spaces as ever, else after a sentence or clause, and never within a character."""

import itertools
import random
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uptake.methods.contract.method import _pieces
from uptake.text.types import Chunking

CHINESE = "".join(
    "".join(random.Random(i).choices("天地玄黄宇宙洪荒日月盈昃辰宿列张", k=17))
    + ("。" if i % 4 == 0 else "，")
    for i in range(60)
)
THAI = "ภาษาไทยเขียนติดกันโดยไม่เว้นวรรคระหว่างคำและมีสระกับวรรณยุกต์อยู่บนหรือใต้พยัญชนะ" * 20
EMOJI = "👩‍🔬👍🏽🇨🇳e\u0301" * 60


def chunks(text: str, size: int) -> list[str]:
    return [piece for _, piece in Chunking(size).split(text)]


def segments(text: str, size: int) -> list[str]:
    return [text[start:end] for start, end in _pieces(text, size)]


@pytest.mark.parametrize("cut", [chunks, segments])
def test_chinese_is_cut_after_a_sentence_or_a_clause(cut) -> None:
    for size, mark in ((200, "。"), (30, "，。")):
        pieces = cut(CHINESE, size)
        assert "".join(pieces) == CHINESE
        assert all(size / 2 < len(piece) <= size and piece[-1] in mark for piece in pieces[:-1])


@pytest.mark.parametrize("cut", [chunks, segments])
@pytest.mark.parametrize("text", [THAI, EMOJI])
def test_nothing_is_cut_within_what_a_reader_takes_for_a_character(cut, text: str) -> None:
    for size in (16, 23, 40, 101):
        pieces = cut(text, size)
        assert "".join(pieces) == text and all(0 < len(piece) <= size for piece in pieces)
        for before, after in itertools.pairwise(pieces):
            assert unicodedata.category(after[0])[0] != "M" and after[0] not in "\u200d🏽"
            assert before[-1] != "\u200d"
            flags = sum(0x1F1E6 <= ord(c) <= 0x1F1FF for c in before)
            assert flags % 2 == 0, "a flag is two letters"


def split_as_ever(text: str, size: int) -> Iterator[tuple[int, str]]:
    """How passages are cut where there is a line or a space."""
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            at = text.rfind("\n", start + size // 2, end)
            at = at if at >= 0 else text.rfind(" ", start + size // 2, end)
            end = at + 1 if at >= 0 else end
        if text[start:end].strip():
            yield start, text[start:end]
        start = end


ascii_text = st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)).map(" ".join)


@given(text=ascii_text | st.text(st.sampled_from("ab \n.,;"), max_size=300), size=st.integers(16, 64))
def test_text_with_spaces_and_ascii_is_cut_as_ever(text: str, size: int) -> None:
    assert list(Chunking(size).split(text)) == list(split_as_ever(text, size))


@settings(max_examples=300)
@given(
    text=st.text(max_size=300) | st.text(st.sampled_from("地，。 \u3000ก้👩\u200d\u0301\r\n"), max_size=300),
    size=st.integers(16, 64),
)
def test_pieces_join_to_the_text_and_none_is_too_long(text: str, size: int) -> None:
    pieces = segments(text, size)
    assert "".join(pieces) == text and all(0 < len(piece) <= size for piece in pieces)
    parts = list(Chunking(size).split(text))
    covered = [*(start for start, _ in parts), len(text)]
    for (start, piece), following in zip(parts, covered[1:], strict=True):
        assert text[start : start + len(piece)] == piece and not text[start + len(piece) : following].strip()


def test_a_pile_of_marks_longer_than_a_passage_is_cut_all_the_same() -> None:
    text = "e" + "\u0301" * 100
    assert "".join(chunks(text, 16)) == text and max(map(len, chunks(text, 16))) <= 16
