"""Streams on a real model: what it keeps of documents on packages that it cannot have read.

    python recipes/fresh.py build                                                  # build/fresh
    python recipes/fresh_streams.py all --model SMOLLM2 --small BASE-5M --minipile shared/data/minipile

The model first learns the form of the questions on other facts, as Hu et al. (2023) do with every base. Then
each method reads a stream of definitions, one after another, and answers questions on the facts in them,
closed book, after 50, after 200 and, behind these, others that nobody asks for, after 1,000. Learning rates
are chosen on validation facts. `all` is `prepare` beside three processes for the groups of methods, then
`table`; each can be run by hand:

    prepare        the model that has learnt the form of questions
    run --groups   groups of methods: reading uniform weighed weights camels mac ablation
    table          figures of whatever is finished, as JSON and as a table

The same command again goes on: what is finished is not done again, and what a stream was asked at a
checkpoint is on the disk once it is answered.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import streams_data as data
import streams_figures as figures
import streams_methods as methods
import torch
from online_common import World
from streams_figures import CONTROL, TEST
from streams_methods import Prepared
from streams_runs import Clock, Job, Journal, Streams, keep_read, streamed, tuned

from uptake.errors import BadInput, Incomplete, UptakeError
from uptake.store import Datastore

# Groups of methods, by the processes that `all` shares them out to, each in its order.
LANES = (("uniform", "ablation"), ("weights", "camels"), ("reading", "mac", "weighed"))
GROUPS = tuple(group for lane in LANES for group in lane)


def reading(ready: Prepared, streams: Streams, args: argparse.Namespace, journal: Journal) -> None:
    """Ask without an update, and with a document in the window: its own, another's, the one found."""
    questions = list(streams.facts.questions)
    texts = {each.id: each.text for each in streams.facts.documents}
    own = [texts[question.document] for question in questions]
    # The next but a third: another file's document, for every question but those of very large files.
    shift = len(own) // 3
    read = {
        figures.BARE: [""] * len(own),
        figures.OWN: own,
        figures.ANOTHER: [*own[shift:], *own[:shift]],
    }
    for way, before in read.items():
        job = Job(way, 0.0, TEST)
        if not journal.of(job):
            keep_read(ready, job, streams, questions, before, streams.known_at, args, journal)
    job = Job(figures.FOUND, 0.0, TEST)
    for taken in sorted({streams.known_at, streams.stops[-1]}) if not journal.of(job) else ():
        places = {each.id for each in streams.test.documents[:taken]}
        asked = [question for question in questions if question.document in places]
        path = Path(args.work) / "stores" / f"{taken}.store"
        if not path.exists():
            Datastore.create(path, retriever="lexical").add(streams.test.documents[:taken])
        store, whole = Datastore.open(path), {each.id: each.text for each in streams.test.documents}
        found = [store.source(question.text).search(1).passages for question in asked]
        before = [whole[passages[0].document] if passages else "" for passages in found]
        keep_read(ready, job, streams, asked, before, taken, args, journal)


def weighed(way: str, ready: Prepared, args: argparse.Namespace) -> Any:
    """Return how the method of a way is made, of a rate and a stream."""
    file = methods.camels(ready, args) if way in (methods.CAMELS, methods.SHUFFLED) else None
    passes = args.again if way == methods.AGAIN else 1

    def of(rate: float, made: World) -> Any:
        token_weights = methods.weights_of(way, made, file, ready.base.device)
        return methods.finetune(rate, token_weights, passes)

    return of


def fine_tuned(
    ways: Mapping[str, int],
    controlled: Sequence[str],
    ready: Prepared,
    streams: Streams,
    args: argparse.Namespace,
    journal: Journal,
) -> None:
    """Tune each way, then let it read so many documents of the test; of some, a control too."""
    for way, length in ways.items():
        of = weighed(way, ready, args)
        rate = tuned(ready, way, of, streams, args, journal)
        made = data.beginning(streams.test, length)
        if way in controlled:
            other = control(streams, args)
            ends = [len(other.documents)]
            streamed(ready, Job(way, rate, CONTROL), of(rate, other), other, ends, args, journal)
        stops = [at for at in streams.stops if at <= len(made.documents)]
        streamed(ready, Job(way, rate, TEST), of(rate, made), made, stops, args, journal)


def control(streams: Streams, args: argparse.Namespace) -> World:
    """Return a stream of other documents, of the size of a checkpoint of the test's."""
    size = max([at for at in streams.stops if at <= args.control] or [streams.stops[0]])
    return data.told_otherwise(data.beginning(streams.test, size), streams.filler)


