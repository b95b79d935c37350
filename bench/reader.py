"""What an answer after a passage costs: prompts that share what they begin with, and prompts read whole.

    python bench/reader.py --model MODEL --squad dev-v1.1.json.xz

CPU seconds a question, one thread: 32 questions on 8 paragraphs of SQuAD behind three examples.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uptake.lm.loading import load
from uptake.retrievers.reader import Prompt, Reader
from uptake.tasks.questions import read_questions


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--squad", type=Path, required=True)
    parser.add_argument("--paragraphs", type=int, default=8)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    read = read_questions(given.squad)
    texts = {document.id: document.text for document in read.documents}
    asked = defaultdict(list)
    for question in read.questions:
        asked[question.document].append(question)
    shortest = sorted(asked, key=lambda key: (len(texts[key]), key))
    examples = tuple((texts[key], asked[key][0].text, asked[key][0].answers[0]) for key in shortest[:3])
    chosen = list(asked)[300 : 300 + given.paragraphs]
    some = [question for key in chosen for question in asked[key][:4]]
    questions, passages = [q.text for q in some], [texts[q.document] for q in some]
    lm = load(given.model, "cpu", "float32")

    def cost(work: Callable[[], Any]) -> float:
        begun = time.process_time()
        work()
        return round((time.process_time() - begun) / len(some), 3)

    def say(reader: Reader) -> Callable[[], Any]:
        priors = [torch.zeros(1)] * len(some)
        return lambda: reader.say(questions, [[text] for text in passages], priors)

    shared = Reader(lm, Prompt(examples))
    told = {
        "questions": len(some),
        "answer, passages read for the first time": cost(say(shared)),
        "answer, passages read before": cost(say(shared)),
        "likelihood of the right answer": cost(
            lambda: shared.log_probs(questions, passages, [q.answers[0] for q in some])
        ),
        "answer, every prompt read whole": cost(say(Reader(lm, Prompt(examples), shares=False))),
    }
    print(json.dumps(told, indent=1))
    if given.out:
        given.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
