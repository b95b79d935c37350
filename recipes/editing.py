"""Editors of single facts side by side on CounterFact: `docs/editing.md` says how they are measured.

    python recipes/editing.py run --model MODEL --edits 100 --turn 0      # all at once
    python recipes/editing.py run --model MODEL --edits 100 --turn 1      # one after another
    python recipes/editing.py run --model MODEL --edits 1000 --turn 100 --editors gated-memory,breadth-first
    python recipes/editing.py equal-kl --model MODEL --edits 100 --turn 0 --as memit
    python recipes/editing.py page --edits 100 --turn 0

`run` does one editor after another and puts the figures of each into one JSON file as soon as it is through;
started again it goes on where it stopped, within an editor too. Settings were chosen on `--part valid`, whose
subjects no other part has; what is reported is `test`. `equal-kl` finds the learning rate at which plain
fine-tuning drifts as far as another editor did, and measures it there. `page` draws all of a run's editors
together.
"""

import argparse
import json
import lzma
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uptake
from uptake.errors import BadInput, UptakeError
from uptake.evaluation.edit_making import make_edits
from uptake.evaluation.protocols.edits import ORACLE, OTHER, Edits
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.report.results import BASE, Results
from uptake.sealed import write_whole
from uptake.tasks.edit_asking import drift
from uptake.tasks.edit_forms import by_subject
from uptake.tasks.edits import Edit
from uptake.text.types import Document

PARTS = {"train": 0.7, "valid": 0.1, "test": 0.2}
UNRELATED = 16  # paragraphs of WikiText-2 of 800 to 1,200 characters: about 4,000 tokens
KL_RATES = (1e-5, 1e-2)  # between which `equal-kl` looks
KL_TRIES = 6


@dataclass(frozen=True)
class Editor:
    """A method with settings; `most` edits it can make in the time of a recipe."""

    method: str
    settings: tuple[str, ...] = ()
    most: int | None = None

    def spec(self, *more: str) -> MethodSpec:
        return method_specs([self.method], [*self.settings, *more])[self.method]


_LORA = ("trainable=lora(rank=8,alpha=16)", "optimizer=adamw(learning_rate=1e-3,weight_decay=0.0)")
_TRAINED_BEHIND_A_GATE = ("editor=breadthfirst(stay=0.0)", "k=0")
EDITORS = {
    "controls": Editor("base"),
    "finetune": Editor(
        "finetune", (*_LORA[:1], "optimizer=adamw(learning_rate=5e-4,weight_decay=0.0)", "passes=10")
    ),
    "breadth-first": Editor("breadth-first"),
    "gated-memory": Editor("gated-memory"),
    "gated-finetune": Editor("gated-editor", _TRAINED_BEHIND_A_GATE),
    "gated-both": Editor("gated-editor", (*_TRAINED_BEHIND_A_GATE, "shown=1")),
    "gated-editor": Editor("gated-editor"),
    "gated-editor-shown": Editor("gated-editor", ("shown=1",)),
    "rome": Editor("rome", most=300),
    "memit": Editor("memit", most=300),
    "alphaedit": Editor("alphaedit", most=300),
    "ultraedit": Editor("ultraedit"),
    "grace": Editor("grace", most=300),
    "wise": Editor("wise"),
}


def edits_of(folder: Path, part: str, count: int) -> tuple[Edit, ...]:
    """Return the first edits of a part of CounterFact, of all its subjects."""
    found = by_subject(uptake.read_edits(folder / "counterfact" / "counterfact-edit.json.xz"), PARTS)[part]
    if len(found) < count:
        raise BadInput(f"--edits {count}: part {part} has {len(found)}")
    return found[:count]


def unrelated_of(folder: Path) -> tuple[Document, ...]:
    """Return paragraphs of WikiText-2's validation text."""
    with lzma.open(folder / "wikitext2" / "valid.txt.xz", "rt", encoding="utf8") as file:
        lines = (line.strip() for line in file)
        some = [line for line in lines if 800 <= len(line) <= 1200]
    return tuple(Document(f"wikitext/{number}", text) for number, text in enumerate(some[:UNRELATED]))


