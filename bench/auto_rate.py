"""Does `learning_rate=auto`, chosen on the store alone, come near the rate tuned on validation text?

    python bench/auto_rate.py --model ../shared/models/base-5m --data ../shared/data/minipile

For each domain: a lexical store of training documents, the rate chosen on it, the best of a grid on
validation documents, and what both save on test documents. Prints a table, writes JSON; resumes. With --again
the rates are chosen anew, and the tuned ones of the JSON stay.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import uptake
from uptake.codec import plain
from uptake.errors import UptakeError
from uptake.evaluation.engine import evaluate
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.rates import rate_of
from uptake.lm.base import LM
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.report.metrics import gain, gain_difference
from uptake.report.scored.rows import Scored
from uptake.store import Datastore
from uptake.text.types import Document

GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
DOMAINS = ("python_peps", "court_opinions", "pmc_ccby", "stackexchange", "textbook_us_history")
K = 5


def rows_at(lm: LM, store: Datastore, documents: list[Document], method: object, rate: float) -> list[Scored]:
    """Return the rows of a method at this rate on these documents."""
    at = replace(method, optimizer=method.optimizer.at(rate))  # type: ignore[attr-defined, type-var]
    plan = Plan({"method": MethodSpec(at)}, PerQuery(), (K,))  # type: ignore[arg-type]
    outcome = evaluate(lm, plan, Inputs(tuple(documents)), store)
    return [row for row in outcome.rows if isinstance(row, Scored)]


def measure(
    lm: LM, data: Path, domain: str, work: Path, documents: int, stored: int, tuned: float | None
) -> dict[str, object]:
    """Return what the chosen and the tuned rate are, and save on test documents of one domain."""
    path = work / f"{domain}.store"
    if not path.exists():
        store = Datastore.create(path, retriever="lexical")
        store.add(list(uptake.read(data / domain / "train.jsonl.xz"))[:stored])
    store = Datastore.open(path)
    method = method_specs(["ttt-nn"])["ttt-nn"].method
    started = time.process_time()
    chosen = rate_of(lm, method, store, K)
    seconds = time.process_time() - started
    valid, test = (
        list(uptake.read(data / domain / f"{part}.jsonl.xz"))[:documents] for part in ("valid", "test")
    )
    if chosen is None:
        raise UptakeError(f"{domain}: no document of the store has neighbours to choose a rate on")
    gains = {}
    for rate in () if tuned else GRID:
        rows = rows_at(lm, store, valid, method, rate)
        gains[rate] = gain([row.bits for row in rows], [row.base_bits for row in rows])
    tuned = tuned or max(gains, key=lambda rate: gains[rate])
    auto, best = (rows_at(lm, store, test, method, rate) for rate in (chosen.rate, tuned))
    base = [row.base_bits for row in auto]
    bits = [[row.bits for row in rows] for rows in (auto, best)]
    return {
        "domain": domain,
        "chosen": chosen.rate,
        "chosen_cpu_seconds": seconds,
        "tried": plain(chosen.tried),
        "tuned": tuned,
        "gain_chosen": gain(bits[0], base),
        "gain_tuned": gain(bits[1], base),
        "difference": gain_difference(bits[0], bits[1], base, [row.document for row in auto]),
        "test_documents": len(auto),
    }


def main() -> None:
    """Measure each domain that is not in the JSON yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--domains", nargs="*", default=list(DOMAINS))
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--stored", type=int, default=150)
    parser.add_argument("--again", action="store_true", help="choose once more, and keep the tuned rates")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("build/auto_rate"))
    parser.add_argument("--json", type=Path, default=Path("bench/auto_rate.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    lm = uptake.load(options.model, options.device)
    for domain in options.domains:
        key = f"{Path(options.model).name} {domain}"
        if key not in found or options.again:
            tuned = found[key]["tuned"] if key in found else None
            sizes = options.documents, options.stored
            found[key] = measure(lm, options.data, domain, options.work, *sizes, tuned)
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(
        "| model, domain | chosen | tuned | gain chosen | gain tuned | difference [95 %] | CPU s to choose |"
    )
    print("|---|---|---|---|---|---|---|")
    for key, each in found.items():
        value, (low, high) = each["difference"]
        print(
            f"| {key} | {each['chosen']:.2g} | {each['tuned']:.2g} | {100 * each['gain_chosen']:.1f} % "
            f"| {100 * each['gain_tuned']:.1f} % | {100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}] "
            f"| {each['chosen_cpu_seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
