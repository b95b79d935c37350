"""Made-up results that look like a real evaluation's, for the tests of the report and its page."""

import inspect
import re
import textwrap

import numpy as np

from uptake.report.results import Header, Neighbour, Results, Sample
from uptake.report.scored import SCORED
from uptake.report.scored.rows import Scored, Showcase

# How far each method's gain goes at many neighbours, and how much a query's own gain scatters.
REACH = {"base": 0.0, "random": 0.035, "in-context": 0.062, "ttt-nn": 0.104}
SCATTER = {"base": 0.0, "random": 0.02, "in-context": 0.05, "ttt-nn": 0.06}
SECONDS = {
    "base": (0, 0, 0.4),
    "random": (0, 0.09, 0.4),
    "in-context": (0.01, 0, 0.9),
    "ttt-nn": (0.01, 0.1, 0.4),
}
HOSTILE = "</script><script>alert('x')</script> & <b>\u202egnp\x00\x1b[31m \ud800 é 漢字 👩‍🚀"


def results(
    methods=("base", "random", "in-context", "ttt-nn"),
    ks=(1, 2, 5, 10, 20, 50),
    documents=24,
    queries=3,
    showcases=2,
    samples=1,
    failures=2,
    seed=7,
):
    """Return an evaluation of `documents` documents of `queries` queries each."""
    header = Header(
        seed=seed,
        versions={"uptake": "0.1.0", "torch": "2.9.1", "transformers": "5.0.0", "python": "3.11.7"},
        model={"name": "examples/demo-model", "parameters": 5_012_480, "fingerprint": "9f2c51d07ab3e884"},
        store={
            "passages": 18_204,
            "documents": 1_311,
            "encoder": "lm:examples/demo-model",
            "version": 3,
            "fingerprint": "41b0dd9e5c7712aa",
        },
        protocol={
            "leak_enabled": True,
            "name": "per-query",
            "prefix share": 0.5,
            "max containment": 0.5,
            "max Jaccard": 0.8,
            "queries": documents * queries,
        },
        settings={
            "base": {},
            "random": {"moves": "all", "optimiser": "adamw", "rate": 5e-5, "clip": 1.0, "order": None},
            "in-context": {"budget": 1024},
            "ttt-nn": {
                "moves": "all",
                "optimiser": "adamw",
                "rate": 5e-5,
                "clip": 1.0,
                "betas": (0.9, 0.999),
            },
        },
        peak_rss_bytes={method: int(6.1e8 + 9e7 * number) for number, method in enumerate(methods)},
        notes=("2 documents were skipped: shorter than 64 bytes.",),
    )
    rows = [
        row
        for method in methods
        for k in ((0,) if method == "base" else ks)
        for row in _rows(
            method, k, documents, queries, failures if method == "ttt-nn" and k == max(ks) else 0, seed
        )
    ]
    return Results(
        SCORED,
        header,
        tuple(rows),
        tuple(_showcase(number, methods, seed) for number in range(showcases)),
        tuple(_sample(methods) for _ in range(samples)),
    )


def _rows(method, k, documents, queries, failures, seed):
    queried = np.random.default_rng([seed, 1])  # the same queries for every method
    generator = np.random.default_rng([seed, 2])
    share = np.log1p(k) / np.log1p(50)
    retrieve, train, score = SECONDS.get(method, (0.01, 0.1, 0.4))
    for number in range(documents * queries):
        document = number // queries
        size = int(queried.integers(700, 2400))
        base_bits = size * queried.normal(2.1, 0.25)
        overlap = max(0.0, generator.normal(0.08 + document / documents * 0.2, 0.14)) if k else 0.0
        luck = generator.normal(0, SCATTER.get(method, 0.05))
        gain = (REACH.get(method, 0.07) * (1 + 2 * overlap) + luck) * share
        failed = number < failures
        yield Scored(
            method=method,
            k=k,
            query=f"{document}/{number % queries}",
            document=f"pkg/module_{document}.py",
            bytes=size,
            bits=base_bits if failed else base_bits * (1 - gain),
            base_bits=base_bits,
            neighbours=k,
            overlap=min(0.49, overlap),
            withheld=int(generator.integers(0, 4)) if k else 0,
            tokens_trained=0 if method in ("base", "in-context") else 210 * k,
            tokens_read=min(1024, 210 * k) if method == "in-context" else 0,
            steps=0 if method in ("base", "in-context") else k,
            retrieve_seconds=retrieve * bool(k),
            train_seconds=train * k,
            score_seconds=score * (1 + (k > 0 and train == 0) * min(k, 5) / 4),
            failed="CUDA out of memory: <lower the batch & try again>" if failed else "",
        )


def _neighbours(count=3):
    texts = [inspect.getsource(textwrap.indent), inspect.getsource(textwrap.shorten), HOSTILE]
    return tuple(
        Neighbour(f"site-packages/other/text_{n}.py", 1024 * n, 0.83 - 0.07 * n, 0.31 - 0.1 * n, texts[n % 3])
        for n in range(count)
    )


def _showcase(number, methods, seed):
    generator = np.random.default_rng([seed, 2, number])
    text = inspect.getsource((textwrap.dedent, textwrap.TextWrapper._wrap_chunks)[number % 2])
    half = text.index("\n", len(text) // 3) + 1
    tokens = (*re.findall(r"\s*\w+|[^\w\s]+|\s+", text[half:]), HOSTILE)
    base = -generator.gamma(1.0, 1.7, len(tokens))
    log_probs = {"base": tuple(base.tolist())}
    for method in methods:
        if method != "base":
            better = np.minimum(
                base + generator.standard_t(2, len(tokens)) * 0.35 + REACH.get(method, 0.05) * 3, -1e-4
            )
            log_probs[method] = tuple(better.tolist())
    return Showcase(f"{number}/0", f"pkg/module_{number}.py", text[:half], tokens, log_probs, _neighbours())


def _sample(methods):
    text = inspect.getsource(textwrap.fill)
    rambling = "self.assertEqual(self, self.assertEqual(self.assertEqual(self,\n" * 4
    return Sample(
        text[:90],
        {method: rambling if method == "base" else text[90:420] for method in methods},
        _neighbours(2),
    )