@dataclass(frozen=True)
class Run:
    """Which edits, made how, on which model; `work` holds the journals and reports, `out` the figures."""

    part: str
    count: int
    turn: int
    work: Path
    out: Path

    @property
    def key(self) -> str:
        made = "at once" if not self.turn else f"{self.turn} at a time"
        return f"{self.count} {self.part} edits, {made}"

    def path(self, name: str, suffix: str) -> Path:
        return self.work / f"{self.part}-{self.count}-{self.turn}-{name}.{suffix}"

    def known(self) -> dict[str, Any]:
        """Return what the file of figures holds."""
        if not self.out.exists():
            return {"runs": {}, "thousand": []}
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found

    def keep(self, name: str, results: Results) -> None:
        """Put an editor's figures into the file, and what a thousand edits come to."""
        whole, found = self.known(), uptake.summary(results)
        run = whole["runs"].setdefault(self.key, {"model": found["model"], "editors": {}})
        run["base"], run["known"], run["edits"] = found["base"], found["known"], found["edits"]
        for method, figures in found["methods"].items():
            run["editors"][method] = {**figures, "settings": found["settings"].get(method, {})}
        whole["thousand"] = thousand(whole["runs"])
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.out, json.dumps(whole, indent=1).encode() + b"\n")
        uptake.write_json(results, self.path(name, "json"))


