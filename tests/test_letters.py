"""Overlap by letters: copies are known in every script, and whatever is no letter changes nothing."""

import random
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import toys
import uptake
from uptake.errors import BadInput
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.store.datastore import Datastore
from uptake.text.collection import Collected, Collection
from uptake.text.letters import FEW, RUN, SHORT_RUN, Letters
from uptake.text.overlap import LeakFilter, Overlap, Shingles
from uptake.text.types import Document, Passage


def clauses(count: int, seed: int = 0, size: int = 24) -> list[str]:
    """Return clauses of Chinese characters drawn at random."""
    chance = random.Random(seed)
    return ["".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(size)) for _ in range(count)]


ORIGINAL = "，".join(clauses(40))
COPY = "，".join(mark + clause for mark, clause in zip("".join(clauses(2, 1)), clauses(40), strict=False))


def test_a_chinese_copy_with_a_character_before_each_clause_is_withheld() -> None:
    verdict = LeakFilter().judge(Overlap(ORIGINAL), "asked", "", Passage(1, COPY, document="copy"))
    assert verdict.leaks
    other = "，".join(clauses(40, seed=7))
    assert not LeakFilter().judge(Overlap(ORIGINAL), "asked", "", Passage(1, other, document="other")).leaks


def test_the_copy_is_kept_from_a_method_and_counted(tmp_path) -> None:
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add([Document("copy", COPY), *(Document(str(i), "，".join(clauses(40, i))) for i in range(2, 5))])
    rows = uptake.compare(
        toys.lm(), [Document("asked", ORIGINAL)], ["random"], store=store, k=9, protocol=PerQuery(40, 40)
    ).rows
    (row,) = rows
    of_copy = sum(passage.document == "copy" for passage in store.passages(store._table.ids))
    assert row.withheld == of_copy == 2 and row.neighbours == store.count - 2 and row.overlap == 0


# What the naive version knows of characters: the kinds the tests draw from.
LATIN, HAN, KANA, THAI, HINDI, ARABIC = (
    "abcdefgzA",
    "天地玄黃宇宙洪荒",
    "のはひぺガ",
    "กาดีขึ้น",
    "हिन्दीमें",
    "كِتَابٌ",
)
KOREAN, OTHER, EMOJI = "한국어", "éΣß12ﬁ", "😀🚀👩‍🔬"
DROPPED = " \n.,!?，。、-_()'\u200b\u3000\u0301＋"
SCRIPTS = (LATIN, HAN, KANA, THAI, HINDI, ARABIC, KOREAN, OTHER, EMOJI, DROPPED)


def naive_letters(text: str) -> list[tuple[str, int]]:
    kept = []
    for c in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()):
        if unicodedata.category(c)[0] in "LN" or (
            unicodedata.category(c)[0] == "M" and not unicodedata.combining(c)
        ):
            kept.append((c, 3 if "\u4e00" <= c <= "\u9fff" else 2 if "\u3040" <= c <= "\u30ff" else 1))
        elif ord(c) >= 0x1F000:
            kept.append((c, 3))
    return kept


def naive_runs(text: str, length: int) -> set[str]:
    letters, found = naive_letters(text), set()
    for start in range(len(letters)):
        worth, run = 0, ""
        for c, more in letters[start:]:
            worth, run = worth + more, run + c
            if worth >= length:
                found.add(run)
                break
    return found


def naive_share(passage: str, document: str) -> float:
    run = SHORT_RUN if Shingles(passage).unspaced else RUN
    one, other = naive_runs(passage, run), naive_runs(document, run)
    return len(one & other) / len(one) if one else 0.0


def mixed(most: int) -> st.SearchStrategy[str]:
    """Text of stretches of one script each."""
    stretch = st.one_of(*(st.text(st.sampled_from(script), min_size=1, max_size=30) for script in SCRIPTS))
    return st.lists(stretch, max_size=most).map("".join)


@settings(max_examples=200, deadline=None)
@given(document=mixed(8), passage=mixed(3), cut=st.tuples(st.integers(0, 60), st.integers(0, 90)))
def test_equals_the_naive_version(document: str, passage: str, cut: tuple[int, int]) -> None:
    passage = document[cut[0] : sum(cut)] + passage
    shingles, overlap = Shingles(passage), Overlap(document)
    assert len(naive_runs(passage, shingles.run)) < FEW and not shingles.sampled
    assert shingles.letters.worth == sum(worth for _, worth in naive_letters(passage))
    assert overlap.letters(passage) == naive_share(passage, document)
    whole = naive_runs(document, shingles.run)
    found = len(naive_runs(passage, shingles.run) & whole) / max(len(whole), 1)
    assert overlap.letters_coverage(passage) == (found if Letters(document).worth >= 2 * RUN else 0)


