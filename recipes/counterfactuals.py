"""Counterfactual facts: do they teach a model to read, and a scope or a retriever to tell things apart?

    python recipes/counterfactuals.py make --fresh build/fresh --work build/counterfactuals
    python recipes/counterfactuals.py read --model MODEL --fresh build/fresh --squad dev-v1.1.json.xz
    python recipes/counterfactuals.py stream --model MODEL
    python recipes/counterfactuals.py scope --model MODEL --shared DATA
    python recipes/counterfactuals.py retriever --encoder MINILM --fresh build/fresh
    python recipes/counterfactuals.py show

`make` writes the facts and their counterfactuals as files of questions and documents. `read` trains the
model (LoRA) on facts of some packages with their passages, one step a question, as a stream does: each fact
twice (`duplicates`), each once and once changed (`counterfactual`), or twice as many facts (`more`). All
take equal steps. It is asked, after the passage, about other packages, about these when the passage is
changed, about changed passages of facts that it has learnt, and about SQuAD. `stream` learns documents of a
made-up world online, with and without counterfactual ones among them. `scope` trains SERAC's scope
with near misses of its edits' subjects beside their neighbours, `retriever` a query encoder with changed
passages beside the found ones. Each part writes its own key of --out, keeps answers in --work, and goes on
where it was interrupted.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from counterfactual_figures import reading_figures, shown
from counterfactual_parts import retriever, scope
from counterfactual_streams import stream

import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import LoRA
from uptake.errors import UptakeError
from uptake.evaluation.records import RecordFile
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.state import load_state, save_state
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.retrievers.reader import Prompt
from uptake.sealed import write_whole
from uptake.tasks import answers
from uptake.tasks.asking import speak
from uptake.tasks.counterfactuals import Counterfactual, counterfactuals
from uptake.tasks.questions import Question, read_questions
from uptake.text.files import Skipped
from uptake.text.types import Document, Found, Passage, stable_hash

PARTS = ("train", "valid", "test")
PROMPT = Prompt(characters=800)
ARMS = ("base", "duplicates", "counterfactual", "more")
TOKENS = 16  # of an answer, at most
OTHER_SEED = 1  # of the changed passages that are asked about, where those of 0 are learnt


@dataclass(frozen=True)
class Facts:
    """Questions with the text of each one's passage, and the counterfactuals of all under one seed."""

    questions: tuple[Question, ...]
    texts: dict[str, str]
    changed: dict[str, Counterfactual]  # by the id of the true question


def facts_of(fresh: Path, seed: int, skipped: Skipped | None = None) -> Facts:
    """Return the facts of all parts together: what is true of one must not be made up for another."""
    questions: list[Question] = []
    documents: list[Document] = []
    for part in PARTS:
        questions += read_questions(fresh / "facts" / part / "questions.jsonl").questions
        documents += uptake.read(fresh / "facts" / part / "passages.jsonl")
    made = counterfactuals(questions, documents, seed, skipped)
    return Facts(tuple(questions), {d.id: d.text for d in documents}, {one.true.id: one for one in made})


def is_other(package: str) -> bool:
    """Whether nothing of a package is trained on: of about half of them, by a hash."""
    return stable_hash("other package", package) % 2 == 0


def drawn(facts: Facts, other: bool, longest: int) -> list[Question]:
    """Return facts with a counterfactual and a short passage, of other packages or not, in a hash's order."""
    some = [
        one
        for one in facts.questions
        if one.id in facts.changed
        and is_other(one.meta["package"]) is other
        and len(facts.texts[one.document]) <= longest
    ]
    return sorted(some, key=lambda one: stable_hash("drawn", one.id))


@dataclass(frozen=True)
class Read:
    """A question, the passage it is asked after, and the answer that is right only elsewhere, if any."""

    question: Question
    passage: str
    before: tuple[str, ...] = ()
    group: str = ""

    @property
    def prompt(self) -> str:
        return PROMPT.of(self.question.text, self.passage)


def plain(facts: Facts, some: Iterable[Question]) -> list[Read]:
    return [Read(one, facts.texts[one.document], (), one.meta["package"]) for one in some]


def changed(facts: Facts, some: Iterable[Question]) -> list[Read]:
    """Return questions after their changed passages."""
    made = [facts.changed[one.id] for one in some if one.id in facts.changed]
    return [Read(one.question, one.document.text, one.true.answers, one.true.meta["package"]) for one in made]


