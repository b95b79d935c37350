"""Does `learning_rate=auto`, chosen on the store alone, come near the rate tuned on validation text?

    python bench/auto_rate.py --model ../shared/models/base-5m --data ../shared/data/minipile
    python bench/auto_rate.py --model SMOLLM2 --data ../shared/data/minipile --fresh build/fresh \\
        --domains fresh python_peps court_opinions pmc_ccby stackexchange --rates 3e-5 1e-4 3e-4 1e-3 \\
        --documents 12 --characters 512

For each domain: a lexical store of training documents, the rate chosen on it, the best of a grid on
validation documents, and what both save on test documents. Prints a table, writes JSON; resumes. With --again
the rates are chosen anew, and the tuned ones of the JSON stay.
"""

import argparse
import json
from dataclasses import dataclass
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
from uptake.methods.contract.naming import method_specs
from uptake.report.metrics import gain, gain_difference, ratio_interval
from uptake.report.scored.rows import Scored
from uptake.store import Datastore
from uptake.text.types import Document

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
DOMAINS = ("python_peps", "court_opinions", "pmc_ccby", "stackexchange", "textbook_us_history")
FRESH = "fresh"  # sources of packages that no model here has read, as recipes/fresh.py builds them
K = 5


@dataclass(frozen=True)
class Bench:
    """A model, and how it is measured."""

    lm: LM
    options: argparse.Namespace

    @property
    def protocol(self) -> PerQuery:
        return PerQuery(self.options.characters, self.options.characters)

    def texts(self, domain: str, part: str, most: int) -> list[Document]:
        """Return the first documents of a part of a domain."""
        if domain == FRESH:
            return list(uptake.read(self.options.fresh / f"{'store' if part == 'train' else part}.jsonl"))[
                :most
            ]
        return list(uptake.read(self.options.data / domain / f"{part}.jsonl.xz"))[:most]

    def store(self, domain: str) -> Datastore:
        """Return the store of a domain's first training documents, made now if it is not there."""
        path = self.options.work / f"{domain}.store"
        if not path.exists():
            stored = 10**9 if domain == FRESH else self.options.stored
            Datastore.create(path, retriever="lexical").add(self.texts(domain, "train", stored))
        return Datastore.open(path)

    def rows(self, store: Datastore, documents: list[Document], rate: float) -> list[Scored]:
        """Return the rows of TTT-NN at this rate on these documents."""
        method = method_specs(["ttt-nn"], [f"learning_rate={rate}"])["ttt-nn"]
        plan = Plan({"method": method}, self.protocol, (K,))
        outcome = evaluate(self.lm, plan, Inputs(tuple(documents)), store)
        return [row for row in outcome.rows if isinstance(row, Scored)]

    def measure(self, domain: str, tuned: float | None) -> dict[str, object]:
        """Return what the chosen and the tuned rate are, and save on test documents of one domain."""
        store = self.store(domain)
        method = method_specs(["ttt-nn"])["ttt-nn"].method
        chosen = rate_of(self.lm, method, store, K)
        if chosen is None:
            raise UptakeError(f"{domain}: no document of the store has neighbours to choose a rate on")
        print(f"{domain}: {chosen}", flush=True)
        valid, test = (self.texts(domain, part, self.options.documents) for part in ("valid", "test"))
        gains = {}
        for rate in () if tuned else self.options.rates:
            rows = self.rows(store, valid, rate)
            gains[rate] = gain([row.bits for row in rows], [row.base_bits for row in rows])
            print(f"{domain}: validation at {rate:g}, {100 * gains[rate]:.2f} %", flush=True)
        tuned = tuned or max(gains, key=lambda rate: gains[rate])
        auto, best = (self.rows(store, test, rate) for rate in (chosen.rate, tuned))
        base, ids = [row.base_bits for row in auto], [row.document for row in auto]
        bits = [[row.bits for row in rows] for rows in (auto, best)]
        saved = [[b - mine for b, mine in zip(base, column, strict=True)] for column in bits]
        return {
            "domain": domain,
            "chosen": chosen.rate,
            "chosen_cpu_seconds": chosen.cpu_seconds,
            "tried": plain(chosen.tried),
            "validation": {f"{rate:g}": each for rate, each in gains.items()},
            "tuned": tuned,
            "gain_chosen": gain(bits[0], base),
            "gain_tuned": gain(bits[1], base),
            "difference": gain_difference(bits[0], bits[1], base, ids),
            "share": sum(saved[0]) / sum(saved[1]),
            "share_interval": ratio_interval(saved[0], saved[1], ids),
            "test_documents": len(auto),
        }


def main() -> None:
    """Measure each domain that is not in the JSON yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fresh", type=Path, help="what recipes/fresh.py has built, for the domain `fresh`")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="the tuned one is one of")
    parser.add_argument("--characters", type=int, default=1024, help="before, and scored")
    parser.add_argument("--domains", nargs="*", default=list(DOMAINS))
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--stored", type=int, default=150)
    parser.add_argument("--again", action="store_true", help="choose once more, and keep the tuned rates")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--work", type=Path, default=Path("build/auto_rate"))
    parser.add_argument("--json", type=Path, default=Path("bench/auto_rate.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    bench = Bench(uptake.load(options.model, options.device, options.dtype), options)
    for domain in options.domains:
        key = f"{Path(options.model).name} {domain}"
        if key not in found or options.again:
            found[key] = bench.measure(domain, found[key]["tuned"] if key in found else None)
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(
        "| model, domain | chosen | tuned | gain chosen | gain tuned | difference [95 %] | share [95 %] "
        "| CPU s to choose |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for key, each in found.items():
        value, (low, high) = each["difference"]
        least, most = each["share_interval"] or (float("nan"), float("nan"))
        print(
            f"| {key} | {each['chosen']:.2g} | {each['tuned']:.2g} | {100 * each['gain_chosen']:.2f} % "
            f"| {100 * each['gain_tuned']:.2f} % | {100 * value:.2f} [{100 * low:.2f}, {100 * high:.2f}] "
            f"| {each['share']:.2f} [{least:.2f}, {most:.2f}] | {each['chosen_cpu_seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
