"""Gates before an editor that need no training: which prompts they open for, with subjects and without.

    python recipes/gates.py --model MODEL --encoder DIR [--valid 60] [--test 200] [--out recipes/gates.json]

A memory holds all edits of a part of CounterFact at once. It is asked their tight rephrases, each of which
ought to open it to its own edit, and their neighbours, the same relation of other subjects, which ought not
to. How like a prompt must be is chosen on the valid part for each share that words have beside the encoder's
vectors: the most rephrases at no more than `--leak` of the neighbours. The test part has other subjects.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from learned_editors import parts_of
from scope_figures import auc, through

import uptake
from uptake.lm.causal import Causal
from uptake.methods.gated_memory.scope import Scope, Words
from uptake.methods.gated_memory.vectors import Vectors
from uptake.tasks.edits import Edit

WORDS = (0.0, 0.25, 0.5, 0.75)  # shares that are tried
LEAST = tuple(np.round(np.arange(0.4, 1.0, 0.025), 3).tolist())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the gates, print a table and write JSON."""
    args = parsed(arguments)
    model = uptake.load(args.model)
    parts = parts_of(args.shared, 2, args.valid, args.test)
    found: dict[str, Any] = {"encoder": Path(args.encoder).name, "leak": args.leak}
    found["edits"] = {part: len(parts[part]) for part in ("valid", "test")}
    for title, given in (("subject given", True), ("no subject", False)):
        valid, test = ([_as_given(edit, given) for edit in parts[part]] for part in ("valid", "test"))
        gates: dict[str, Scope] = {"words": Words()}
        for share in WORDS:
            told = "vectors" if not share else f"vectors and words {share:g}"
            gates[told] = _chosen(Vectors(args.encoder, words=share), model, valid, args.leak)
        found[title] = {told: _measured(gate, model, valid, test) for told, gate in gates.items()}
        for told, row in found[title].items():
            at = row["test"]
            shown = ("auc", "opens_tight", "opens_loose", "opens_neighbours")
            print(f"{title}, {told}: " + ", ".join(f"{name} {_told(at.get(name))}" for name in shown))
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--encoder", required=True, help="as `uptake index --encoder` takes it")
    shared = Path(os.environ.get("UPTAKE_SHARED", "../shared"), "data")
    parser.add_argument("--shared", type=Path, default=shared)
    parser.add_argument("--valid", type=int, default=60, help="edits to choose on")
    parser.add_argument("--test", type=int, default=200, help="edits to measure on")
    parser.add_argument("--leak", type=float, default=0.02, help="of the neighbours, at most, in choosing")
    parser.add_argument("--out", type=Path, default=Path("recipes/gates.json"))
    return parser.parse_args(arguments)


def _as_given(edit: Edit, subject: bool) -> Edit:
    return edit if subject else replace(edit, subject="")


def _chosen(scope: Vectors, model: Causal, edits: Sequence[Edit], leak: float) -> Vectors:
    """Return the scope whose threshold opens for most rephrases, at no more than `leak` of the neighbours."""
    tried = []
    for least in LEAST:
        opens = through(replace(scope, least=least), model, edits)
        inside = opens["opens_tight"]["share"] if opens["opens_neighbours"]["share"] <= leak else -1.0
        tried.append((inside, least))
    return replace(scope, least=max(tried)[1])


def _measured(
    gate: Scope, model: Causal, valid: Sequence[Edit], test: Sequence[Edit]
) -> dict[str, dict[str, Any]]:
    row: dict[str, dict[str, Any]] = {
        "valid": through(gate, model, valid),
        "test": through(gate, model, test),
    }
    if isinstance(gate, Vectors):
        row["gate"] = {"words": gate.words, "least": gate.least}
        row["test"]["auc"] = _ranking(gate, model, test)
    return row


def _ranking(gate: Vectors, model: Causal, edits: Sequence[Edit]) -> float | None:
    """Return how often a rephrase is more like its edit than a neighbour of that edit is."""
    inside, outside = list[float](), list[float]()
    for edit in edits:
        memory = gate.memory([edit.passage()], model)
        inside += [float(memory.scores(prompt)[0]) for prompt in edit.rephrases]
        outside += [float(memory.scores(probe.prompt)[0]) for probe in edit.neighbours]
    return auc(inside, outside)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['share']:.3f} [{value['interval'][0]:.3f}, {value['interval'][1]:.3f}]"
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
