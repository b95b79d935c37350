"""Editors of single facts side by side on CounterFact: `docs/editing.md` says how they are measured.

    python recipes/editing.py tune --model MODEL --edits 10 --unrelated 4 --editors grace,wise   # on valid
    python recipes/editing.py run --model MODEL --edits 100 --turn 0      # all at once
    python recipes/editing.py run --model MODEL --edits 100 --turn 1      # one after another
    python recipes/editing.py run --model MODEL --edits 1000 --turn 100 --editors gated-memory,breadth-first
    python recipes/editing.py equal-kl --model MODEL --edits 100 --turn 0 --as memit
    python recipes/editing.py oracle --model MODEL --edits 1000 --turn 0
    python recipes/editing.py graph --model MODEL --edits 12 --editors finetune,gated-editor-shown
    python recipes/editing.py page --edits 100 --turn 0

`tune` looks for settings on the part `valid`, whose subjects no other part has; `run` takes those that were
chosen and measures them on `test`. `run` does one editor after another and puts the figures of each into one
JSON file as soon as it is through; started again it goes on where it stopped, within an editor too, and
several may write into one file. `equal-kl` finds the learning rate at which plain fine-tuning drifts as far
as another editor did, and measures it there. `oracle` asks the right edit in context for the edits and their
rephrases alone, a quarter of what `controls` costs. `graph` makes each of a few edits by itself and draws
which of the other answers it changes. `page` draws all of a run's editors together.

On a GPU give `--device cuda --batch 512 --together 64`: prompts and searches share passes then.
"""

import argparse
import fcntl
import json
import lzma
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import editing_search
from editing_figures import refuse_unasked, table, thousand

import uptake
from uptake.errors import BadInput, UptakeError
from uptake.evaluation.edit_making import make_edits
from uptake.evaluation.protocols.beliefs import Beliefs
from uptake.evaluation.protocols.edits import ORACLE, OTHER, Edits
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.report.results import BASE, Results
from uptake.sealed import write_whole
from uptake.tasks.edit_asking import drift
from uptake.tasks.edit_forms import by_subject
from uptake.tasks.edit_marks import Asking
from uptake.tasks.edits import Edit
from uptake.text.types import Document

PARTS = {"train": 0.7, "valid": 0.1, "test": 0.2}
UNRELATED = 16  # paragraphs of WikiText-2 of 800 to 1,200 characters: about 4,000 tokens
KL_RATE, KL_TRIES = 2e-4, 3  # where `equal-kl` begins, and how often it looks
LEAST_KL = 1e-6
SHOWN = 12


@dataclass(frozen=True)
class Editor:
    """A method with settings; `most` edits it can make in the time of a recipe, on a CPU.

    `together` is its setting for how many edits share a pass, "" where it has none.
    """

    method: str
    settings: tuple[str, ...] = ()
    most: int | None = None
    together: str = ""

    def spec(self, more: Sequence[str] = (), together: int = 1) -> MethodSpec:
        some = [f"{self.together}={together}"] if self.together and together > 1 else []
        return method_specs([self.method], [*self.settings, *more, *some])[self.method]


_TRAINED_BEHIND_A_GATE = ("editor=breadthfirst(stay=0.0)", "k=0")
_ADAM = "optimizer=adamw(learning_rate=5e-4,weight_decay=0.0)"
EDITORS = {
    "controls": Editor("base"),
    "finetune": Editor("finetune", ("trainable=lora(rank=8,alpha=16)", _ADAM, "passes=5")),
    "breadth-first": Editor("breadth-first"),
    "gated-memory": Editor("gated-memory"),
    # With --set scope.weights=FILE, of `learned_editors.py serac`.
    "gated-memory-trained": Editor("gated-memory", ("scope=trained(weights=untrained)",)),
    "gated-finetune": Editor("gated-editor", (*_TRAINED_BEHIND_A_GATE, "shown=0")),
    "gated-both": Editor("gated-editor", _TRAINED_BEHIND_A_GATE),
    "gated-editor": Editor("gated-editor", ("shown=0",), together="editor.values.together"),
    "gated-editor-shown": Editor("gated-editor", together="editor.values.together"),
    "rome": Editor("rome", most=300, together="values.together"),
    "memit": Editor("memit", most=300, together="values.together"),
    "alphaedit": Editor("alphaedit", most=300, together="values.together"),
    "ultraedit": Editor("ultraedit", together="together"),
    "grace": Editor("grace", most=300, together="values.together"),
    "wise": Editor("wise"),
}


