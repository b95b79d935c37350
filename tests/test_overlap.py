"""Overlap and leak filter, against a plain version made of Python sets."""

import os
import re
import subprocess
import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uptake.errors import BadInput
from uptake.text.collection import Collected, Collection
from uptake.text.overlap import (
    OVERLAP_BINS,
    LeakFilter,
    Overlap,
    Shingles,
    Verdict,
    overlap_bin,
)
from uptake.text.slabs import SLAB
from uptake.text.types import Passage


def naive_grams(text: str, length: int) -> set[tuple[str, ...]]:
    words = [word.lower() for word in re.findall(r"\w+", text)]
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)} if length else set()


def naive_containment(passage: str, document: str) -> float:
    plain = " ".join(passage.split())
    if plain and plain in " ".join(document.split()):
        return 1.0
    length = min(13, len(re.findall(r"\w+", passage)))
    grams = naive_grams(passage, length)
    return len(grams & naive_grams(document, length)) / len(grams) if grams else 0.0


def naive_coverage(passage: str, document: str) -> float:
    grams = naive_grams(document, 13)
    return len(grams & naive_grams(passage, 13)) / len(grams) if grams else 0.0


def naive_jaccard(passage: str, document: str) -> float:
    one, other = (naive_grams(text, min(5, len(re.findall(r"\w+", text)))) for text in (passage, document))
    return len(one & other) / len(one | other) if one | other else 0.0


words = st.sampled_from(["a", "b", "A", "c\u0130", "\u03a3", "d\n", ".", "-- e", "\ud800", "", " \u3000"])
texts = st.lists(words, max_size=60).map(" ".join) | st.text(max_size=40)


@settings(max_examples=300)
@given(document=texts, passage=texts, cut=st.none() | st.tuples(st.integers(0, 80), st.integers(0, 80)))
@example(document="one two", passage="", cut=None)
@example(document="}\n );", passage=" } );", cut=None)
def test_equals_the_naive_version(document: str, passage: str, cut: tuple[int, int] | None) -> None:
    if cut:  # a piece of the document, between words or within them
        passage = document[cut[0] : cut[0] + cut[1]] + passage[:20]
    overlap = Overlap(document)
    assert overlap.containment(passage) == naive_containment(passage, document)
    assert overlap.coverage(passage) == naive_coverage(passage, document)
    assert overlap.jaccard(passage) == naive_jaccard(passage, document)


def test_slabs_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    document = " ".join(f"w{i}" for i in range(300)) + "  \n  x" + "y" * 50
    passage = " ".join(f"W{i}" for i in range(95, 140)) + " but not this"
    expected = naive_containment(passage, document), naive_jaccard(passage, document)
    for slab in (1, 7, 64):
        monkeypatch.setattr("uptake.text.slabs.SLAB", slab)
        overlap = Overlap(document)
        assert (overlap.containment(passage), overlap.jaccard(passage)) == expected
        assert overlap.containment(document[33:777]) == 1.0
        assert overlap.containment("w299 x" + "y" * 50) == 1.0


def test_hashes_are_the_same_in_every_process() -> None:
    code = "from uptake.text.overlap import Shingles; print(Shingles('The cat sat').grams(2).tolist())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": s},
        ).stdout
        for s in ("1", "2")
    }
    assert len(runs) == 1 and len(runs.pop()) > 10


def test_no_loop_of_python_goes_over_the_words() -> None:
    """What fifty megabytes in seconds rest on: ten times the text runs not one line of Python more."""

    def lines_run(document: str) -> int:
        ran = [0]

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            ran[0] += event == "line"  # also at every turn of a loop, were it of one line
            return trace

        overlap, before = Overlap(document), sys.gettrace()
        sys.settrace(trace)
        try:
            overlap.containment(vocabulary[:200])
            overlap.jaccard(vocabulary[:200])
        finally:
            sys.settrace(before)
        return ran[0]

    vocabulary = " ".join(f"w{i}" for i in range(1000))
    lines_run(vocabulary)  # a word is hashed once, and then known
    assert len(vocabulary) * 100 < SLAB
    assert 0 < lines_run(f"{vocabulary} " * 100) == lines_run(f"{vocabulary} " * 10)


@pytest.mark.long
def test_fifty_megabytes_are_compared() -> None:
    document = " ".join(f"w{i * i % 99_991}" for i in range(7_500_000))
    overlap = Overlap(document)
    assert overlap.containment(document[5000:6000]) == overlap.containment(document[-1000:]) == 1.0
    assert overlap.containment(document[5000:6000][::-1]) == 0.0


DOCUMENT = " ".join(f"word{i}" for i in range(200))
LONG_TAIL = "".join(f" tail{i}" for i in range(500))