@settings(max_examples=200, deadline=None)
@given(
    text=mixed(10),
    places=st.lists(st.integers(0, 300)),
    what=st.text(st.sampled_from(" \n\t　,.。、!-"), min_size=1),
)
def test_spaces_and_punctuation_change_nothing(text: str, places: list[int], what: str) -> None:
    spaced = text
    for place in places:
        spaced = spaced[:place] + what + spaced[place:]
    # Between a letter and its mark a space may decide what composes; apart from that nothing does.
    spaced = unicodedata.normalize("NFD", text) if not places else spaced
    for length in (RUN, SHORT_RUN):
        assert np.array_equal(Letters(text).runs(length), Letters(spaced).runs(length))


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=200), mixed(6)), form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
@example(text="ﬁ" * 40 + "ｆｉ" * 40, form="NFKC")
@example(text="각" * 40, form="NFD")
def test_the_forms_of_unicode_change_nothing(text: str, form: str) -> None:
    other = unicodedata.normalize(form, text)
    assert np.array_equal(Letters(text).runs(SHORT_RUN), Letters(other).runs(SHORT_RUN))


@given(text=st.text(st.characters(max_codepoint=127), max_size=300))
def test_ascii_is_read_as_any_text_is(text: str) -> None:
    assert np.array_equal(Letters(text).runs(), Letters(text + "\u200b").runs())
    assert np.array_equal(Letters(text).runs(), Letters(text.swapcase()).runs())


@settings(max_examples=200, deadline=None)
@given(one=mixed(12), other=mixed(12))
def test_a_text_stands_in_itself_and_in_what_it_is_part_of(one: str, other: str) -> None:
    shingles = Shingles(one)
    whole = 1.0 if len(shingles.runs) else 0.0
    assert Overlap(one).letters(shingles) == whole
    for joined in (f"{one}\n{other}", f"{other}\n{one}"):
        assert Overlap(joined).letters(shingles) == whole
        assert Overlap(one).letters(joined) <= 1
    # A part, read as one passage, shows as much of its document as it is of it.
    covered = Overlap(one).letters_coverage(f"{other}\n{one}")
    assert covered == (1.0 if Letters(one).worth >= 2 * RUN else 0.0)


@pytest.mark.parametrize("text", ["", " ", "。", "的", "a", "😀", "\u0301", "\ud800", "\u200d", "ab" * 8])
def test_a_text_too_short_for_a_run_shares_nothing_by_letters(text: str) -> None:
    assert Overlap(text).letters(text) == Overlap(ORIGINAL).letters(text) == 0.0
    assert Overlap(text).letters_coverage(ORIGINAL) == 0.0


def test_pictures_count_and_what_chooses_their_look_does_not() -> None:
    chance = random.Random(0)
    row = "".join(chr(chance.randrange(0x1F300, 0x1F5FF)) for _ in range(60))
    dressed = "\ufe0f\u200d".join(row)
    assert Overlap(row).letters(dressed) == Overlap(dressed).letters(row) == 1.0
    assert LeakFilter().judge(Overlap(row), "asked", "", Passage(1, dressed, document="copy")).leaks


def test_marks_that_may_be_left_out_do_not_count() -> None:
    pointed = "ذَٰلِكَ ٱلۡكِتَٰبُ لَا رَيۡبَۛ فِيهِۛ هُدٗى لِّلۡمُتَّقِينَ ٱلَّذِينَ يُؤۡمِنُونَ بِٱلۡغَيۡبِ"
    bare = "".join(c for c in pointed if not unicodedata.combining(c))
    assert bare != pointed and Overlap(pointed).letters(bare) == Overlap(bare).letters(pointed) == 1.0
    vowels = "हिन्दी में लिखा हुआ एक वाक्य जो काफी लंबा है और फिर आगे चलता है"
    changed = vowels.replace("\u093e", "\u094b")
    assert Overlap(vowels).letters(changed) < 1, "the vowels of Hindi are letters"


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("It is written with spaces, as anything else in English is.", False),
        ("Donaudampfschifffahrtsgesellschaft und andere lange Wörter des Deutschen", False),
        ("모든 사람은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다", False),
        ("सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है", False),
        ("人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。", True),
        ("すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。", True),
        ("มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ", True),
        ("aGVsbG8gd29ybGQgdGhpcyBpcyBhIHRlc3Qgb2YgYmFzZTY0IHRleHQ", True),
        ("宏，宏名，保存，位置，命令，目录，窗口，按钮，编辑，文件", True),
        ("The word 更新 means that something is updated, and 文本 is text", False),
        ("😀🚀😀🚀", True),
        ("", False),
    ],
)
def test_where_words_are_written_together(text: str, unspaced: bool) -> None:
    assert Shingles(text).unspaced == unspaced


