"""The methods of fresh_streams.py, and what is trained for them, each read from its file if it is there.

Whatever is chosen is chosen on validation facts. Trained are the base model and a small one, to answer in
the form of the questions; CaMeLS's weights beside the small one; MAC's network beside the base.
"""

import argparse
import time
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import camels_squad
import mac as mac_recipe
import online_common as common
import streams_data as data
from online_common import Names
from streams_data import Facts

from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.token_weights import Camels as CamelsWeights
from uptake.adaptation.token_weights import SalientSpans, TfIdf, TokenWeights, Uniform
from uptake.adaptation.token_weights.network import from_file
from uptake.adaptation.trainable import All
from uptake.errors import BadInput
from uptake.lm.causal import Causal
from uptake.lm.loading import load
from uptake.methods.camels import Camels
from uptake.methods.contract.learned import UNTRAINED, TrainingData
from uptake.methods.finetune import Finetune
from uptake.methods.mac import Mac
from uptake.settings import apply
from uptake.tasks.asking import ask
from uptake.tasks.retune import Retuning, retune, save_retuned
from uptake.tasks.worlds import World
from uptake.train import Point, Training, train

UNIFORM, SALIENT, TFIDF, CAMELS, MAC = "uniform", "salient spans", "TF-IDF", "CaMeLS", "MAC"
SHUFFLED, ORACLE, AGAIN, RESTATED = (
    "CaMeLS, shuffled",
    "oracle",
    "uniform, 4 passes",
    "uniform, facts as questions",
)
UNTRAINED_MAC = "MAC, untrained"


