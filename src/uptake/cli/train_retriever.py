"""`uptake train retriever`: a query encoder for a store, trained by a frozen reader or by marked passages."""

import json
from collections.abc import Sequence
from pathlib import Path

from uptake.cli import inputs, screen, train_encoder
from uptake.errors import BadInput

NAME = "retriever"
PASSES, RATE = 20, 1e-3
EACH = 10  # candidates by words, and as many by vectors
IN_A_ROW = 3  # where the reader reads all of them in one prompt


def train(
    out: str,
    model: str,
    store: str | None,
    questions: Sequence[str] | None,
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
    """Train it and write it to `out`. The reader's table is kept in OUT.table until then, to go on from.

    With `layers` it is a folder, see `train_encoder`; `save_every` is of it alone.
    """
    file = Path(out).expanduser() if layers else inputs.output_file("--out", out)
    inputs.check_outputs({"--out": file}, questions, valid_questions)
    if file is None or store is None or not questions:
        raise BadInput("train retriever: name a --store to search and --questions with answers")
    if layers:
        what = (model, store, questions, valid_questions, loss, settings, layers, learning_rate, passes)
        train_encoder.train(file, *what, save_every, fresh, as_json, device, dtype, seed, threads)
        return
    with screen.status("starting"):
        from uptake.lm import loading
        from uptake.retrievers import training
        from uptake.retrievers.attention import AttentionTable
        from uptake.retrievers.candidates import candidates
        from uptake.retrievers.table import ReaderTable
        from uptake.settings import apply
    rate = RATE if learning_rate is None else learning_rate
    named = training.Tuning(loss or "pdist", learning_rate=rate, passes=passes or PASSES, seed=seed)
    tuning = apply(named, *(settings or ()))
    attends = tuning.loss == "adist"
    reads = attends or tuning.loss in training.READER_LOSSES
    if reads and not model:
        raise BadInput(f"--loss {tuning.loss}: name the reader with --model, or use --loss contrastive")
    loading.check(device, dtype)
    inputs.set_threads(threads)
    table_file = file.with_name(file.name + ".table")
    if fresh:
        table_file.unlink(missing_ok=True)
    asked, judged = inputs.questions(questions, valid_questions or ())
    with screen.status("finding candidates"):
        opened = inputs.open_store(store, None, device, threads)
        each = IN_A_ROW if attends else EACH
        found, checked = (
            candidates(opened, some, each, with_right=not reads) if some else [] for some in (asked, judged)
        )
    table = attention = None
    if reads:
        with screen.status("loading the reader"):
            reader = loading.load(model, device, dtype)
            if attends:
                attention = AttentionTable(reader, path=table_file)
            else:
                table = ReaderTable(reader, path=table_file)
        hint = f"the reader's word is kept in {table_file}; give the same command to resume"
        with (
            screen.interruptible(lambda: hint),
            screen.progress("reading", resumes="an interrupted run") as on,
        ):
            every = (*found, *checked)
            entries = [entry for one in every for entry in one.entries()]
            on(0, len(every) if attention else len(entries), "questions" if attention else "passages")
            if attention:
                rows = [one.in_a_row for one in every]
                attention.fill(rows, lambda done, total: on(done, total, "questions"))
            if table:
                table.fill(entries, progress=lambda done, total: on(done, total, "passages"))
    with (
        screen.interruptible(lambda: "a training of seconds is not kept; give the same command again"),
        screen.progress("training") as update,
    ):
        update(0, tuning.passes, "")
        made = training.train(
            [one.asked(table, attention) for one in found],
            opened.view.encoder_fingerprint,
            tuning,
            [one.asked(table, attention) for one in checked],
            lambda done, total, value: update(done, total, f"loss {value:.4f}"),
        )
    made.encoder.save(file)
    table_file.unlink(missing_ok=True)
    if as_json:
        told = {
            "query_encoder": str(file),
            "fingerprint": made.encoder.fingerprint,
            "trained": made.encoder.trained,
            "training": made.training,
            "validation": made.validation,
        }
        screen.echo(json.dumps(told, indent=1))
        return
    by = f", validation {min(made.validation):.4f} from {made.validation[0]:.4f}" if checked else ""
    screen.echo(f"{made.encoder.trained}: loss {made.training[-1]:.4f} from {made.training[0]:.4f}{by}")
    screen.note(f"query encoder: {file}; use it with --query-encoder {file}")
