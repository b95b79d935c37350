"""The library in three verbs: `compare` methods, `stream` documents, `adapt` to a prompt.

The command line is a thin skin over this file.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from uptake import arguments
from uptake.errors import BadInput
from uptake.evaluation.defaults import Progress as Choosing
from uptake.evaluation.defaults import queries_together, usual_methods
from uptake.evaluation.engine import Progress
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Protocol
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.protocols.stream import Stream
from uptake.evaluation.run import run
from uptake.evaluation.schedule import in_stream
from uptake.lm.base import LM
from uptake.lm.pretrained import Pretrained
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.naming import method_specs as method_specs
from uptake.methods.contract.spending import Budget
from uptake.report.results import Results
from uptake.session import Session
from uptake.store.datastore import Datastore
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.overlap import LeakFilter
from uptake.text.types import Chunking, Document

_DOCUMENTS = "documents, as uptake.read(FILE) gives them"


def compare(
    model: Pretrained,
    documents: Iterable[Document] | Inputs,
    names: Sequence[str] | Mapping[str, MethodSpec] | None = None,
    *,
    store: Datastore | None = None,
    k: int | Sequence[int] = 20,
    settings: Sequence[str] = (),
    protocol: Protocol | None = None,
    seed: int = 0,
    batch: int | None = None,
    budget: Budget | None = None,
    leak: LeakFilter | None = None,
    showcases: int = 4,
    journal: Path | None = None,
    notes: Sequence[str] = (),
    progress: Progress = lambda done, total, name: None,
    workers: int = 1,
    ray: str | None = None,
    within: str = "",
    by: str = "",
) -> Results:
    """Measure several methods side by side on the same documents, under one protocol.

    `names` are names of methods, or method specs by the names to show; where none are given, what usually
    wins on a model of this size, with the controls. What their settings leave open is
    settled first, and the notes tell (evaluation/defaults.py); so is `batch`, how many queries go side by
    side. Several `workers` share the work, a process and a thread each, with the same results; on the Ray
    cluster at the address `ray`, if one is given. With `journal` an interrupted call with the same arguments
    goes on where it stopped. The results say which method is best `within` a cost, 3x the base's CPU seconds
    or 20s a query. Figures are told `by` a field of the documents as well, such as language: each group, the
    mean over groups, the spread and the worst. Raises BadInput for what cannot be run; what fails is listed
    in the results.
    """
    arguments.model(model)
    arguments.store(store)
    arguments.budget(budget)
    if documents is None or isinstance(documents, str | Path):
        arguments.records("documents", documents, "text", _DOCUMENTS)
    names = usual_methods(model) if names is None else names
    arguments.several("methods", names)
    arguments.several("settings", settings)
    if protocol is not None and not hasattr(protocol, "units"):
        raise BadInput(f"protocol {protocol!r}: give one of uptake.evaluation.protocols, such as Whole()")
    ks = tuple(k) if isinstance(k, list | tuple) else (k,)
    for one in ks:
        arguments.count("k", one)
    arguments.count("seed", seed)
    journal = None if journal is None else Path(journal)
    specs = names if isinstance(names, Mapping) else method_specs(names, settings)
    plan = Plan(
        specs,
        protocol or PerQuery(),
        ks,
        seed,
        queries_together(model, specs) if batch is None else batch,
        budget or Budget(),
        leak or LeakFilter(),
        showcases,
    )
    inputs = Inputs.of(documents)
    arguments.records("documents", inputs.documents, "text", _DOCUMENTS)
    return run(
        model,
        plan,
        inputs,
        store,
        journal=journal,
        notes=notes,
        progress=progress,
        workers=workers,
        ray=ray,
        within=within,
        by=by,
    )


def stream(
    model: Pretrained,
    documents: Iterable[Document],
    questions: Iterable[Question],
    names: Sequence[str] | Mapping[str, MethodSpec] = ("online",),
    *,
    store: Datastore | None = None,
    k: int | Sequence[int] = 20,
    settings: Sequence[str] = (),
    unrelated: Iterable[Document] = (),
    checkpoints: Sequence[int] = (),
    asking: Asking | None = None,
    rehearsal: Iterable[Question] = (),
    chunking: Chunking | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    leak: LeakFilter | None = None,
    journal: Path | None = None,
    save_every: int = 100,
    notes: Sequence[str] = (),
    progress: Progress = lambda done, total, name: None,
    workers: int = 1,
    ray: str | None = None,
) -> Results:
    """Let each method read the documents in order, then ask the questions, closed book; the base beside.

    It is `compare` under the protocol `Stream`. The questions on documents read so far are asked at
    each of `checkpoints` (numbers of documents) as well. How far a method changes what the model predicts on
    texts that have nothing to do with the stream is measured on `unrelated`. Questions whose document
    is not in the stream are left out, and the notes say so. With `journal` state and rows are saved every
    `save_every` documents. With a `store` methods read each document behind its `k` neighbours. Raises
    BadInput for an empty stream or no question.
    """
    if documents is None or isinstance(documents, str | Path):
        arguments.records("documents", documents, "text", _DOCUMENTS)
    documents = tuple(documents)
    arguments.records("documents", documents, "text", _DOCUMENTS)
    arguments.several("checkpoints", checkpoints)
    if isinstance(questions, Iterable) and not isinstance(questions, str):
        questions = tuple(questions)
    arguments.records("questions", questions, "answers", "uptake.read_questions(FILE).questions")
    asked, left = in_stream(documents, list(questions))
    if not asked and left:
        raise BadInput(f"no question to ask; {left[0]}: give those documents, with --documents")
    return compare(
        model,
        Inputs(documents, asked, unrelated=tuple(unrelated), rehearsal=tuple(rehearsal)),
        names,
        store=store,
        k=k,
        settings=settings,
        protocol=Stream(tuple(checkpoints), asking or Asking(), chunking, save_every),
        seed=seed,
        budget=budget,
        leak=leak,
        journal=journal,
        notes=[*notes, *left],
        progress=progress,
        workers=workers,
        ray=ray,
    )


def adapt(
    model: LM,
    prompt: str,
    name: str | MethodSpec = "ttt-nn",
    *,
    store: Datastore | None = None,
    k: int = 20,
    settings: Sequence[str] = (),
    seed: int = 0,
    budget: Budget | None = None,
    leak: LeakFilter | None = None,
    continues: bool = False,
    called: str = "",
    progress: Choosing = lambda name, tried, best: None,
) -> Session:
    """Return a session that has read what the store holds near `prompt` and answers from it.

    The model itself is unchanged. Where the session is to read more, it `continues`: see Session.
    """
    session = Session(
        model,
        name,
        settings=settings,
        store=store,
        k=k,
        seed=seed,
        budget=budget,
        leak=leak,
        continues=continues,
        called=called,
        progress=progress,
    )
    session.adapt(prompt)
    return session
