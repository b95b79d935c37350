"""A search by words finds text of every script, in the table and among chunks; spaced text as ever."""

import json
import re

import hypothesis.strategies as some
import lance
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import toys
import uptake
from cli_world import refused, run_fixture  # noqa: F401
from stubs import Letters, StubEncoder
from uptake.lm.base import Segment
from uptake.store import Datastore
from uptake.store.passages.table import Table
from uptake.text import terms
from uptake.text.chunks.view import listed
from uptake.text.overlap import LeakFilter, Overlap, Shingles
from uptake.text.types import Chunking, Document

# Of each script a text, and queries that must find it and nothing else: whole words, parts of what stands
# without spaces, a single character.
TEXTS = {
    "Chinese": ("点击绿色按钮即可重新启动水泵。", ["绿色按钮", "绿色", "钮", "重新启动", "请问水泵在哪"]),
    "traditional": ("點擊這個圖示以儲存檔案。", ["儲存檔案", "圖示", "檔"]),
    "Japanese": ("ボタンを押すとポンプが再起動します。", ["ポンプ", "再起動", "押", "ﾎﾟﾝﾌﾟ"]),
    "Thai": ("กดปุ่มสีเขียวเพื่อเริ่มปั๊มใหม่", ["สีเขียว", "ปุ่ม", "ปั๊ม"]),
    "Lao": ("ກົດປຸ່ມສີຂຽວ", ["ປຸ່ມ", "ສີຂຽວ"]),
    "Khmer": ("ចុចប៊ូតុងពណ៌បៃតង", ["ប៊ូតុង", "បៃតង"]),
    "Burmese": ("အစိမ်းရောင်ခလုတ်ကိုနှိပ်ပါ", ["ခလုတ်", "အစိမ်းရောင်"]),
    "Korean": ("녹색 버튼을 누르면 펌프가 다시 시작됩니다.", ["버튼", "펌프", "녹색"]),
    "Arabic": ("اضغط على الزر الأخضر لإعادة تشغيل المضخة", ["الأخضر", "المضخة"]),
    "marks apart": ("un bar, un pa\u0302te\u0301", ["pa\u0302te\u0301"]),
    "vowelled Arabic": ("كَتَبَ الدَّرْسَ", ["كَتَبَ", "الدَّرْسَ"]),
    "Hebrew": ("לחץ על הכפתור הירוק", ["הכפתור", "הירוק"]),
    "Hindi": ("पंप को पुनः आरंभ करने के लिए हरा बटन दबाएं", ["हरा", "बटन", "पुनः आरंभ"]),
    "Tamil": ("பச்சை பொத்தானை அழுத்தவும்", ["பொத்தானை", "பச்சை"]),
    "Russian": ("Нажмите зелёную кнопку", ["кнопку", "КНОПКУ"]),
    "Greek": ("Πατήστε το πράσινο κουμπί", ["κουμπί", "πράσινο"]),
    "German": ("Die Straße ist gesperrt, über die Brücke.", ["Straße", "Brücke", "Bru\u0308cke", "GESPERRT"]),
    "French": ("Un café très corsé", ["cafe", "café", "cafe\u0301", "tres"]),
    "emoji": ("The deploy is done 🎉🚢, thanks 👍🏽 ❤️", ["🎉", "🚢", "👍", "❤", "👍🏿"]),
    "flags": ("won by 🇳🇿 against 🇫🇮", ["🇳🇿", "🇫🇮"]),
    "family": ("room for 👩‍👩‍👧", ["👧", "👩"]),
    "mixed": ("我们用PyTorch训练模型，速度提高了3倍", ["PyTorch", "训练", "模型", "3倍"]),
    "identifiers": (
        "self.parse_header(HTTPServer2, max_retries=3)",
        ["parse_header", "HTTPServer2", "retries"],
    ),
    "English": ("The valves of the boiler are inspected weekly", ["valve", "boilers", "inspect"]),
}
QUERIES = [(name, query) for name, (_, queries) in TEXTS.items() for query in queries]
DOCUMENTS = [Document(name, text) for name, (text, _) in TEXTS.items()]


def found(store, query, k=3):
    (ranked,) = store.search([query], k)
    return [passage.document for passage in store.passages(ranked.ids)]


def missed(store, names=TEXTS):
    """Return the queries whose first passage is not of their text."""
    return [(name, query) for name, query in QUERIES if name in names and found(store, query)[:1] != [name]]


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    store = Datastore.create(tmp_path_factory.mktemp("scripts") / "s", retriever="lexical")
    store.add(DOCUMENTS)
    return store


