"""`uptake edit`: make single corrections in a model, take some back, list them."""

from pathlib import Path
from typing import Annotated

from uptake.cli import edit_options, inputs, options, screen
from uptake.errors import BadInput, UptakeError
from uptake.report.formatting import many
from uptake.showing import one_line

EXAMPLES = options.examples(
    "uptake edit -m gpt2 --edits edits.jsonl --method memit --out fixes",
    "uptake edit -m gpt2 --edits more.jsonl --out fixes --turn 1",
    "uptake edit -m gpt2 --out fixes --remove fact-17",
    "uptake edit --out fixes --list",
    'uptake generate -m gpt2 --delta fixes "The capital of"',
)


def edit(
    out: Annotated[
        str, options.option(options.MAIN, "DIR", "Folder of the edits and of what is made of them.", "--out")
    ],
    model: Annotated[
        str | None,
        options.option(
            options.MAIN,
            "NAME|DIR",
            "Base model: a Hugging Face name, a folder or a GGUF file.",
            "--model",
            "-m",
        ),
    ] = None,
    edits: Annotated[
        list[str] | None,
        options.option(
            options.MAIN, "FILE", 'Edits to make: .jsonl of {"id", "prompt", "target"}, CounterFact, zsRE.'
        ),
    ] = None,
    method: Annotated[
        str | None,
        options.option(
            options.MAIN, "NAME", "Method that makes them. Default: the folder's, or breadth-first."
        ),
    ] = None,
    settings: options.Setting = None,
    remove: Annotated[
        list[str] | None, options.option(options.MAIN, "ID", "Take this edit back; may be repeated.")
    ] = None,
    show: Annotated[
        bool, options.option(options.MAIN, "", "List the edits; needs no model.", "--list")
    ] = False,
    turn: edit_options.Turn = 0,
    contradictions: edit_options.Contradictions = "refuse",
    adapter: Annotated[
        str | None,
        options.option(
            options.OUTPUT, "DIR", "Write the change as a peft LoRA adapter too, where it can be one exactly."
        ),
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Make edits, in a folder that keeps them; `generate --delta` answers with them.

    Edits are on the disk before they are made: a run that is interrupted is finished by the next one. What
    cannot be made is named, and the others are made. The model itself is not changed.
    """
    inputs.one_of("--contradictions", contradictions, ["refuse", "last"])
    with screen.status("starting"):
        from uptake.editing import EditedModel, stored_edits
    if show:
        for one in stored_edits(out):
            screen.echo(f"{one_line(one.id)}\t{one_line(one.prompt)}\t{one_line(one.target)}")
        return
    if model is None:
        raise BadInput("no model: name the base model of the edits with --model")
    with screen.status("starting"):
        from uptake.export import check_folder, export_peft, only_delta
        from uptake.lm import loading
        from uptake.tasks.edit_files import read_edits
        from uptake.text.files import Skipped
    if not edits and not remove and not Path(out).is_dir():
        raise BadInput(f"no edits for {out}: name a file of them with --edits")
    remove = list(dict.fromkeys(remove or ()))
    if adapter:
        check_folder(adapter)
    loading.check(device, dtype)
    inputs.set_threads(threads)
    skipped = Skipped()
    read = read_edits(edits, skipped, contradictions) if edits else ()  # type: ignore[arg-type]
    with screen.status("loading the model"):
        base = loading.load(model, device, dtype)
    edited = EditedModel(out, base, method, settings=settings or (), seed=seed)
    if remove:
        with screen.status("forgetting"):
            edited.remove(remove)
        screen.note(f"took back {len(remove)}: {', '.join(map(one_line, remove))}")
    with screen.status(f"making {many(len(read), 'edit', 'edits')}"):
        made = edited.make(read, turn, contradictions)  # type: ignore[arg-type]
    screen.note_skipped(skipped)
    screen.note_skipped(made.left_out)
    told = f"made {len(made.ids)}; {out} holds {many(len(edited.edits), 'edit', 'edits')}"
    written = None
    if adapter:
        try:
            written = export_peft(only_delta(edited.state, edited.lm), base, adapter)
        except UptakeError as error:
            raise BadInput(f"{told}, and there is no adapter: {error}") from None
    screen.note(told)
    if written:
        screen.note(f"adapter: {written}")
