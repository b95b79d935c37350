"""A reader that has learnt the form of SQuAD's answers: on training articles, judged on validation articles.

What better passages are worth in answers depends on what the reader makes of the right one. This teaches a
model to answer a question from its paragraph, on articles that nobody is tested on, and says how well it and
others then answer after the right paragraph, on validation articles alone.

    python recipes/retriever_reader.py --model SMOLLM2 --squad dev-v1.1.json.xz --out build/reader

writes the model to the folder, which `recipes/retrievers.py squad --model` takes with the same template, and
the figures beside it, in a file of its name with .json behind. `--beside` judges other models too.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from retriever_figures import interval, marks
from retriever_worlds import squad_parts

from uptake.adaptation.optimizers import AdamW
from uptake.lm.causal import Causal
from uptake.lm.loading import load
from uptake.retrievers.reader import Prompt, Reader
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.tasks.retune import Retuning, retune, save_retuned

TEMPLATE = "{passage}\n\nQuestion: {question}\nAnswer:"
TOKENS = 16  # of an answer, at most


def taught(given: argparse.Namespace, questions: Sequence[Question], texts: dict[str, str]) -> dict[str, Any]:
    """Write the model that has learnt to answer from the right paragraph, and tell what that took."""
    prompt = Prompt(template=TEMPLATE)
    short = [q for q in questions if len(texts[q.document]) <= given.longest][: given.train]
    asked = [replace(q, text=prompt.of(q.text, texts[q.document])) for q in short]
    lm = load(given.model, given.device, given.dtype)
    assert isinstance(lm, Causal)
    begun = time.process_time()
    retuning = Retuning(optimizer=AdamW(given.rate, weight_decay=0.0), batch=given.batch)

    def told(done: int, total: int) -> None:
        print(f"step {done} of {total}, {time.process_time() - begun:.0f} CPU s", flush=True)

    delta = retune(lm, asked, Asking(template="{question}"), retuning, progress=told)
    save_retuned(lm, delta, given.out)
    return {"questions": len(asked), "cpu_seconds": round(time.process_time() - begun, 1)}


def judged(name: str, given: argparse.Namespace, some: Sequence[Question], texts: dict[str, str]) -> Any:
    """Return the marks of a model's answers after the right paragraph, with intervals by paragraph."""
    reader = Reader(load(name, given.device, given.dtype), Prompt(template=TEMPLATE))
    begun = time.process_time()
    said = reader.say(
        [q.text for q in some],
        [[texts[q.document]] for q in some],
        [torch.zeros(1)] * len(some),
        tokens=TOKENS,
        rows=16,
        empty=False,
    )
    marked = marks([one.text for one in said], some)
    return {
        **{key: interval(values, [q.document for q in some]) for key, values in marked.items()},
        "cpu_seconds_a_question": round((time.process_time() - begun) / len(some), 2),
        "examples": [[q.text, q.answers[0], one.text] for q, one in zip(some[:8], said, strict=False)],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Teach the reader, unless its folder is there; judge it and those beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--squad", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the reader to")
    parser.add_argument("--beside", nargs="*", default=[], help="other models, judged on the same questions")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--train", type=int, default=160, help="questions to learn from")
    parser.add_argument(
        "--longest", type=int, default=800, help="characters of a paragraph that is learnt from"
    )
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--valid", type=int, default=64, help="questions to judge by")
    given = parser.parse_args(arguments)
    documents, (train, valid, _) = squad_parts(given.squad)
    texts = {d.id: d.text for d in documents}
    figures = given.out.with_name(f"{given.out.name}.json")
    found: dict[str, Any] = json.loads(figures.read_text()) if figures.exists() else {}
    if not given.out.exists():
        found = {"rate": given.rate, "taught": taught(given, train, texts), "valid": {}}
        figures.write_text(json.dumps(found, indent=1) + "\n")
    for name in (str(given.out), *given.beside):
        if Path(name).name not in found["valid"]:
            found["valid"][Path(name).name] = judged(name, given, valid[: given.valid], texts)
            figures.write_text(json.dumps(found, indent=1) + "\n")
            print(name, json.dumps(found["valid"][Path(name).name]), flush=True)


if __name__ == "__main__":
    main()