def edits_of(folder: Path, part: str, count: int) -> tuple[Edit, ...]:
    """Return the first edits of a part of CounterFact, of all its subjects."""
    found = by_subject(uptake.read_edits(folder / "counterfact" / "counterfact-edit.json.xz"), PARTS)[part]
    if len(found) < count:
        raise BadInput(f"--edits {count}: part {part} has {len(found)}")
    return found[:count]


def unrelated_of(folder: Path, count: int = 0) -> tuple[Document, ...]:
    """Return so many paragraphs of WikiText-2's validation text, or `UNRELATED`."""
    with lzma.open(folder / "wikitext2" / "valid.txt.xz", "rt", encoding="utf8") as file:
        lines = (line.strip() for line in file)
        some = [line for line in lines if 800 <= len(line) <= 1200]
    return tuple(
        Document(f"wikitext/{number}", text) for number, text in enumerate(some[: count or UNRELATED])
    )


@dataclass(frozen=True)
class Run:
    """Which edits, made how, on which model; `work` holds the journals and reports, `out` the figures.

    `batch` prompts are asked side by side, and `together` edits made so where an editor can. A `brief` run
    asks what an editor is chosen by, and nothing besides.
    """

    part: str
    count: int
    turn: int
    work: Path
    out: Path
    batch: int = 64
    together: int = 1
    brief: bool = False

    @property
    def key(self) -> str:
        made = "at once" if not self.turn else f"{self.turn} at a time"
        return f"{self.count} {self.part} edits, {made}{', brief' if self.brief else ''}"

    def path(self, name: str, suffix: str) -> Path:
        return self.work / f"{self.part}-{self.count}-{self.turn}-{name}.{suffix}"

    def known(self) -> dict[str, Any]:
        """Return what the file of figures holds."""
        empty = {"runs": {}, "thousand": [], "tuned": {}}
        if not self.out.exists():
            return empty
        found: dict[str, Any] = json.loads(self.out.read_text())
        return {**empty, **found}

    def tuned(self, name: str) -> list[str]:
        """Return the settings that were chosen for an editor on the valid part."""
        chosen: list[str] = self.known()["tuned"].get(name, {}).get("chosen", [])
        return chosen

    @contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """Yield the figures, and write them back changed; several processes may at once."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with (self.work / "figures.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            whole = self.known()
            yield whole
            write_whole(self.out, json.dumps(whole, indent=1).encode() + b"\n")

    def keep(self, name: str, results: Results) -> None:
        """Put an editor's figures into the file, and what a thousand edits come to.

        Raises BadInput where prompts could not be asked: they count at the base's answers, which would
        stand in the file as the editor's.
        """
        refuse_unasked(name, results)
        found = uptake.summary(results)
        with self.changing() as whole:
            run = whole["runs"].setdefault(self.key, {"model": found["model"], "editors": {}})
            run["base"], run["known"], run["edits"] = found["base"], found["known"], found["edits"]
            for method, figures in found["methods"].items():
                run["editors"][method] = {**figures, "settings": found["settings"].get(method, {})}
            whole["thousand"] = thousand(whole["runs"])
        uptake.write_json(results, self.path(name, "json"))


@dataclass(frozen=True)
class Brief(Edits):
    """The edits themselves, their rephrases and their neighbours are asked alone: half of the cost."""

    def asked(self, *of: Any, **how: Any) -> list[Asking]:
        kinds = ("edit", "rephrase", "neighbour")
        return [one for one in super().asked(*of, **how) if one.kind in kinds]


@dataclass(frozen=True)
class Rephrased(Edits):
    """The edits and their rephrases are asked alone, of the base and of the right edit in context."""

    def units(self, plan: Any, inputs: uptake.Inputs) -> list[Any]:
        return [unit for unit in super().units(plan, inputs) if unit.id != OTHER]

    def asked(self, *of: Any, **how: Any) -> list[Asking]:
        return [one for one in super().asked(*of, **how) if one.kind in ("edit", "rephrase")]


def measure(
    run: Run,
    model: Causal,
    inputs: uptake.Inputs,
    name: str,
    spec: MethodSpec,
    protocol: type[Edits] | None = None,
) -> Results:
    """Return the results of one editor, going on where an interrupted call stopped."""
    asking = (protocol or (Brief if run.brief else Edits))(
        turn=run.turn,
        tokens=8,
        controls=spec.method.reads is False,
        save_every=max(50, run.batch // 4),
        prompts_side_by_side=run.batch,
    )
    run.work.mkdir(parents=True, exist_ok=True)

    def tell(done: int, total: int, label: str) -> None:
        print(f"\r{name}: {done:,} of {total:,}  ", end="", file=sys.stderr, flush=True)

    results = uptake.compare(
        model,
        inputs,
        {name if spec.method.reads else BASE: spec},
        protocol=asking,
        journal=run.path(name, "journal"),
        progress=tell,
        showcases=SHOWN,
    )
    print(file=sys.stderr)
    run.path(name, "journal").unlink(missing_ok=True)
    return results


def chosen_editors(args: argparse.Namespace, among: Sequence[str]) -> list[str]:
    """Return the editors that were asked for, or all. Raises BadInput for an unknown one."""
    names = args.editors.split(",") if args.editors else list(among)
    if unknown := [name for name in names if name not in among]:
        raise BadInput(f"--editors {unknown[0]}: use {', '.join(among)}")
    return names


def run_all(run: Run, args: argparse.Namespace) -> None:
    """Do each editor that is not in the file yet, and print the table of all."""
    done = run.known()["runs"].get(run.key, {}).get("editors", {})
    names = chosen_editors(args, list(EDITORS))
    left = [name for name in names if (ORACLE if name == "controls" else name) not in done]
    if left:
        model, inputs = loaded(args, run)
        for name in left:
            editor = EDITORS[name]
            if editor.most is not None and run.count > editor.most and run.together == 1:
                print(f"{name}: left out, more than {editor.most} edits take it too long", file=sys.stderr)
                continue
            spec = editor.spec([*run.tuned(name), *args.set], run.together)
            run.keep(name, measure(run, model, inputs, name, spec))
    show(run)


def tune(run: Run, args: argparse.Namespace) -> None:
    """Look for each editor's settings, one setting after another, and put them into the file."""
    model, inputs = loaded(args, run)
    with editing_search.values_kept():
        for name in chosen_editors(args, list(editing_search.SEARCH)):
            tried: list[dict[str, Any]] = run.known()["tuned"].get(name, {}).get("tried", [])

            def try_out(settings: list[str], name: str = name, tried: list[dict[str, Any]] = tried) -> float:
                for each in tried:
                    if each["settings"] == settings:
                        return editing_search.score(each)
                spec = EDITORS[name].spec(settings, run.together)
                found = measure(run, model, inputs, name, spec)
                refuse_unasked(name, found)
                (figures,) = uptake.summary(found)["methods"].values()
                told = {column: figures[column] for column in editing_search.COLUMNS}
                score = editing_search.score(told)
                tried.append({"settings": settings, "score": score, **told})
                print(name, json.dumps(tried[-1]), file=sys.stderr)
                with run.changing() as whole:
                    best = max(tried, key=editing_search.score)
                    whole["tuned"][name] = {"edits": run.key, "chosen": best["settings"], "tried": tried}
                return score

            print(name, *editing_search.best(editing_search.SEARCH[name], try_out))