class Prepared:
    """What the methods stand on: the base that has learnt the form of questions, the facts to learn from.

    The base is loaded when it is first asked for, and waited for where another process is making it.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        _, self.meta, self.valid = learnt_from(args)

    @cached_property
    def base(self) -> Causal:
        """The base. Raises BadInput where `prepare` has not made it."""
        folder, until = base_folder(self.args), time.monotonic() + self.args.wait
        while not folder.exists():
            if time.monotonic() > until:
                raise BadInput(f"{folder} is not there: run `prepare` first, with the same --work")
            time.sleep(0.5)
        return load(str(folder), self.args.device, self.args.dtype)


def learnt_from(args: argparse.Namespace) -> tuple[Facts, Facts, Facts]:
    """Return the facts for the form of questions, for meta-training, and for validation."""
    of = partial(data.facts, args.data, longest=args.longest)
    teaching, meta = data.teaching_and_meta(of("train", old=True))
    most = args.train or None
    return (
        teaching.of(teaching.documents[:most]),
        meta.of(meta.documents[: args.meta or most]),
        of("valid").first(args.valid),
    )


def base_folder(args: argparse.Namespace) -> Path:
    """Return where the base model is that has learnt the form of questions."""
    return Path(args.work) / "base"


def taught(name: str, folder: Path, args: argparse.Namespace, say: Any) -> None:
    """Write the model that has learnt the form of questions, at the rate that is best for validation facts.

    What counts is the sum of the answers' nats, closed book and with their document read before them.
    """
    if folder.exists():
        return
    teaching, _, valid = learnt_from(args)
    lm = load(name, args.device, args.dtype)
    texts = {each.id: each.text for each in valid.documents}
    opened = data.in_context(valid.questions, [texts[q.document] for q in valid.questions])
    asked = [*data.in_context(valid.questions, [""] * len(opened)), *opened]
    asking, best = replace(data.WHOLE, tokens=0), None
    for rate in args.teaching_rates:
        retuning = Retuning(optimizer=AdamW(rate, weight_decay=0.0))
        delta = retune(lm, data.form(teaching), data.WHOLE, retuning)
        nats = sum(answer.nats for answer in ask(lm.overlay(delta), asked, asking)) / len(asked)
        say(f"{folder.name}: form of questions at {rate:g}, {nats:.3f} nats an answer on validation facts")
        if best is None or nats < best[0]:
            best = nats, delta
    assert best is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_retuned(lm, best[1], folder.with_suffix(".begun"))
    folder.with_suffix(".begun").rename(folder)


def camels(ready: Prepared, args: argparse.Namespace) -> Path:
    """Return the file of CaMeLS's weights, trained beside the small model: places first, then the answers.

    The small model has its own tokenizer; in use the weights go over to the base's tokens by characters.
    """
    work = Path(args.work)
    path = work / "answers-0.safetensors"
    if path.exists():
        return path
    taught(args.small, work / "small", args, print)
    small = load(str(work / "small"), args.device, args.dtype)
    other = data.unrelated(args.minipile, "train", 2, 600)
    materials = [TrainingData(each.documents, each.questions, other) for each in (ready.meta, ready.valid)]
    method = Camels(steps=finetune(args.camels_rate), batches=2)

    def run(name: str, method: Camels, rate: float, passes: int, start: Camels | None) -> Camels:
        training = Training(
            AdamW(rate, weight_decay=0.0), passes=passes, save_every=25, warm_up_and_decay=True
        )
        return common.learn(method, small, *materials, training, work, name, start)

    places = run("places", replace(method, aim="places"), args.places_rate, args.places_passes, None)
    run("answers", method, args.answers_rate, args.camels_passes, places)
    return path


def mac(ready: Prepared, args: argparse.Namespace, say: Any) -> Mac:
    """Return MAC with its network, trained beside the base: on made-up worlds to read, then on facts."""
    method = apply(Mac(documents=args.mac_documents, locality=0.1), *args.mac_settings)
    lm, path = ready.base, Path(args.work) / "mac.safetensors"
    if path.exists():
        return replace(method, weights=str(path))
    started = time.perf_counter()

    def told(point: Point) -> None:
        valid = "" if point.valid is None else f", validation {point.valid:.3f}"
        seconds = time.perf_counter() - started
        say(f"MAC, {point.step}/{point.total}: {point.loss:.3f}{valid}, {seconds:.0f} s")

    other = data.unrelated(args.minipile, "train", 2, 150)
    names, only = Names.of(lm.tokenizer) if args.mac_reading else Names(()), replace(method, locality=0.0)
    reading = [
        mac_recipe.episode_of(only, lm, names, 0, "train", 10_000 + step) for step in range(args.mac_reading)
    ]
    orders = data.regrouped(ready.meta.documents, args.mac_passes)
    facts = [
        episode
        for order in orders
        for episode in method.episodes(lm, TrainingData(order, ready.meta.all_questions, other))
    ]
    look = replace(method, documents=len(ready.valid.documents))
    watched = [*look.episodes(lm, TrainingData(ready.valid.documents, ready.valid.questions, other[:1]))]
    network = None
    for number, (learnt, how) in enumerate(((reading, only), (facts, method))):
        if not learnt:
            continue
        optimizer = AdamW(args.mac_rate, beta2=0.95, weight_decay=0.0)
        training = Training(optimizer, save_every=40, warm_up_and_decay=True)
        # Only of the training on facts the best on validation facts is taken.
        valid, checkpoint = watched if learnt is facts else (), path.with_suffix(f".{number}")
        network, _ = train(how, lm, learnt, training, checkpoint, told, valid, network)
    assert network is not None
    method.save(network, lm, path)
    return replace(method, weights=str(path))


def untrained(method: Mac) -> Mac:
    return replace(method, weights=UNTRAINED)


def finetune(rate: float, token_weights: TokenWeights | None = None, passes: int = 1) -> Finetune:
    """Return the steps that all weighed methods take: Adam's, on all weights, a document a step."""
    return Finetune(
        trainable=All(),
        optimizer=AdamW(rate, weight_decay=0.0),
        clip=None,
        token_weights=token_weights or Uniform(),
        passes=passes,
    )


def weights_of(way: str, made: World, camels_file: Path | None, device: Any) -> TokenWeights:
    """Return what the tokens of a stream count under a method."""
    if way in (CAMELS, SHUFFLED):
        network = from_file(Path(camels_file or "")).to(device).requires_grad_(False).eval()
        found = CamelsWeights(network=network)
        return camels_squad.Shuffled(found) if way == SHUFFLED else found
    if way == SALIENT:
        return SalientSpans()
    if way == TFIDF:
        return TfIdf(0.25)
    return camels_squad.AnswersByParagraph.by(made) if way == ORACLE else Uniform()
