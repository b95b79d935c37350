"""`uptake train`: train the network of a learned method on documents and questions."""

import contextlib
import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uptake.cli import inputs, options, privacy_options, screen, train_retriever
from uptake.errors import BadInput

if TYPE_CHECKING:
    from uptake.adaptation.privacy.dp import DP, Claim
    from uptake.methods.contract.learned import TrainingData
    from uptake.store.datastore import Datastore
    from uptake.store.views.chunk_neighbours import NeighbourCache
    from uptake.text.reading import Reading
    from uptake.text.types import Document, Source
    from uptake.train import Point

    Sources = Callable[[Document], Source]

EXAMPLES = options.examples(
    "uptake train dynamic-evaluation -m gpt2 --documents train.jsonl --out statistics.safetensors",
    "uptake train retro -m gpt2 --documents train.jsonl --store train.store --out retro.safetensors",
    "uptake train retro -m gpt2 --questions asked.jsonl --store facts.store --out answers.safetensors",
    "uptake train mend -m gpt2 --edits edits.jsonl --unrelated other.txt --out mend.safetensors",
    "uptake train retriever -m gpt2 --store docs.store --questions asked.jsonl \\\n"
    "      --loss pdist --out queries.safetensors",
    "uptake train retriever --store docs.store --questions asked.jsonl --loss contrastive \\\n"
    "      --layers 2 --set sides=both --out encoder",
    "uptake train camels -m gpt2 --documents news.jsonl --questions asked.jsonl \\\n"
    "      --unrelated other.txt --out camels.safetensors",
)
TRAINING = "Training"
Files = list[str] | None
TrainedModel = Annotated[
    str,
    options.option(
        options.MAIN,
        "NAME|DIR",
        "Base model: a Hugging Face name, a folder or a GGUF file. A retriever's reader; not needed for "
        "--loss contrastive.",
        "--model",
        "-m",
    ),
]