def last(way: str, streams: Streams, args: argparse.Namespace) -> int:
    """Return after how many documents a way stops: at the end, or where all questions can be asked."""
    return len(streams.test.documents) if way in args.to_the_end else streams.known_at


def uniform(ready: Prepared, streams: Streams, args: argparse.Namespace, journal: Journal) -> None:
    ways = {methods.UNIFORM: last(methods.UNIFORM, streams, args)}
    fine_tuned(ways, [*ways], ready, streams, args, journal)


def salient_and_tfidf(ready: Prepared, streams: Streams, args: argparse.Namespace, journal: Journal) -> None:
    ways = {methods.SALIENT: streams.known_at, methods.TFIDF: streams.known_at}
    fine_tuned(ways, (), ready, streams, args, journal)


def weights(ready: Prepared, streams: Streams, args: argparse.Namespace, journal: Journal) -> None:
    methods.camels(ready, args)


def with_camels(ready: Prepared, streams: Streams, args: argparse.Namespace, journal: Journal) -> None:
    ways = {methods.CAMELS: last(methods.CAMELS, streams, args)}
    fine_tuned(ways, [*ways], ready, streams, args, journal)


def with_mac(ready: Prepared, streams: Streams, args: argparse.Namespace, journal: Journal) -> None:
    trained, other = methods.mac(ready, args, Clock().say), control(streams, args)
    known = data.beginning(streams.test, streams.known_at)
    stops = [at for at in streams.stops if at <= streams.known_at]
    run = partial(streamed, ready, args=args, journal=journal)
    end = last(methods.MAC, streams, args)
    whole, every = data.beginning(streams.test, end), [at for at in streams.stops if at <= end]
    run(Job(methods.MAC, 0.0, TEST), trained, whole, every)
    run(Job(methods.MAC, 0.0, CONTROL), trained, other, [len(other.documents)])
    run(Job(methods.UNTRAINED_MAC, 0.0, TEST), methods.untrained(trained), known, stops)


def ablation(ready: Prepared, streams: Streams, args: argparse.Namespace, journal: Journal) -> None:
    """Say why: right answers weighed alone, several passes, facts told in the form of the questions."""
    restated = replace(
        streams,
        test=data.told_as_questions(streams.test, streams.facts),
        valid=data.told_as_questions(
            streams.valid, data.facts(args.data, "valid").of(streams.valid.documents)
        ),
    )
    fine_tuned({methods.RESTATED: streams.known_at}, (), ready, restated, args, journal)
    fine_tuned({methods.ORACLE: streams.known_at}, (), ready, streams, args, journal)
    fine_tuned({methods.SHUFFLED: streams.known_at}, (), ready, streams, args, journal)
    some = max([at for at in streams.stops if at <= args.control] or [streams.stops[0]])
    fine_tuned({methods.AGAIN: some}, (), ready, streams, args, journal)


RUN = {
    "reading": reading,
    "uniform": uniform,
    "weights": weights,
    "camels": with_camels,
    "mac": with_mac,
    "weighed": salient_and_tfidf,
    "ablation": ablation,
}


# Options that change no figure.
FREE = {"do", "groups", "given", "work", "json", "device", "batch", "seconds", "wait"}


def check_settings(args: argparse.Namespace) -> None:
    """Raise BadInput where the work folder holds what was done with other settings."""
    path = Path(args.work) / "settings.json"
    mine = {name: str(value) for name, value in sorted(vars(args).items()) if name not in FREE}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf8")
    theirs = json.loads(path.read_text(encoding="utf8"))
    if other := [name for name, value in mine.items() if theirs.get(name) != value]:
        raise BadInput(
            f"{path} was made with {other[0]} {theirs.get(other[0])}, not {mine[other[0]]}: "
            "give another --work"
        )


def prepare(args: argparse.Namespace) -> None:
    check_settings(args)
    methods.taught(args.model, methods.base_folder(args), args, Clock().say)


def run(args: argparse.Namespace) -> None:
    """Run groups one after another; one that fails is told of, and the others go on."""
    check_settings(args)
    ready, streams, failed = methods.Prepared(args), Streams.of(args), []
    for group in args.groups:
        try:
            RUN[group](ready, streams, args, Journal(args, group))
        except Exception:  # whatever a network can raise is a group that is not finished
            traceback.print_exc()
            failed.append(group)
    if failed:
        raise Incomplete(f"not finished: {', '.join(failed)}; the same command goes on with them")