def test_every_script_is_found(every):
    assert missed(every) == []


def test_every_script_is_found_through_changes(tmp_path):
    names = list(TEXTS)
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add(DOCUMENTS[: len(names) // 2])
    assert missed(store, names[: len(names) // 2]) == []
    store.add(DOCUMENTS[len(names) // 2 :])
    assert missed(store) == [] and missed(Datastore.open(tmp_path / "s")) == []
    gone, left = names[::3], [name for name in names if name not in names[::3]]
    store.remove(gone)
    assert missed(store, left) == []
    assert all(found(store, query)[:1] != [name] for name, query in QUERIES if name in gone)
    held = [file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()]
    assert any("绿色".encode() in each for each in held)
    store.remove(purge=True)
    held = [file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()]
    assert not any("绿色".encode() in each for each in held), "the pairs go with their text"
    assert store.verify() == [] and missed(Datastore.open(tmp_path / "s"), left) == []
    store.add([Document("Chinese", "绿色按钮不见了")])
    assert found(store, "绿色按钮") == ["Chinese"]


def test_what_workers_of_a_cluster_write_is_found(every, tmp_path):
    table = Table.create(tmp_path / "t", 0, with_pieces=True).index_text()
    passages = every.passages(every._table.ids)
    drafts = [draft for half in (passages[::2], passages[1::2]) for draft in table.draft(half, None)]
    made = table.commit(drafts)
    for one in (made, made.index_text()):  # searched row by row, then by the index
        for name, query in QUERIES:
            assert every.passages(one.match(query, 1)[0])[0].document == name


def test_every_script_is_found_among_chunks():
    view = listed(DOCUMENTS, Letters(), 64)
    chunks = view.bound("", "", Overlap("x"), LeakFilter.off())
    names = {int(chunk): name for chunk, name in zip(view.columns.records["id"], TEXTS, strict=True)}
    # Words are matched as they stand there: no endings and no accents are taken off.
    bent = {"strasse", "cafe", "tres", "valve", "boilers", "inspect", "retries", "HTTPServer2"}
    asked = [(name, query) for name, query in QUERIES if query not in bent]
    best = chunks.search([query for _, query in asked], 1)[:, 0].tolist()
    wrong = [pair for pair, key in zip(asked, best, strict=True) if names.get(key) != pair[0]]
    assert wrong == []


def test_a_spaced_store_says_what_it_does_not_find(tmp_path, run):
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"id": name, "text": text}) + "\n" for name, (text, _) in TEXTS.items())
    )
    asked = ("index", "build", tmp_path / "s", texts, "--retriever", "lexical")
    run(*asked, "--words", "spaced")
    ran = run("index", "search", tmp_path / "s", "绿色按钮 🎉")
    assert "the query has Chinese characters, emoji" in ran.err and "--words any-script" in ran.err
    assert run("index", "search", tmp_path / "s", "boiler").err == ""
    assert run("index", "info", tmp_path / "s", "--json").json["words"] == "spaced"
    refused(run(*asked, "--words", "any-script"), "is there with words spaced, not any-script")
    refused(run(*asked, "--words", "anyscript"), "did you mean any-script?")
    run(*asked[:2], tmp_path / "anew", *asked[3:])
    ran = run("index", "search", tmp_path / "anew", "绿色按钮")
    assert ran.err == "" and "点击绿色按钮" in ran.out
    info = [run("index", "info", tmp_path / name, "--json").json for name in ("s", "anew")]
    assert info[1]["words"] == "any-script" and info[0]["fingerprint"] != info[1]["fingerprint"]
    dense = ("index", "build", tmp_path / "d", texts, "--retriever", "dense", "--words", "spaced")
    refused(run(*dense), "a dense store searches no words")


def test_spaced_text_is_found_just_as_by_the_words_alone(tmp_path):
    """Passages of a script with spaces score as they do in a spaced store, whatever lies beside them."""
    rng = np.random.default_rng(0)
    vocabulary = [
        "pump",
        "valves",
        "boiling",
        "naïve",
        "Straße",
        "get_user",
        "x²",
        "the",
        "of",
        "Ελλάδα",
        "हिन्दी",
    ]
    spaced = [Document(str(i), " ".join(rng.choice(vocabulary, 12))) for i in range(60)]
    stores = {}
    for words in ("spaced", "any-script"):
        stores[words] = Datastore.create(tmp_path / words, retriever="lexical", words=words)
        stores[words].add(spaced)
    queries = [" ".join(rng.choice(vocabulary, 4)) for _ in range(20)]

    def answers(words):
        ranked = stores[words].search(queries, 70)  # all of them: where equal ones are cut off is Lance's own
        return [(each.ids.tolist(), each.scores.tolist()) for each in ranked]

    assert answers("any-script") == answers("spaced")
    for store in stores.values():
        store.add([Document("zh", "绿色按钮 🎉"), Document("ko", "버튼을 누르면")])
    assert answers("any-script") == answers("spaced") and len(answers("spaced")[0][0]) > 20


@pytest.mark.parametrize("retriever", ["hybrid", "dense"])
def test_other_retrievers_open_search_and_verify(tmp_path, retriever):
    store = Datastore.create(
        tmp_path / "s", retriever=retriever, encoder=StubEncoder(), chunking=Chunking(64)
    )
    store.add(DOCUMENTS)
    assert store.info()["words"] == ("any-script" if retriever == "hybrid" else "none")
    seen = [name in found(store, query, 6) for name, query in QUERIES]
    assert all(seen) == (retriever == "hybrid") and store.verify() == []
    assert store.export(tmp_path / "x.parquet") == store.count
    import pyarrow.parquet as parquet

    assert "pieces" not in parquet.read_schema(tmp_path / "x.parquet").names


def test_ttt_nn_reads_the_neighbours_of_a_chinese_prompt(tmp_path):
    texts = [
        "点击绿色按钮即可重新启动水泵。",
        "阀门每周检查一次。",
        "锅炉的压力由仪表显示。",
        "过滤器挡住沙子。",
    ]
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add([Document(f"d{place}", text) for place, text in enumerate(texts)])
    lm = toys.lm()
    for prompt, place in (("怎样检查阀门", 1), ("锅炉压力太高怎么办", 2), ("水泵", 0)):
        session = uptake.adapt(lm, prompt, store=store, k=1, settings=["learning_rate=1e-2"])
        assert [one.text for one in session.neighbours] == [texts[place]]
        assert session.score("水泵").bits != lm.score([Segment("水泵")])[0].bits
    whole = [
        Document(f"new{place}", f"{text}它在地下室，钥匙在门卫那里。") for place, text in enumerate(texts)
    ]
    leak = {"document_id": "new2", "whole_text": whole[2].text}
    (near,) = store.source(whole[2].text[:8], leak=LeakFilter.off(), **leak).search(1).passages
    assert near.text == texts[2]


CHARACTERS = some.sampled_from("绿色按钮重新ボタンポをขีปุ่มก녹색버튼ខ្ម🎉🚢e\u0301é ab_.")


@given(some.text(CHARACTERS, max_size=30), some.data())
def test_whatever_stands_in_a_text_is_among_its_terms(text, data):
    parts = terms._patterns().character.findall(text)
    start = data.draw(some.integers(0, len(parts)))
    part = "".join(parts[start : data.draw(some.integers(start, len(parts)))])
    held = set(terms.pieces(text))
    dense = [piece for piece in terms.query_pieces(part) if terms.has_pieces(piece)]
    assert held.issuperset(dense) and bool(dense) == terms.has_pieces(part)
    assert len(terms.query_hashes(part)) or not terms.words(part)


@given(some.text(some.characters(max_codepoint=0x2FF), max_size=60))
def test_text_without_such_scripts_is_cut_as_ever(text):
    assert terms.pieces(text) == [] and not terms.has_pieces(text)
    assert terms.words(text) == re.findall(r"\w+", text)
    assert terms.hashes(text).tolist() == Shingles(text).words.tolist() == terms.query_hashes(text).tolist()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.lists(some.text(CHARACTERS, min_size=1, max_size=12), min_size=1, max_size=6))
def test_terms_are_what_lance_keeps_of_the_pieces(texts):
    """The index keeps a piece as it is, where it is no word."""
    for text in texts:
        for piece in terms.pieces(text):
            if terms.has_pieces(piece):
                kept = lance.tokenize(piece, base_tokenizer="whitespace", max_token_length=None)
                assert [token.text for token in kept] == [piece]


def test_a_long_query_is_cut_to_what_decides(every):
    text = TEXTS["Japanese"][0] + "".join(chr(0x4E00 + i) for i in range(3000)) + "ください" * 500
    words, few = terms.searched(text, True)
    assert words == [] and len(few) == terms.QUERY_PAIRS
    assert found(every, text)[:1] == ["Japanese"]