def test_a_copy_spaced_otherwise_is_withheld_and_what_is_read_of_it_is_told() -> None:
    english = " ".join(f"{a}{b}" for a, b in zip("bcdfghjklm" * 30, clauses(300, size=1), strict=True))
    overlap = Overlap(english)
    joined = Passage(1, english.replace(" ", ""), document="copy")
    verdict = LeakFilter().judge(overlap, "asked", "", joined)
    assert (verdict.leaks, verdict.reason) == (True, "edited copy")
    assert LeakFilter.off().judge(overlap, "asked", "", joined).share == verdict.share > 0.9
    longer = Passage(2, joined.text + "".join(clauses(60, 3)), document="longer")
    assert LeakFilter().judge(overlap, "asked", "", longer).reason == "holds an edited copy"


def test_the_threshold_of_letters_is_a_setting() -> None:
    overlap, passage = Overlap(ORIGINAL), Passage(1, COPY, document="copy")
    share = overlap.letters(COPY)
    assert 0.5 < share < 1
    assert LeakFilter(letters=share).judge(overlap, "asked", "", passage).leaks
    above = max(share, overlap.letters_coverage(COPY)) + 1e-9
    assert not LeakFilter(letters=above).judge(overlap, "asked", "", passage).leaks
    with pytest.raises(BadInput, match=r"letters 0\.0"):
        LeakFilter(letters=0.0)


def test_a_sample_tells_of_a_long_text_what_all_its_runs_would() -> None:
    text = "，".join(clauses(200))
    edited = "，".join(c if i % 3 else c[::-1] for i, c in enumerate(clauses(200)))
    assert Shingles(edited).sampled
    one, other = Letters(edited).runs(SHORT_RUN), Letters(text).runs(SHORT_RUN)
    assert abs(Overlap(text).letters(edited) - np.isin(one, other).mean()) < 0.03


def test_pieces_of_a_huge_text_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ORIGINAL + "\n" + "many words of English too " * 20 + COPY
    whole = [Letters(text).runs(length) for length in (RUN, SHORT_RUN)]
    for piece, slab in ((5, 1), (64, 7), (100, 1 << 20)):
        monkeypatch.setattr("uptake.text.letters._PIECE", piece)
        monkeypatch.setattr("uptake.text.slabs.SLAB", slab)
        for length, runs in zip((RUN, SHORT_RUN), whole, strict=True):
            assert np.array_equal(Letters(text).runs(length), runs)
            assert np.array_equal(Letters(text).sample(length), runs[runs % 4 == 0])


@pytest.mark.parametrize("threshold", [0.1, 0.5, 1.0])
def test_all_that_leak_by_letters_are_suspects_and_few_besides(threshold: float) -> None:
    chance = random.Random(0)
    parts = clauses(30)
    texts = [
        "，".join(chance.sample(parts, n) + clauses(m, n + m)) for n in (0, 3, 9, 20) for m in (0, 2, 40)
    ]
    texts += [" ".join(f"word{chance.randrange(99)}" for _ in range(n)) for n in (2, 30, 300)]
    texts += [
        ORIGINAL,
        COPY,
        COPY + "，".join(clauses(90, 5)),
        "",
        "短",
        "😀" * 5,
        ORIGINAL.replace("，", ""),
    ]
    passages = [Passage(i, text, document=str(i)) for i, text in enumerate(texts)]
    leak = LeakFilter(containment=1.0, jaccard=1.0, letters=threshold)
    for document in ("，".join(parts), ORIGINAL, texts[-8], "短"):
        overlap = Overlap(document)
        leaking = np.array([leak.judge(overlap, "asked", "", passage).leaks for passage in passages])
        found = Collection(Collected.of(texts)).suspects(overlap, leak)
        assert not (leaking & ~found).any()
        own = np.array([len(Shingles(text).words) > 14 for text in texts])
        assert not (found & ~leaking & own).any()
        assert not Collection(Collected.of([])).suspects(overlap, leak).size
    assert not Collection(Collected.of(texts)).suspects(Overlap(ORIGINAL), LeakFilter.off()).any()
