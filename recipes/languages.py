"""What adapting gains in each language: the documentation of FastAPI in twelve, base, in context and TTT-NN.

The pages are translations of each other, cleaned of code, tags and marks; a page that is scored is in the
store in no language. Methods read passages of the store, nearly always of the query's language. The pages'
licence is MIT; `build` takes a folder with `LANGUAGE/docs` for each, as the `docs` of a clone of
https://github.com/fastapi/fastapi is.

    python recipes/languages.py build --docs fastapi/docs
    python recipes/languages.py score --model MODEL --json build/languages.json   # goes on where it stopped
    python recipes/languages.py table --report build/languages.json --json recipes/languages.json
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import uptake
from uptake.adaptation.trainable.places import blocks
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.report.summary import read_data, write_json
from uptake.store import Datastore
from uptake.text.types import Chunking, stable_hash

LANGUAGES = {
    "de": "German", "en": "English", "es": "Spanish", "fr": "French", "ja": "Japanese", "ko": "Korean",
    "pt": "Portuguese", "ru": "Russian", "tr": "Turkish", "uk": "Ukrainian", "zh": "Chinese",
    "zh-hant": "Chinese, traditional",
}  # fmt: skip
LEAST = 1000  # characters of a page that may be scored
PROTOCOL = PerQuery(prefix=256, suffix=256)
# Rates of fresh_methods.py, `make serve-demo` and docs/trainable.md: none was chosen on this text.
KINDS = {
    "top 4": "trainable=top(layers={layers});optimizer=adamw(learning_rate=3e-4)",
    "lora": "trainable=lora(rank=16);optimizer=adamw(learning_rate=3e-4)",
    "ia3": "trainable=ia3;optimizer=adamw(learning_rate=3e-2)",
}


def prose(page: str) -> str:
    """Return a page of Markdown without code, tags, inclusions, anchors and addresses."""
    page = re.sub(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", "", page, flags=re.M | re.S)
    page = re.sub(r"<!--.*?-->|<style.*?</style>|</?[a-zA-Z][^>]*>", "", page, flags=re.S)
    page = re.sub(r"^(///.*|\{\*.*\*\}|---.*|!\[.*|\* \[.*)$", "", page, flags=re.M)
    page = re.sub(r"\{ *#[^}]*\}", "", page)
    page = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", page)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", page, flags=re.M)).strip()


def pages(docs: Path, languages: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return page -> language -> prose of the pages that every language has and none left in English."""
    found: dict[str, dict[str, str]] = {}
    for code in languages:
        folder = docs / code / "docs"
        for path in sorted(folder.rglob("*.md")):
            found.setdefault(path.relative_to(folder).as_posix(), {})[code] = prose(path.read_text("utf8"))
    return {
        name: texts
        for name, texts in found.items()
        if len(texts) == len(languages) == len(set(texts.values())) and all(texts.values())
    }


def build(args: argparse.Namespace) -> None:
    found = pages(args.docs, args.languages)
    order = sorted(found, key=lambda name: stable_hash("languages", name))
    long = [name for name in order if min(len(text) for text in found[name].values()) >= LEAST]
    parts = {"test": long[: args.pages], "store": [name for name in order if name not in long[: args.pages]]}
    if len(parts["test"]) < args.pages:
        raise SystemExit(f"{args.docs} has {len(long)} pages of {LEAST} characters in every language")
    args.data.mkdir(parents=True, exist_ok=True)
    for part, names in parts.items():
        lines = [
            {"id": f"{code}/{name}", "group": name, "language": LANGUAGES[code], "text": found[name][code]}
            for name in names
            for code in args.languages
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (args.data / f"{part}.jsonl").write_text(text, "utf8")
        print(f"{part}: {len(names)} pages in {len(args.languages)} languages, {len(text):,} characters")


def specs(layers: int) -> dict[str, MethodSpec]:
    """Return the methods by the names to show: TTT-NN once a kind of trainable parts, with its control.

    `layers` is how many blocks the model has.
    """
    made = {**method_specs(["base", "in-context"], ())}
    for title, settings in KINDS.items():
        made[f"ttt-nn, {title}"] = method_specs(
            ["ttt-nn"], settings.format(layers=min(4, layers)).split(";")
        )["ttt-nn"]
    made["random"] = method_specs(["random"], KINDS["lora"].split(";"))["random"]
    return made


def score(args: argparse.Namespace) -> None:
    model = uptake.load(args.model)
    path = args.data / "lexical.store"
    if path.exists():
        store = Datastore.open(path)
    else:
        store = Datastore.create(path, retriever="lexical", chunking=Chunking(320))
        store.add(uptake.read(args.data / "store.jsonl"))
    documents = list(uptake.read(args.data / "test.jsonl"))
    results = uptake.compare(
        model,
        documents,
        specs(len(blocks(model.module)[1])),
        store=store,
        k=args.neighbours,
        protocol=PROTOCOL,
        batch=1,
        showcases=2,
        journal=Path(f"{args.json}.journal"),
        by="language",
        progress=lambda done, total, name: print(f"{done} of {total}: {name}", flush=True),
    )
    write_json(results, args.json)


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a report is kept: its groups, each method's figures, what was run."""
    kept = (
        "bits_per_byte",
        "gain",
        "gain_ci",
        "against_random",
        "queries",
        "failed",
        "cpu_seconds_per_query",
    )
    return {
        "model": report["model"]["name"],
        "protocol": report["protocol"],
        "methods": {name: {key: method[key] for key in kept} for name, method in report["methods"].items()},
        "groups": report["groups"],
    }


def table(args: argparse.Namespace) -> None:
    from uptake.report.scored.groups import group_lines, group_note

    found = figures(read_data(args.report)) if args.report else json.loads(args.json.read_text())
    if args.report:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    lines = group_lines(found["groups"])
    headings = list(lines[0])
    print("| " + " | ".join(headings) + " |\n|" + "---|" * len(headings))
    for line in lines:
        print(
            "| "
            + " | ".join(line.get(heading, "").replace("\N{NO-BREAK SPACE}", " ") for heading in headings)
            + " |"
        )
    print(f"\n{group_note(found['groups'])}")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("build", "score", "table"))
    parser.add_argument("--docs", type=Path, default=Path("fastapi/docs"))
    parser.add_argument("--data", type=Path, default=Path("build/languages"))
    parser.add_argument("--languages", nargs="*", choices=[*LANGUAGES], default=[*LANGUAGES])
    parser.add_argument("--pages", type=int, default=6, help="scored, of each language")
    parser.add_argument("--neighbours", type=int, default=3)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--json", type=Path, default=Path("recipes/languages.json"))
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    {"build": build, "score": score, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
