"""`uptake compare`: score the same text under several methods."""

from typing import TYPE_CHECKING, Annotated

from uptake.cli import edit_options, evaluating, inputs, options, screen, searching
from uptake.errors import BadInput

if TYPE_CHECKING:
    from uptake.store.datastore import Datastore
    from uptake.text.reading import Reading

EXAMPLES = options.examples(
    "uptake compare -m gpt2 -s notes.store --data test.jsonl --html report.html",
    "uptake compare -m gpt2 -s notes.store --data test.jsonl -k 1,5,20 --limit 50",
    "uptake compare -m gpt2 --data test.jsonl --methods base,finetune \\\n      --protocol running",
    "uptake compare -m gpt2 --data edits.jsonl --methods finetune,in-context \\\n      --protocol edits",
)


Methods = Annotated[
    str | None,
    options.option(
        options.MAIN,
        "NAMES",
        "Adaptation methods, separated by commas; see `uptake methods`. Default: what usually wins on a "
        "model of this size, with the base and random.",
        "--methods",
    ),
]
Within = Annotated[
    str | None,
    options.option(
        options.OUTPUT,
        "COST",
        "Name the best method within a cost of a query: 3x the base's CPU seconds, or 20s. Default: 6x.",
        "--within",
    ),
]
By = Annotated[
    str | None,
    options.option(
        options.OUTPUT,
        "FIELD",
        "Tell the gain also by a field of the documents, such as language: each, mean, spread and worst.",
        "--by",
    ),
]


@options.reads_files
def compare(
    model: options.Model,
    data: options.Data,
    reading: "Reading",
    store: options.Store = None,
    methods: Methods = None,
    k: options.NeighboursOr = None,
    settings: options.Setting = None,
    recipe: options.Recipe = None,
    encoder: options.Encoder = None,
    search_by: searching.SearchBy = None,
    vector_weight: searching.VectorWeight = 20.0,
    query_encoder: searching.QueryEncoder = None,
    protocol: options.ProtocolName = "per-query",
    prefix: options.Prefix = 1024,
    suffix: options.Suffix = 1024,
    windows: options.Windows = 1,
    search: options.Search = None,
    segment: options.SegmentSize = 512,
    hole: options.Hole = "identifier",
    around: options.Around = "both",
    questions: options.Questions = None,
    turn: edit_options.Turn = 0,
    checkpoints: edit_options.Checkpoints = None,
    answer_tokens: edit_options.AnswerTokens = 12,
    shots: edit_options.Shots = 3,
    probes: edit_options.Probes = 2,
    contradictions: edit_options.Contradictions = "refuse",
    locality: edit_options.Locality = None,
    limit: options.Limit = None,
    leak_containment: options.Containment = 0.5,
    leak_jaccard: options.Jaccard = 0.8,
    leak_letters: options.Letters = 0.5,
    leak_spaced_letters: options.SpacedLetters = 0.8,
    no_leak_filter: options.NoFilter = False,
    max_tokens: options.MaxTokens = None,
    max_steps: options.MaxSteps = None,
    max_cpu_seconds: options.MaxCpuSeconds = None,
    max_wall_seconds: options.MaxWallSeconds = None,
    within: Within = None,
    by: By = None,
    json_path: options.Json = None,
    html: options.Html = None,
    fresh: options.Fresh = False,
    device: options.Device = "cpu",
    dtype: options.DtypeOr = None,
    batch: options.BatchOr = None,
    workers: options.Workers = 1,
    ray: options.Ray = None,
    shard_rows: options.ShardRows = None,
    missing: options.Missing = "fail",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Score documents under several methods; report gains, costs and controls.

    Every method scores the same bytes. With --json, an interrupted run resumes when started again.
    """
    values = locals()
    # Mistakes in the options are reported before a file is read or a model loaded.
    if by == "":
        raise BadInput("--by '': name a field of the documents, such as language")
    named = None if methods is None else inputs.methods(methods, "ttt-nn")
    report_file = inputs.report_file(json_path)
    page_file = inputs.output_file("--html", html)
    inputs.check_outputs({"--json": report_file, "--html": page_file}, data, questions, locality, recipe)
    with screen.status("starting"):
        from uptake import api
        from uptake.evaluation.defaults import LARGE_METHODS, usual_format, usual_methods
        from uptake.evaluation.plan import Plan
        from uptake.lm import loading
        from uptake.methods.contract.spending import Budget
        from uptake.report.scored.best import checked
        from uptake.text import readers
    cost = "" if within is None else checked(within)
    # Which methods are usual is known once the model is: until then all that may be stand for them.
    names = [*LARGE_METHODS] if named is None else named
    chosen_protocol = evaluating.protocol(protocol, values)
    chosen = inputs.recipe(recipe)
    more = [chosen.method] if chosen else []
    names = list(dict.fromkeys([*names, *more]))
    if chosen:
        # The recipe's settings are for its own method; options on the command line override them.
        settings = [*(f"{chosen.method}.{setting}" for setting in chosen.settings), *(settings or ())]
    ks = inputs.counts(k or str(chosen.k if chosen else 20), "-k")
    specs = api.method_specs(names, settings or ())
    leak = inputs.leak_filter(
        leak_containment, leak_jaccard, leak_letters, leak_spaced_letters, no_leak_filter
    )
    dtype = dtype or usual_format(specs.values())
    loading.check(device, dtype)
    plan = Plan(specs, chosen_protocol, tuple(ks))
    wanted = evaluating.wanted_store(store, plan)
    cluster = inputs.shards(ray, shard_rows, missing)
    inputs.set_threads(threads)

    skipped = readers.Skipped()
    with screen.status(f"reading {chosen_protocol.data}"):
        given = evaluating.given(
            chosen_protocol, data, reading, skipped, limit, questions, locality, contradictions
        )
    opened: Datastore | None = None
    if wanted:
        with screen.status("opening the store"):
            opened = inputs.open_store(
                wanted, encoder, device, threads, cluster, search_by, vector_weight, query_encoder
            )
    with screen.status("loading the model"):
        loaded = loading.load(model, device, dtype)
    given = evaluating.fitted(given, loaded, skipped)
    screen.note_skipped(skipped)

    if named is None:
        names = list(dict.fromkeys([*usual_methods(loaded), *more]))
    journal = evaluating.journal(report_file, fresh)
    hint = f"finished queries are saved in {journal}: the same command resumes from there"
    with (
        screen.on_cluster(ray),
        screen.interruptible(lambda: evaluating.kept(journal, plan, hint)),
        screen.progress("scoring", resumes="an interrupted run") as update,
    ):
        results = api.compare(
            loaded,
            given,
            names,
            store=opened,
            k=ks,
            settings=settings or (),
            protocol=chosen_protocol,
            seed=seed,
            batch=batch,
            budget=Budget(max_tokens, max_steps, max_cpu_seconds, max_wall_seconds),
            leak=leak,
            journal=journal,
            notes=[f"left out while reading: {skipped}"] if skipped.total else [],
            progress=update,
            workers=workers,
            ray=ray,
            within=cost,
            by=by or "",
        )
    evaluating.finish(results, json_path, report_file, page_file, journal)