def table(args: argparse.Namespace) -> None:
    found = figures.figures(args.work)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    print(figures.shown(found))


def everything(args: argparse.Namespace) -> None:
    """Run the groups in three processes, beside the preparation; print the table of what is finished."""
    check_settings(args)
    ends = time.monotonic() + (args.seconds or float("inf"))
    given = [word for word in args.given if word not in ("all", "--groups", *GROUPS)]
    lanes = [[group for group in lane if group in args.groups] for lane in LANES]
    command = [sys.executable, __file__, "run", *given, "--wait=1e9", "--groups"]
    children = [subprocess.Popen([*command, *lane]) for lane in lanes if lane]
    try:
        prepare(args)
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, min(ends - time.monotonic(), 1e6)))
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
            child.wait()
    table(args)
    if any(child.returncode for child in children):
        raise Incomplete("not all is finished: the same command goes on")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("do", choices=("all", "prepare", "run", "table"))
    made.add_argument("--groups", nargs="+", default=GROUPS, choices=GROUPS, help="these alone")
    made.add_argument("--model", help="a folder, a GGUF file or a hub name")
    made.add_argument("--small", help="the small model that CaMeLS's weights are trained beside")
    made.add_argument("--data", type=Path, default=Path("build/fresh"))
    made.add_argument("--minipile", type=Path, default=Path("shared/data/minipile"))
    made.add_argument("--work", type=Path, default=Path("build/fresh_streams"))
    made.add_argument("--json", type=Path, help="recipes/fresh_streams.json")
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--seconds", type=float, help="after which `all` stops what is not finished")
    made.add_argument("--wait", type=float, default=0.0, help="seconds, for the model that `prepare` makes")
    made.add_argument("--documents", type=int, default=200, help="that questions are on")
    made.add_argument(
        "--longest", type=int, default=0, help="characters of a document that is asked for; 0 is any number"
    )
    made.add_argument("--length", type=int, default=1000, help="documents of the stream, others behind them")
    long = (methods.UNIFORM, methods.CAMELS, methods.MAC)
    made.add_argument(
        "--to-the-end",
        nargs="*",
        default=long,
        choices=long,
        help="those that read the whole stream; others stop behind the documents that are asked for",
    )
    made.add_argument("--checkpoints", type=int, nargs="*", default=(50,))
    made.add_argument("--control", type=int, default=200, help="documents of the control, a checkpoint")
    made.add_argument("--valid", type=int, default=40, help="documents to choose rates on")
    made.add_argument("--train", type=int, default=0, help="most that teach the form of questions; 0 is all")
    made.add_argument("--meta", type=int, default=0, help="most that CaMeLS and MAC learn from; 0 is --train")
    made.add_argument("--unrelated", type=int, default=2, help="texts of each domain of the mini-Pile")
    made.add_argument("--rates", type=float, nargs="+", default=(1e-5, 3e-5, 1e-4), help="that are tried")
    made.add_argument("--most-kl", type=float, default=0.5, help="nats a token of unrelated text")
    made.add_argument("--teaching-rates", type=float, nargs="+", default=(3e-5, 1e-4))
    made.add_argument("--tokens", type=int, default=20, help="of an answer")
    made.add_argument("--batch", type=int, default=128, help="questions side by side")
    made.add_argument("--again", type=int, default=4, help="passes over each document, in an ablation")
    made.add_argument("--camels-rate", type=float, default=1e-3, help="of the steps of the small model")
    made.add_argument("--camels-passes", type=int, default=1)
    made.add_argument("--answers-rate", type=float, default=1e-4, help="of the weights' training on answers")
    made.add_argument("--places-passes", type=int, default=2)
    made.add_argument("--places-rate", type=float, default=2e-4, help="of that before it, on their places")
    made.add_argument("--mac-rate", type=float, default=1e-3)
    made.add_argument("--mac-documents", type=int, default=32, help="of an episode")
    made.add_argument("--mac-reading", type=int, default=150, help="episodes of made-up documents")
    made.add_argument("--mac-passes", type=int, default=12, help="over the facts that are learnt from")
    made.add_argument("--mac-settings", nargs="*", default=[], help="of MAC, name=value")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked; return the status to exit with."""
    args = parser().parse_args(arguments)
    args.given = list(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(1)
    try:
        {"all": everything, "prepare": prepare, "run": run, "table": table}[args.do](args)
    except UptakeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
