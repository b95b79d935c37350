"""What a search by words finds in each script, and what its index costs, by the way words are cut.

Found: the example sentences that spaCy has of many languages lie in one table, each a passage. Of each a
part is searched for: two words where the script sets words apart, else four characters, and one character
alone, as a reader takes them. A part counts as found where a passage that holds it comes first.
Cost: passages of made-up words in one script at a time, with a natural spread (Zipf); CPU seconds of one
thread to build and to search with 1,000 characters, and the bytes of the indexes and what they are made of.

    OMP_NUM_THREADS=1 nice -n 10 python bench/words.py --out bench/words.json
"""

import argparse
import importlib
import json
import pkgutil
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import regex
from lance.query import MatchQuery

from uptake.store import Datastore
from uptake.text import terms
from uptake.text.types import Document

# Lance's own ways; the first is what a spaced store uses. jieba and lindera need models no wheel carries.
LANCE: dict[str, dict[str, Any]] = {
    "spaced (Lance: simple)": {},
    "Lance: icu": {"base_tokenizer": "icu"},
    "Lance: icu/split": {"base_tokenizer": "icu/split"},
    "Lance: ngram, 3": {"base_tokenizer": "ngram"},
    "Lance: ngram, 1 to 2": {"base_tokenizer": "ngram", "min_ngram_length": 1, "max_ngram_length": 2},
}
OURS = "any-script"
Search = Callable[[str, int], Sequence[int]]
SCRIPTS = {  # first and last letter that words are made of, letters a word, whether spaces stand between
    "English": ("a", "z", 6, True),
    "Korean": ("가", "귀", 3, True),
    "Chinese": ("一", "佰", 2, False),
    "Thai": ("ก", "ฮ", 4, False),
}


def lance_table(folder: Path, texts: Sequence[str], options: dict[str, Any]) -> Search:
    table = pa.table({"id": range(len(texts)), "text": list(texts)})
    dataset = lance.write_dataset(table, str(folder))
    dataset.create_scalar_index("text", "INVERTED", with_position=False, **options)

    def search(query: str, k: int) -> Sequence[int]:
        words = " ".join(terms.searched(query, False).words) if "ngram" not in str(options) else query
        wanted = MatchQuery(words, "text")
        found = dataset.scanner(columns=["id", "_score"], full_text_query=wanted, limit=k).to_table()
        return list(found["id"].to_pylist())

    return search


def our_table(folder: Path, texts: Sequence[str]) -> Search:
    store = Datastore.create(folder, retriever="lexical")
    store.add([Document(str(place), text) for place, text in enumerate(texts)])

    def search(query: str, k: int) -> Sequence[int]:
        (ranked,) = store.search([query], k)
        return [int(passage.document) for passage in store.passages(ranked.ids)]

    return search


def sentences() -> dict[str, list[str]]:
    """Return spaCy's example sentences by language."""
    import spacy.lang

    found = {}
    for module in pkgutil.iter_modules(spacy.lang.__path__):
        try:
            found[module.name] = importlib.import_module(f"spacy.lang.{module.name}.examples").sentences
        except ImportError:
            continue
    # It has none of these. Sentences of our own.
    own = {
        "th": ["กดปุ่มสีเขียวเพื่อเริ่มปั๊มใหม่", "วาล์วได้รับการตรวจสอบทุกสัปดาห์", "หม้อน้ำอยู่ที่ชั้นใต้ดิน"],
        "km": ["ចុចប៊ូតុងពណ៌បៃតងដើម្បីចាប់ផ្តើមម៉ាស៊ីនបូម", "ទឹកនៅក្នុងធុងមានសីតុណ្ហភាពខ្ពស់"],
        "emoji": ["The build is green 🎉", "Who ate the cake 🍰?", "shipped 🚢 on time", "too hot ☀️ today"],
    }
    return {
        name: list(texts)
        for name, texts in (found | {k: v for k, v in own.items() if k not in found}).items()
    }


def parts(text: str) -> dict[str, str]:
    """Return what to search for in one sentence."""
    if emoji := [piece for piece in terms.pieces(text) if terms.unsearchable(piece) == ["emoji"]]:
        return {"emoji": emoji[0]}
    words = [word for word in terms.words(text) if len(word) > 2]
    dense = [word for word in words if terms.has_pieces(word) and "Korean" not in terms.unsearchable(word)]
    if dense:
        letters = regex.findall(r"\X", max(dense, key=len))
        middle = len(letters) // 2
        return {"part": "".join(letters[max(0, middle - 2) : middle + 2]), "character": letters[middle]}
    return {"part": " ".join(words[len(words) // 2 :][:2])} if words else {}


def found_by(search: Search, every: dict[str, list[str]]) -> dict[str, dict[str, list[int]]]:
    """Return by script and kind of part how many were found, of how many."""
    texts = [text for some in every.values() for text in some]
    counts: dict[str, dict[str, list[int]]] = {}
    for text in texts:
        for kind, part in parts(text).items():
            script = (terms.unsearchable(part) or ["scripts with spaces"])[0]
            first = search(part, 1)[:1]
            there = bool(first) and all(word in texts[first[0]] for word in part.split())
            count = counts.setdefault(script, {}).setdefault(kind, [0, 0])
            count[0] += there
            count[1] += 1
    return counts


def made_up(script: str, passages: int, characters: int = 500) -> list[str]:
    first, last, length, spaces = SCRIPTS[script]
    rng = np.random.default_rng(0)
    letters = [chr(code) for code in range(ord(first), ord(last) + 1)]
    vocabulary = ["".join(rng.choice(letters, length)) for _ in range(20_000)]
    share = 1 / np.arange(1, len(vocabulary) + 1)
    count = characters // (length + spaces)
    chosen = rng.choice(len(vocabulary), (passages, count), p=share / share.sum())
    return [(" " if spaces else "").join(vocabulary[place] for place in row) for row in chosen]


def seconds(act: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    made = act()
    return time.process_time() - start, made


def cost(folder: Path, make: Callable[[Path], Search], texts: Sequence[str]) -> dict[str, float]:
    build, search = seconds(lambda: make(folder))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    search(texts[0], 20)
    queries = ["".join(texts[place : place + 2])[:1000] for place in range(0, 100, 2)]
    spent, _ = seconds(lambda: [search(query, 20) for query in queries])
    return {
        "build_cpu_seconds": round(build, 2),
        "bytes_a_byte_of_text": round(size / sum(len(text.encode()) for text in texts), 2),
        "search_cpu_milliseconds": round(1000 * spent / len(queries), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("bench/words.json"))
    arguments = parser.parse_args()
    every = sentences()
    texts = [text for some in every.values() for text in some]
    made = {script: made_up(script, arguments.passages) for script in SCRIPTS}
    results: dict[str, Any] = {
        "languages": len(every),
        "sentences": len(texts),
        "passages": arguments.passages,
    }
    for name in (*LANCE, OURS):

        def make(folder: Path, texts: Sequence[str], name: str = name) -> Search:
            return our_table(folder, texts) if name == OURS else lance_table(folder, texts, LANCE[name])

        work = Path(tempfile.mkdtemp())
        found = found_by(make(work / "found", texts), every)
        costs = {
            script: cost(work / script, lambda folder, of=of, make=make: make(folder, of), of)
            for script, of in made.items()
        }
        shutil.rmtree(work)
        results[name] = {"found": found, "cost": costs}
        print(name, json.dumps(results[name], ensure_ascii=False), flush=True)
    arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