def squad(path: Path, count: int, longest: int) -> list[Read]:
    """Return questions on short paragraphs, one of each."""
    held = read_questions(path)
    texts = {document.id: document for document in held.documents if len(document.text) <= longest}
    found: dict[str, Read] = {}
    for one in sorted(held.questions, key=lambda one: stable_hash("drawn", one.id)):
        if one.document in texts and one.document not in found and len(found) < count:
            found[one.document] = Read(one, texts[one.document].text, (), one.document)
    return list(found.values())


def lessons(arm: str, facts: Facts, train: Sequence[Question], count: int) -> list[Passage]:
    """Return what an arm learns, twice `count` passages whose prompts hold the passage and the question."""
    some = train[:count]
    second = {
        "duplicates": plain(facts, some),
        "counterfactual": changed(facts, some),
        "more": plain(facts, train[count : 2 * count]),
    }[arm]
    both = [(read, turn) for turn, part in enumerate((plain(facts, some), second)) for read in part]
    # Both halves in the same order of their facts, mixed, so that arms differ in nothing else.
    places = sorted(range(len(both)), key=lambda at: stable_hash("turn", str(at)))
    return [
        Passage(stable_hash(arm, str(at)), f" {both[at][0].question.answers[0]}\n", both[at][0].prompt)
        for at in places
    ]