def loaded(args: argparse.Namespace, run: Run) -> tuple[Causal, uptake.Inputs]:
    """Return the model, and the edits with the text to measure drift on."""
    folder = Path(args.shared)
    inputs = uptake.Inputs(
        edits=edits_of(folder, run.part, run.count), unrelated=unrelated_of(folder, args.unrelated)
    )
    return uptake.load(args.model, args.device, args.dtype), inputs


def show(run: Run) -> None:
    """Print a line an editor."""
    print(run.key)
    print("\n".join(table(run.known()["runs"].get(run.key, {}).get("editors", {}))))


def equal_kl(run: Run, args: argparse.Namespace) -> None:
    """Measure plain fine-tuning at the learning rate at which it drifts as far as another editor."""
    editors = run.known()["runs"].get(run.key, {}).get("editors", {})
    if args.like not in editors:
        raise BadInput(f"--as {args.like}: run that editor first")
    wanted = math.log(max(editors[args.like]["kl"], LEAST_KL))
    model, inputs = loaded(args, run)
    known: list[tuple[float, float]] = []  # logarithms of rate and KL, nearly on a line
    rate = math.log(KL_RATE)
    for _ in range(KL_TRIES):
        found = math.log(max(kl_at(model, inputs, run, math.exp(rate)), LEAST_KL))
        known.append((rate, found))
        print(f"learning rate {math.exp(rate):.2e}: KL {math.exp(found):.4f}", file=sys.stderr)
        rate += (wanted - found) / slope(known)
    best, _ = min(known, key=lambda pair: abs(pair[1] - wanted))
    name = f"finetune at the KL of {args.like}"
    spec = EDITORS["finetune"].spec([f"optimizer.learning_rate={math.exp(best)}"])
    run.keep(name, measure(run, model, inputs, name, spec))
    show(run)