@options.reads_files
def train(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="Method with a network of its own; see `uptake methods`. Or: retriever.",
        ),
    ],
    reading: "Reading",
    out: Annotated[str, options.option(options.OUTPUT, "FILE", "Write the trained network here.", "--out")],
    model: TrainedModel = "",
    documents: Annotated[Files, options.option(options.MAIN, "FILE", "Documents to train on.")] = None,
    questions: Annotated[
        Files,
        options.option(
            options.MAIN, "FILE", "Questions about them: SQuAD, TimeQA, or .jsonl in Uptake's form."
        ),
    ] = None,
    unrelated: Annotated[
        Files, options.option(options.MAIN, "FILE", "Unrelated text, on which the model should not change.")
    ] = None,
    store: Annotated[
        str | None,
        options.option(
            options.MAIN,
            "DIR",
            "Datastore to retrieve from: neighbours of the documents, never the document itself, and "
            "passages with the answers to the questions.",
            "--store",
            "-s",
        ),
    ] = None,
    start: Annotated[
        str | None,
        options.option(TRAINING, "FILE", "Network to start from, trained with the same settings.", "--start"),
    ] = None,
    valid_documents: Annotated[
        Files, options.option(TRAINING, "FILE", "Validation documents, which choose the best network.")
    ] = None,
    valid_questions: Annotated[
        Files, options.option(TRAINING, "FILE", "Questions about the validation documents.")
    ] = None,
    edits: Annotated[
        Files,
        options.option(
            TRAINING, "FILE", 'Edits to learn to make, {"id", "prompt", "target", "rephrases"} a line.'
        ),
    ] = None,
    valid_edits: Annotated[Files, options.option(TRAINING, "FILE", "Validation edits.")] = None,
    settings: options.Setting = None,
    learning_rate: Annotated[
        float | None,
        options.option(
            TRAINING,
            "RATE",
            "Learning rate of AdamW. Default: 1e-3; 1e-4 for the layers of an encoder.",
            least=0,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        options.option(
            TRAINING,
            "NAME",
            "What a retriever learns from, for `uptake train retriever`: pdist, emdr2, emdr, loop or adist, "
            "by the reader --model; contrastive, by the documents that questions name. Default: pdist.",
        ),
    ] = None,
    layers: Annotated[
        int,
        options.option(
            TRAINING,
            "N",
            "For `uptake train retriever`: train the upper N layers of the store's encoder, and write a "
            "folder. Without, one matrix that turns the queries' vectors.",
            least=0,
        ),
    ] = 0,
    passes: Annotated[
        int | None,
        options.option(
            TRAINING,
            "N",
            "Number of passes over all episodes. Default: 1; 20 for a retriever, 3 for an encoder's layers.",
            least=1,
        ),
    ] = None,
    save_every: Annotated[
        int, options.option(TRAINING, "N", "Save a checkpoint every N steps.", least=1)
    ] = 100,
    warm_up_and_decay: Annotated[
        bool, options.option(TRAINING, "", "Warm the learning rate up, then decay it to zero.")
    ] = False,
    epsilon: privacy_options.Epsilon = None,
    delta: privacy_options.Delta = None,
    clip: privacy_options.Clip = None,
    limit: Annotated[
        int | None,
        options.option(TRAINING, "N", "Maximum number of documents to read.", least=1, most=1 << 40),
    ] = None,
    fresh: options.Fresh = False,
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Train a method's own network, and write the one that does best on validation text.

    The base model is not changed. An interrupted training resumes from OUT.training, with the neighbours
    saved in OUT.neighbours, when the same command is given again. Use the network with --set weights=FILE.
    """
    texts = (documents, questions, unrelated, edits, valid_documents, valid_questions, valid_edits)
    if method == train_retriever.NAME:
        what = (model, store, questions, valid_questions, loss, settings)
        how = (layers, learning_rate, passes, save_every, fresh)
        train_retriever.train(out, *what, *how, as_json, device, dtype, seed, threads)
        return
    file = inputs.output_file("--out", out)
    inputs.check_outputs({"--out": file}, *texts)
    if layers:
        raise BadInput(f"--layers {layers}: {method} has no layers of an encoder to train; leave it out")
    if loss is not None:
        raise BadInput(f"--loss {loss}: {method} has a loss of its own; leave it out")
    if not model:
        raise BadInput("--model: name the base model to train beside")
    passes, learning_rate = passes or 1, 1e-3 if learning_rate is None else learning_rate
    with screen.status("starting"):
        from uptake import methods
        from uptake import train as outer
        from uptake.adaptation.optimizers import AdamW
        from uptake.evaluation.identity import files_in, model_identity, named
        from uptake.lm import loading
        from uptake.methods.contract.learned import learner_of
        from uptake.methods.contract.private_learning import units_of
        from uptake.settings import apply, describe
        from uptake.store.views.chunk_neighbours import NeighbourCache
    found = learner_of(methods.find(method))
    if found is None:
        learned = [name for name in methods.names() if learner_of(methods.find(name)) is not None]
        raise BadInput(f"{method} has no network to train; these have: {', '.join(learned) or 'none'}")
    learner = apply(found, *(each for each in settings or () if not _private(each)))
    dp = _privacy(privacy_options.given(epsilon, delta, clip, settings or ()), settings or ())
    if dp is not None and passes != 1:
        raise BadInput(f"--passes {passes} under --epsilon: the number of steps is --set privacy.steps=N")
    loading.check(device, dtype)
    inputs.set_threads(threads)
    if file is None:
        raise BadInput("--out: name a file for the network")
    checkpoint, neighbours = (file.with_name(file.name + end) for end in (".training", ".neighbours"))
    if fresh:
        _forget(checkpoint, neighbours)
    with contextlib.ExitStack() as closing:
        sources, searched = None, ""
        if store is not None:
            opened = inputs.open_store(store, threads=threads)
            searched = f"{opened.contents} {opened.view_contents('chunks')}"
            sources = _sources(opened, closing.enter_context(NeighbourCache(neighbours)))
        material = _material(documents, questions, unrelated, edits, limit, reading, sources)
        shown = _material(valid_documents, valid_questions, unrelated, valid_edits, limit, reading, sources)
        with screen.status("loading the model"):
            loaded = loading.load(model, device, dtype)
            begun = None if start is None else learner.load(Path(start), loaded)
        with screen.status("making episodes"):
            units = None if dp is None else units_of(learner, loaded, material, dp)
            episodes = learner.episodes(loaded, material) if units is None else units
            try:
                judged = shown.documents or shown.questions or shown.edits
                valid = learner.episodes(loaded, shown) if judged else ()
            except BadInput as error:
                raise BadInput(f"for validation: {error}") from None
    training = outer.Training(
        optimizer=AdamW(learning_rate=learning_rate, weight_decay=0.0),
        passes=passes,
        clip=1.0 if units is None else None,  # of a unit, not of their noisy sum
        save_every=save_every,
        warm_up_and_decay=warm_up_and_decay,
        seed=seed,
    )
    with (
        screen.interruptible(lambda: _hint(checkpoint, save_every)),
        screen.progress("training", resumes="an interrupted run") as update,
    ):
        words = ""

        def report(point: "Point") -> None:
            nonlocal words
            words = _words(point)
            update(point.step, point.total, words)

        network, points = outer.train(
            learner,
            loaded,
            episodes,
            training,
            checkpoint,
            report,
            valid,
            begun,
            lambda done, total: update(done, total, words),
            named([_digest(material, shown), searched, model_identity(loaded), *files_in(describe(learner))]),
        )
    learner.save(network, loaded, file)
    _forget(checkpoint, neighbours)
    _show(points, file, as_json, None if units is None else units.claim, learner.used_as)


def _privacy(written: str, settings: "Sequence[str]") -> "DP | None":
    """Return the settings of a private training, None where there is to be none."""
    from uptake.adaptation.privacy.dp import DP
    from uptake.settings import apply, parse

    own = [each.removeprefix(privacy_options.PREFIX) for each in settings if _private(each)]
    return apply(parse(DP, written, "privacy"), *own) if written else None


def _private(setting: str) -> bool:
    return setting.startswith(privacy_options.PREFIX)


def _sources(store: "Datastore", cache: "NeighbourCache") -> "Sources":
    from uptake.text.types import stable_hash

    def source(document: "Document") -> "Source":
        # Nothing is retrieved yet: training searches with parts of the document.
        found = store.source("", document_id=document.id, group=document.group, whole_text=document.text)
        # The same text of the same name: what it may read, and so what it finds, is the same.
        name = f"{document.id} {stable_hash(document.group, document.text)}"
        return found.with_chunks(lambda chunks: cache.chunks(name, chunks))

    return source


def _hint(checkpoint: Path, save_every: int) -> str:
    if not checkpoint.exists():
        return f"nothing was saved in the first {save_every:,} steps; --save-every N saves more often"
    return f"progress is saved in {checkpoint}; give the same command to resume"


def _digest(*materials: "TrainingData") -> str:
    """Return a name of all that is read: a checkpoint of other text is of another training."""
    from uptake.text.types import stable_hash

    read = (part for m in materials for d in (*m.documents, *m.unrelated) for part in (d.id, d.group, d.text))
    asked = [(m.questions, len(m.documents), *([m.edits] if m.edits else ())) for m in materials]
    return f"{stable_hash(repr(asked), *read):016x}"


def _forget(checkpoint: Path, neighbours: Path) -> None:
    checkpoint.unlink(missing_ok=True)
    shutil.rmtree(neighbours, ignore_errors=True)


def _material(
    documents: Files,
    questions: Files,
    unrelated: Files,
    edits: Files,
    limit: int | None,
    reading: "Reading",
    sources: "Sources | None",
) -> "TrainingData":
    from uptake.methods.contract.learned import TrainingData
    from uptake.tasks.edit_files import read_edits
    from uptake.tasks.questions import read_questions
    from uptake.text import readers

    skipped = readers.Skipped()
    with screen.status("reading text"):
        found = [read_questions(name, skipped) for name in questions or ()]
        brought = [document for one in found for document in one.documents]
        read = islice(readers.read(documents, skipped=skipped, reading=reading), limit) if documents else ()
        other = (
            tuple(islice(readers.read(unrelated, skipped=skipped, reading=reading), limit))
            if unrelated
            else ()
        )
        material = TrainingData(
            (*read, *brought),
            tuple(q for one in found for q in one.questions),
            other,
            sources,
            tuple(edit for name in edits or () for edit in read_edits(name, skipped)),
        )
    screen.note_skipped(skipped)
    return material


def _words(point: "Point") -> str:
    values = {"loss": point.loss if point.step else None, "validation": point.valid}
    return ", ".join(
        f"{name} {value:.4f}" for name, value in values.items() if value is not None and value == value
    )


def _show(points: "list[Point]", file: Path, as_json: bool, claim: "Claim | None", used_as: str) -> None:
    from uptake.codec import plain

    judged = [point for point in points if point.valid is not None]
    best = min(judged, key=lambda point: point.valid or 0.0) if judged else points[-1]
    if as_json:
        told = {"network": str(file), "best": plain(best), "checkpoints": plain(points)}
        if claim is not None:
            told["privacy"] = {**plain(claim), "said": claim.said()}
        screen.echo(json.dumps(told, indent=1))
        return
    from rich.table import Table

    table = Table(
        box=None, pad_edge=False, caption="mean loss since the line before; > is the network that was written"
    )
    table.caption_justify = "left"
    for heading in ("", "step", "loss", "validation"):
        table.add_column(heading, justify="right")
    every = -(-len(points) // 20)
    for point in [p for at, p in enumerate(points) if at % every == 0 or p is best or p is points[-1]]:
        valid = "" if point.valid is None else f"{point.valid:.4f}"
        loss = f"{point.loss:.4f}" if point.step and point.loss == point.loss else ""
        table.add_row(">" if point is best else "", f"{point.step:,}", loss, valid)
    screen.results().print(table)
    if claim is not None:
        screen.note(claim.said())
    setting = shlex.quote(used_as.format(file))
    screen.note(f"network: {file}; use it with --set {setting}")