def read(given: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> None:
    """Train each arm, ask it about each set, and tell the figures."""
    model = uptake.load(given.model)
    assert isinstance(model, Causal)
    skipped = Skipped()
    facts, others = facts_of(given.fresh, 0, skipped), facts_of(given.fresh, OTHER_SEED)
    train = drawn(facts, False, given.longest)
    test = drawn(facts, True, given.longest)[: given.asked]
    asked = {
        "other packages": plain(facts, test),
        "other packages, changed": changed(others, test),
        "learnt facts, changed": changed(others, train[: given.facts]),
        "SQuAD": squad(given.squad, given.squad_asked, given.longest),
    }
    told: dict[str, Any] = {
        "model": Path(model.name).name,
        "sizes": {name: len(some) for name, some in asked.items()} | {"facts": given.facts},
        "counterfactuals": {"made": len(facts.changed), "of": len(facts.questions)} | skipped.counts,
        "learning_rate": given.rate,
        "packages": {
            "learnt": sorted({one.meta["package"] for one in train[: given.facts]}),
            "other": sorted({one.meta["package"] for one in test}),
        },
        "training": {},
    }
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for arm in given.arms:
        lm, training = taught(arm, model, facts, train, given)
        told["training"][arm] = training
        for name, some in asked.items():
            begun = time.process_time()
            rows.setdefault(name, {})[arm] = answered(lm, arm, name, some, given)
            print(f"{arm}: {name}, {time.process_time() - begun:.0f} CPU s", flush=True)
        # What is known so far is written down: a run that is stopped has told something.
        keep({**told, "figures": reading_figures(rows)})


def taught(
    arm: str, model: Causal, facts: Facts, train: Sequence[Question], given: argparse.Namespace
) -> tuple[Any, dict[str, Any]]:
    """Return the model after an arm's training, which is kept, and what that took."""
    if arm == "base":
        return model, {}
    method = Finetune(trainable=LoRA(), optimizer=AdamW(learning_rate=given.rate))
    path = given.work / f"{arm}-{given.facts}.state"
    notes = path.with_suffix(".json")
    if not (path.exists() and notes.exists()):
        passages = tuple(lessons(arm, facts, train, given.facts))
        context, begun = Context(given.seed), time.process_time()
        evidence = Evidence(Found(passages, (0.0,) * len(passages)))
        (state,) = method.adapt([method.init(model)], model, [evidence], context)
        ledger = context.ledger(0)
        if ledger.failed:
            raise UptakeError(f"{arm}: {ledger.failed}; use a smaller --rate")
        save_state(state, path)
        seconds = round(time.process_time() - begun, 1)
        found = {"steps": ledger.steps, "tokens": ledger.tokens_trained, "cpu_seconds": seconds}
        found["tokens_read"] = sum(len(model.tokenizer.encode(one.prompt + one.text)[0]) for one in passages)
        write_whole(notes, json.dumps(found).encode())
        print(f"{arm}: trained, {found}", flush=True)
    state = load_state(WeightState, path, model)
    return method.adapted([state], model), json.loads(notes.read_text())


def answered(
    lm: Any, arm: str, name: str, some: Sequence[Read], given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return what is said to each question, with its marks; kept by the arm and the prompt."""
    file = RecordFile(given.work / f"{arm}-{given.facts}-{name}.answers".replace(" ", "_"), lm.fingerprint)
    known = {key: row for made in file.start(dict) for key, row in made.items()}
    keys = [f"{stable_hash(one.prompt, *one.question.answers):016x}" for one in some]
    for start in range(0, len(some), given.rows):
        todo = [at for at in range(start, min(start + given.rows, len(some))) if keys[at] not in known]
        spoken = speak(
            lm, [some[at].prompt for at in todo], TOKENS, given.rows, [0] * len(todo) if lm.rows else None
        )
        made = {keys[at]: marked(some[at], said) for at, said in zip(todo, spoken, strict=True)}
        if made:
            file.keep(made)
        known |= made
    return [known[key] for key in keys]


def marked(one: Read, said: Any) -> dict[str, Any]:
    """Return an answer as a row: its words, how sure they were, and its marks."""
    right = one.question.answers
    return {
        **asdict(said),
        "exact": answers.exact(said.text, right),
        "contains": float(answers.holds(said.text, right)),
        "true": answers.exact(said.text, one.before) if one.before else 0.0,
        "group": one.group,
    }


def make(given: argparse.Namespace) -> None:
    """Write each part's counterfactuals as files that `uptake stream` reads; say what is left out."""
    skipped = Skipped()
    facts = facts_of(given.fresh, given.seed, skipped)
    for part in PARTS:
        of_part = read_questions(given.fresh / "facts" / part / "questions.jsonl").questions
        made = [facts.changed[one.id] for one in of_part if one.id in facts.changed]
        asked = [
            {
                **one.question.meta,
                "id": one.question.id,
                "question": one.question.text,
                "answers": one.question.answers,
                "document": one.document.id,
                "true": one.old,
            }
            for one in made
        ]
        texts = [
            {"id": one.document.id, "text": one.document.text, "group": one.document.group} for one in made
        ]
        folder = given.work / part
        folder.mkdir(parents=True, exist_ok=True)
        for name, records in (("questions", asked), ("passages", texts)):
            lines = "".join(json.dumps(one) + "\n" for one in records)
            write_whole(folder / f"{name}.jsonl", lines.encode())
        print(f"{folder}: {len(made)} of {len(of_part)}")
    print(f"left out: {skipped.counts}")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("make", "read", "stream", "scope", "retriever", "show"))
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--fresh", type=Path, default=Path("build/fresh"))
    parser.add_argument("--squad", type=Path)
    parser.add_argument("--encoder", default="", help="MiniLM's folder")
    parser.add_argument("--shared", default=os.environ.get("UPTAKE_SHARED", "../shared") + "/data")
    parser.add_argument("--work", type=Path, default=Path("build/counterfactuals"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--facts", type=int, default=64, help="learnt in pairs: twice as many steps")
    parser.add_argument("--asked", type=int, default=96, help="questions on other packages")
    parser.add_argument("--squad-asked", type=int, default=64)
    parser.add_argument("--longest", type=int, default=500, help="characters of a passage")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--rows", type=int, default=16, help="questions side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=48, help="of a stream, whose questions are asked")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of streams")
    parser.add_argument("--passages", type=int, default=1 << 40, help="of a retriever's store, for a trial")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parsed(arguments)
    part = given.part  # a part may go by another name among those whose code it calls

    def keep(found: dict[str, Any]) -> None:
        known = json.loads(given.out.read_text()) if given.out.exists() else {}
        write_whole(given.out, json.dumps({**known, part: found}, indent=1).encode() + b"\n")

    try:
        given.work.mkdir(parents=True, exist_ok=True)
        if part == "make":
            make(given)
            return
        if part != "show":
            {"read": read, "stream": stream, "scope": scope, "retriever": retriever}[part](given, keep)
        print(*shown(json.loads(given.out.read_text())), sep="\n")
    except UptakeError as error:
        sys.exit(f"counterfactuals: {error}")


if __name__ == "__main__":
    main()