def oracle(run: Run, args: argparse.Namespace) -> None:
    """Put what the right edit in context says of the edits and their rephrases into the file."""
    if ORACLE not in run.known()["runs"].get(run.key, {}).get("editors", {}):
        model, inputs = loaded(args, run)
        found = measure(run, model, inputs, "oracle", EDITORS["controls"].spec(), Rephrased)
        refuse_unasked("oracle", found)
        told = uptake.summary(found)
        with run.changing() as whole:
            kept = whole["runs"].setdefault(run.key, {"model": told["model"], "editors": {}})
            kept["editors"][ORACLE] = {**told["methods"][ORACLE], "settings": {}}
            kept["edits"] = told["edits"]
            whole["thousand"] = thousand(whole["runs"])
    show(run)


def slope(known: Sequence[tuple[float, float]]) -> float:
    """Return how the logarithm of KL grows with that of the rate, by the last two points; 2 to begin with."""
    if len(known) < 2 or known[-1][0] == known[-2][0]:
        return 2.0
    found = (known[-1][1] - known[-2][1]) / (known[-1][0] - known[-2][0])
    return min(max(found, 0.5), 8.0)


def kl_at(model: Causal, inputs: uptake.Inputs, run: Run, rate: float) -> float:
    """Return how far fine-tuning at this rate drifts on the unrelated text, in nats a token."""
    method = EDITORS["finetune"].spec([f"optimizer.learning_rate={rate}"]).method
    state: Any = method.init(model)
    size = run.turn or run.count
    for start in range(0, run.count, size):
        state, failed = make_edits(method, state, model, inputs.edits[start : start + size], Context())
        if failed:
            raise BadInput(f"{failed[0][1]}: fine-tuning at {rate:.1e} fails")
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


def graph(run: Run, args: argparse.Namespace) -> None:
    """Put each editor's belief graph into the file, and draw them all on one page."""
    model, inputs = loaded(args, run)
    names = chosen_editors(args, [name for name in EDITORS if name != "controls"])
    specs = {name: EDITORS[name].spec([*run.tuned(name), *args.set]) for name in names}
    results = uptake.compare(model, inputs, specs, protocol=Beliefs(tokens=8, prompts_side_by_side=run.batch))
    with run.changing() as whole:
        kept = whole.setdefault("graphs", {}).setdefault(f"{run.count} {run.part} edits", {})
        kept |= uptake.summary(results)["methods"]
    uptake.write_page(results, run.path("graph", "html"))
    print(run.path("graph", "html"))


COMMANDS = {"run": run_all, "tune": tune, "equal-kl": equal_kl, "oracle": oracle, "graph": graph}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, usage = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("command", choices=(*COMMANDS, "page", "show"))
    made.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    made.add_argument("--edits", type=int, default=100)
    made.add_argument("--turn", type=int, default=0)
    made.add_argument("--unrelated", type=int, default=0, help=f"paragraphs of other text, else {UNRELATED}")
    made.add_argument("--part", choices=tuple(PARTS), default="", help="valid for tune, else test")
    made.add_argument("--editors", default="")
    made.add_argument("--set", action="append", default=[])
    made.add_argument("--as", dest="like", default="memit")
    made.add_argument("--shared", default=os.environ.get("UPTAKE_SHARED", "../shared") + "/data")
    made.add_argument("--work", type=Path, default=Path("build/editing"))
    made.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--brief", action="store_true", help="ask edits, rephrases and neighbours alone")
    made.add_argument("--batch", type=int, default=64, help="prompts asked side by side")
    made.add_argument("--together", type=int, default=1, help="edits made in the same passes")
    return made.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    part = args.part or ("valid" if args.command == "tune" else "test")
    brief = args.brief or args.command == "tune"
    run = Run(part, args.edits, args.turn, args.work, args.out, args.batch, args.together, brief)
    try:
        if args.command == "tune" and part == "test":
            raise BadInput("--part test: settings are chosen on valid or train")
        if args.command in COMMANDS:
            COMMANDS[args.command](run, args)
        elif args.command == "page":
            page(run)
        else:
            show(run)
    except UptakeError as error:
        sys.exit(f"editing: {error}")


if __name__ == "__main__":
    main()