def thousand(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what editors reach after a thousand edits and more: the four figures that count together."""
    rows = []
    for key, run in runs.items():
        oracle = run["editors"].get(ORACLE, {})
        if run["edits"] < 1000:
            continue
        for method, told in run["editors"].items():
            if method not in (ORACLE, OTHER):
                rows.append(
                    {
                        "method": method,
                        "run": key,
                        "success": told["success"],
                        "tight_paraphrase": told["tight"],
                        "oracle_tight_paraphrase": oracle.get("tight"),
                        "leak": told["leak"],
                        "bits_change": told["bits_change"],
                    }
                )
    return rows


def measure(run: Run, model: Causal, inputs: uptake.Inputs, name: str, spec: MethodSpec) -> Results:
    """Return the results of one editor, going on where an interrupted call stopped."""
    protocol = Edits(turn=run.turn, tokens=8, controls=spec.method.reads is False, save_every=50)
    run.work.mkdir(parents=True, exist_ok=True)

    def tell(done: int, total: int, label: str) -> None:
        print(f"\r{name}: {done:,} of {total:,}  ", end="", file=sys.stderr, flush=True)

    results = uptake.compare(
        model,
        inputs,
        {name if spec.method.reads else BASE: spec},
        protocol=protocol,
        journal=run.path(name, "journal"),
        progress=tell,
        showcases=SHOWN,
    )
    print(file=sys.stderr)
    return results


SHOWN = 12


def run_all(run: Run, args: argparse.Namespace) -> None:
    """Do each editor that is not in the file yet, and print the table of all."""
    done = run.known()["runs"].get(run.key, {}).get("editors", {})
    names = args.editors.split(",") if args.editors else list(EDITORS)
    if unknown := [name for name in names if name not in EDITORS]:
        raise BadInput(f"--editors {unknown[0]}: use {', '.join(EDITORS)}")
    left = [name for name in names if (ORACLE if name == "controls" else name) not in done]
    if left:
        model, inputs = loaded(args, run)
        for name in left:
            editor = EDITORS[name]
            if editor.most is not None and run.count > editor.most:
                print(f"{name}: left out, more than {editor.most} edits take it too long", file=sys.stderr)
                continue
            results = measure(run, model, inputs, name, editor.spec(*args.set))
            run.keep(name, results)
            run.path(name, "journal").unlink(missing_ok=True)
    show(run)


def loaded(args: argparse.Namespace, run: Run) -> tuple[Causal, uptake.Inputs]:
    """Return the model, and the edits with the text to measure drift on."""
    folder = Path(args.shared)
    inputs = uptake.Inputs(edits=edits_of(folder, run.part, run.count), unrelated=unrelated_of(folder))
    return uptake.load(args.model, args.device, args.dtype), inputs


def show(run: Run) -> None:
    """Print a line an editor."""
    editors = run.known()["runs"].get(run.key, {}).get("editors", {})
    columns = (
        "success",
        "tight",
        "loose",
        "forced",
        "same",
        "leak",
        "ripple",
        "kl",
        "bits_change",
        "edit_seconds",
    )
    print(run.key)
    print(f"{'':16}" + "".join(f"{column:>13}" for column in columns))
    for name, told in editors.items():
        cells = ("" if told[column] is None else f"{told[column]:.3f}" for column in columns)
        print(f"{name:16}" + "".join(f"{cell:>13}" for cell in cells))


def equal_kl(run: Run, args: argparse.Namespace) -> None:
    """Measure plain fine-tuning at the learning rate at which it drifts as far as another editor."""
    editors = run.known()["runs"].get(run.key, {}).get("editors", {})
    if args.like not in editors:
        raise BadInput(f"--as {args.like}: run that editor first")
    wanted = editors[args.like]["kl"]
    model, inputs = loaded(args, run)
    low, high = KL_RATES
    best = (float("inf"), low)
    for _ in range(KL_TRIES):  # drift grows with the rate: halve the interval in logarithms
        rate = (low * high) ** 0.5
        found = kl_at(model, inputs, run, rate)
        print(f"learning rate {rate:.2e}: KL {found:.4f}, wanted {wanted:.4f}", file=sys.stderr)
        best = min(best, (abs(found - wanted), rate))
        low, high = (rate, high) if found < wanted else (low, rate)
    name = f"finetune at the KL of {args.like}"
    spec = EDITORS["finetune"].spec(f"optimizer.learning_rate={best[1]}")
    run.keep(name, measure(run, model, inputs, name, spec))
    show(run)


def kl_at(model: Causal, inputs: uptake.Inputs, run: Run, rate: float) -> float:
    """Return how far fine-tuning at this rate drifts on the unrelated text, in nats a token."""
    method = EDITORS["finetune"].spec(f"optimizer.learning_rate={rate}").method
    state: Any = method.init(model)
    size = run.turn or run.count
    for start in range(0, run.count, size):
        state, failed = make_edits(method, state, model, inputs.edits[start : start + size], Context())
        if failed:
            return float("inf")
    adapted = method.adapted([state], model)
    values = [value for text in inputs.unrelated for value in drift(model, adapted, text.text).kl]
    return sum(values) / len(values)


def page(run: Run) -> None:
    """Write one page of all editors of a run, from their reports."""
    reports = [uptake.read_json(path) for path in sorted(run.work.glob(f"{run.path('*', 'json').name}"))]
    if not reports:
        raise BadInput(f"{run.key}: no report in {run.work}; run it first")
    rows = dict.fromkeys(row for results in reports for row in results.rows)
    settings = {name: own for results in reports for name, own in results.header.settings.items()}
    first = reports[0]
    whole = replace(first, header=replace(first.header, settings=settings), rows=tuple(rows))
    path = run.path("all", "html")
    uptake.write_page(whole, path)
    print(path)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, usage = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("command", choices=("run", "equal-kl", "page", "show"))
    made.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    made.add_argument("--edits", type=int, default=100)
    made.add_argument("--turn", type=int, default=0)
    made.add_argument("--part", choices=tuple(PARTS), default="test")
    made.add_argument("--editors", default="")
    made.add_argument("--set", action="append", default=[])
    made.add_argument("--as", dest="like", default="memit")
    made.add_argument("--shared", default=os.environ.get("UPTAKE_SHARED", "../shared") + "/data")
    made.add_argument("--work", type=Path, default=Path("build/editing"))
    made.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32")
    return made.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    run = Run(args.part, args.edits, args.turn, args.work, args.out)
    try:
        if args.command == "run":
            run_all(run, args)
        elif args.command == "equal-kl":
            equal_kl(run, args)
        elif args.command == "page":
            page(run)
        else:
            show(run)
    except UptakeError as error:
        sys.exit(f"editing: {error}")


if __name__ == "__main__":
    main()