@pytest.mark.parametrize(
    ("passage", "verdict"),
    [
        (Passage(1, "else", document="d"), Verdict(True, "same document", 0.0)),
        (Passage(1, "else", document="e", group="g"), Verdict(True, "same group", 0.0)),
        (Passage(1, "else", document="e", group="h"), Verdict(False, "", 0.0)),
        (Passage(1, DOCUMENT[100:300]), Verdict(True, "stands in the document", 1.0)),
        (Passage(1, DOCUMENT + LONG_TAIL), Verdict(True, "holds the document", 188 / 688)),
        (Passage(1, DOCUMENT.replace("word7 ", "word ")), Verdict(True, "stands in the document", 180 / 188)),
    ],
)
def test_verdicts(passage: Passage, verdict: Verdict) -> None:
    judged = LeakFilter().judge(Overlap(DOCUMENT), "d", "g", passage)
    assert judged == verdict
    open_verdict = LeakFilter.off().judge(Overlap(DOCUMENT), "d", "g", passage)
    letters = Overlap(DOCUMENT).letters(passage.text)
    assert open_verdict == Verdict(False, "", verdict.share, letters)


def test_group_needs_a_name_on_both_sides() -> None:
    assert not LeakFilter().judge(Overlap("a b"), "d", "", Passage(1, "c", document="e")).leaks


def test_thresholds_are_settings() -> None:
    half = " ".join(DOCUMENT.split()[:30] + ["other"] * 18)  # 18 of its 36 13-grams
    overlap = Overlap(DOCUMENT)
    passage = Passage(1, half, document="e")
    containment = overlap.containment(half)
    assert 0 < containment < 1
    assert LeakFilter(containment=containment).judge(overlap, "d", "", passage).leaks
    assert not LeakFilter(containment=containment + 1e-9).judge(overlap, "d", "", passage).leaks
    every_tenth = " ".join("x" if i % 10 == 5 else word for i, word in enumerate(DOCUMENT.split()))
    jaccard = overlap.jaccard(every_tenth)
    near = LeakFilter(jaccard=jaccard).judge(overlap, "d", "", Passage(1, every_tenth))
    assert near == Verdict(True, "near copy", 0.0)
    own = LeakFilter(same_document=False, same_group=False)
    assert not own.judge(overlap, "e", "", Passage(1, "else", document="e")).leaks


@pytest.mark.parametrize("value", [0.0, -1.0, 1.1, float("nan"), float("inf")])
def test_thresholds_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(BadInput, match="containment"):
        LeakFilter(containment=value)
    with pytest.raises(BadInput, match="jaccard"):
        LeakFilter(jaccard=value)


def test_bins() -> None:
    cases = {0.0: 0, 1e-9: 1, 0.1: 1, 0.11: 2, 0.25: 2, 0.5: 3, 0.51: 4, 1.0: 4}
    assert {value: OVERLAP_BINS.index(overlap_bin(value)) for value in cases} == cases
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadInput, match="between 0 and 1"):
            overlap_bin(value)


def some_text(generator: np.random.Generator, words: int, vocabulary: int) -> str:
    return " ".join(f"w{number}" for number in generator.integers(0, vocabulary, words))


@pytest.mark.parametrize("threshold", [0.05, 0.5, 1.0])
def test_all_that_leak_are_suspects_and_few_besides(threshold: float) -> None:
    generator = np.random.default_rng(0)
    document = some_text(generator, 400, 300)
    words = document.split()
    texts = [some_text(generator, int(n), 300) for n in generator.integers(0, 120, 60)]
    texts += [
        " ".join(words[start : start + n]) for start, n in ((0, 12), (3, 13), (7, 14), (9, 100), (0, 400))
    ]
    texts += [document[17:200], document[30:45], "", "  ", "!?", document + " " + texts[0]]
    mixed = words[40:140]
    mixed[::12] = ["other"] * len(mixed[::12])
    texts += [" ".join(mixed), " ".join(words[200:260]) + " " + texts[1]]
    passages = [Passage(i, text) for i, text in enumerate(texts)]
    leak = LeakFilter(containment=threshold, jaccard=threshold)
    overlap = Overlap(document)
    leaking = np.array([leak.judge(overlap, "query", "", passage).leaks for passage in passages])
    found = Collection(Collected.of(texts)).suspects(overlap, leak)
    assert leaking.sum() > 3 and not (leaking & ~found).any()
    long = np.array([len(Shingles(text).words) > 14 for text in texts])
    assert (found & ~leaking & long).sum() <= 1
    short = Overlap("only four words here")
    assert not Collection(Collected.of([])).suspects(short, leak).size
    assert not Collection(Collected.of(texts)).suspects(short, leak)[long].any()
