"""`uptake train retriever --layers N`: trains the upper layers of a store's encoder."""

import json
from collections.abc import Sequence
from pathlib import Path

from uptake.cli import inputs, screen
from uptake.errors import BadInput


def train(
    folder: Path,
    model: str,
    store: str,
    questions: Sequence[str],
    valid_questions: Sequence[str] | None,
    loss: str | None,
    settings: Sequence[str] | None,
    layers: int,
    learning_rate: float | None,
    passes: int | None,
    save_every: int,
    fresh: bool,
    as_json: bool,
    device: str,
    dtype: str,
    seed: int,
    threads: int | None,
) -> None:
    """Train it and write it to `folder`; until then FOLDER.training and FOLDER.table hold what was done."""
    with screen.status("starting"):
        from uptake.lm import loading
        from uptake.retrievers import encoder_training
        from uptake.retrievers.corpus import Corpus
        from uptake.retrievers.encoder_folder import check_new, write_encoder
        from uptake.retrievers.encoder_steps import EncoderTuning
        from uptake.retrievers.table import ReaderTable
        from uptake.retrievers.training import READER_LOSSES
        from uptake.retrievers.upper_layers import UpperLayers
        from uptake.settings import apply
        from uptake.text.encoders import SentenceEncoder
    usual = EncoderTuning(loss or "pdist", layers=layers, seed=seed)
    named = EncoderTuning(
        usual.loss,
        usual.learning_rate if learning_rate is None else learning_rate,
        passes=passes or usual.passes,
        layers=layers,
        seed=seed,
    )
    tuning = apply(named, *(settings or ()))
    reads = tuning.loss in READER_LOSSES
    if reads and not model:
        raise BadInput(f"--loss {tuning.loss}: name the reader with --model, or use --loss contrastive")
    loading.check(device, dtype)
    inputs.set_threads(threads)
    check_new(folder)
    checkpoint, table_file = (folder.with_name(folder.name + end) for end in (".training", ".table"))
    if fresh:
        checkpoint.unlink(missing_ok=True)
        table_file.unlink(missing_ok=True)
    asked, judged = inputs.questions(questions, valid_questions or ())
    with screen.status("loading the encoder"):
        opened = inputs.open_store(store, None, device, threads)
        corpus = Corpus(opened)
        own = opened.encoder
        if not isinstance(own, SentenceEncoder):
            raise BadInput(
                f"--layers {layers}: {store} was made with {opened.encoder_spec or own.fingerprint}, and a "
                "sentence encoder alone trains: leave it out, which turns the queries' vectors"
            )
        encoder = UpperLayers(own.in_float32(), tuning.layers)
    table = None
    if reads:
        with screen.status("loading the reader"):
            table = ReaderTable(loading.load(model, device, dtype), path=table_file)

    def hint() -> str:
        if checkpoint.exists():
            return f"progress is saved in {checkpoint}; give the same command to resume"
        kept = f", but what the reader said is kept in {table_file}" if table_file.exists() else ""
        return f"no step was saved yet{kept}; --save-every N saves more often"

    with (
        screen.interruptible(hint),
        screen.progress("training", resumes="an interrupted run") as update,
    ):
        steps = (0, 0)

        def report(doing: str, done: int, total: int) -> None:
            nonlocal steps
            steps = (done, total) if doing == "training" else steps
            update(*steps, "" if doing == "training" else f"{doing} {done:,} of {total:,}")

        made = encoder_training.train(
            encoder,
            corpus,
            asked,
            tuning,
            judged,
            table,
            checkpoint,
            save_every,
            report,
        )
    with screen.status("writing"):
        passages = opened.view.encoder_fingerprint if tuning.sides == "query" else ""
        about = write_encoder(encoder, folder, passages, made.said)
    checkpoint.unlink(missing_ok=True)
    table_file.unlink(missing_ok=True)
    if as_json:
        told = {
            "encoder": str(folder),
            "fingerprint": about.own,
            "trained": made.said,
            "training": made.training,
            "validation": made.validation,
        }
        screen.echo(json.dumps(told, indent=1))
        return
    by = f", validation {min(made.validation):.4f} from {made.validation[0]:.4f}" if made.validation else ""
    screen.echo(f"{made.said}: loss {made.training[-1]:.4f} from {made.training[0]:.4f}{by}")
    use = (
        f"query encoder: {folder}; use it with --query-encoder {folder}"
        if passages
        else f"encoder: {folder}; use it with `uptake index encode {store} NEW --encoder {folder}`"
    )
    screen.note(use)
