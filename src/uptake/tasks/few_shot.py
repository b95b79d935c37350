"""Tasks with a few examples each: inputs with their answers to learn from, and others to be asked afterwards.

Made of questions that name their task, of made-up worlds, and of holes in source files. What the task is
stands nowhere: it has to be learnt from the examples. It knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from uptake.errors import BadInput
from uptake.tasks._words import ATTRIBUTES
from uptake.tasks.holes import Making
from uptake.tasks.questions import Question
from uptake.tasks.worlds import Split, make_world
from uptake.text.types import Document, Passage, stable_hash

CHOICES = "choices"  # of a passage's meta: wrong answers, one a line


@dataclass(frozen=True, slots=True)
class Shot:
    """One example: what is read, what is to be said after it, and wrong answers that it may be marked by.

    A wrong answer ends as the right one does: it is given without the end of its line.
    """

    prompt: str
    answer: str
    wrong: tuple[str, ...] = ()

    def passage(self) -> Passage:
        """Return the example as a passage that methods read: the answer is learnt after the prompt."""
        meta = {CHOICES: "\n".join(self.wrong)} if self.wrong else {}
        return Passage(stable_hash(self.prompt, self.answer), self.answer, self.prompt, meta=meta)


@dataclass(frozen=True, slots=True)
class Task:
    """A task by its name: examples to learn from, and those that are asked."""

    name: str
    support: tuple[Shot, ...]
    asked: tuple[Shot, ...]

    def first(self, shots: int) -> "Task":
        """Return the task with so many examples to learn from."""
        return Task(self.name, self.support[:shots], self.asked)


def tasks_of(
    questions: Sequence[Question], documents: Sequence[Document], support: int, asked: int, seed: int = 0
) -> list[Task]:
    """Return the tasks that questions name in `meta["task"]`, or else in `meta["attribute"]`.

    What is read is the document that a question is about, if it is there, and the question. A task with
    fewer questions than `support` + `asked` is left out; one with more gives several. Raises BadInput where
    nothing is left.
    """
    texts = {document.id: document.text for document in documents}
    found: dict[str, list[Shot]] = {}
    for question in questions:
        name = question.meta.get("task") or question.meta.get("attribute")
        if name:
            read = [part for part in (texts.get(question.document, ""), question.text) if part]
            shot = Shot("\n".join([*read, ""]), f"{question.answers[0]}\n")
            found.setdefault(name, []).append(shot)
    tasks = []
    for name, shots in sorted(found.items()):
        Random(f"tasks {seed} {name}").shuffle(shots)
        size = support + asked
        for number in range(len(shots) // size):
            some = shots[number * size : (number + 1) * size]
            tasks.append(Task(name, tuple(some[:support]), tuple(some[support:])))
    if not tasks:
        raise BadInput(
            f"no task with {support + asked} questions: name the task of each question, as "
            '"task" in its record, and give as many of each'
        )
    Random(f"order {seed}").shuffle(tasks)
    return tasks


def world_tasks(
    support: int,
    asked: int,
    tasks: Sequence[int] | None = None,
    split: Split = "train",
    seed: int = 0,
    wrong: int = 4,
) -> list[Task]:
    """Return one task for each of these attributes of a made-up world, all nine if None.

    What is read is a document that states facts among sentences that mention other things; the answer is the
    value of the attribute. Wrong answers are other values of it.
    """
    chosen = range(len(ATTRIBUTES)) if tasks is None else tasks
    made = {ATTRIBUTES[number].name: list[Shot]() for number in chosen}
    values = {attribute.name: attribute.values for attribute in ATTRIBUTES}
    drawn, round_ = Random(f"shots {split} {seed}"), 0
    while any(len(shots) < support + asked for shots in made.values()):
        # Worlds of seeds that no other call asks for.
        world = make_world(200, 3, 2, 0.0, 0, split, 10_000 * seed + round_)
        texts = {document.id: document.text for document in world.documents}
        for question in world.questions:
            if question.meta["attribute"] in made:
                right = question.answers[0]
                others = [value for value in values[question.meta["attribute"]] if value != right]
                shot = Shot(
                    f"{texts[question.document]}\n",
                    f"{right}\n",
                    tuple(drawn.sample(others, wrong)),
                )
                made[question.meta["attribute"]].append(shot)
        round_ += 1
    return [
        Task(name, tuple(shots[:support]), tuple(shots[support : support + asked]))
        for name, shots in made.items()
    ]


def hole_shots(document: Document, prefix: int = 200, each: int = 8) -> list[Shot]:
    """Return examples of one source file: names in holes, after `prefix` characters before them."""
    making = Making(count=each, prefix=prefix)
    return [Shot(making.context(hole), hole.target) for hole in making.holes(document)]


def grouped_tasks(
    files: Mapping[str, Sequence[Sequence[Shot]]], support: int, asked: int, seed: int = 0
) -> list[Task]:
    """Return a task for each group of files, by its name, from the examples of each file.

    Examples to learn from and those that are asked are of different files. Groups with too few are left out.
    """
    tasks = []
    for name, some in sorted(files.items()):
        drawn, learnt, told = Random(f"files {seed} {name}"), list[Shot](), list[Shot]()
        for shots in drawn.sample([*some], len(some)):
            (learnt if len(learnt) < support else told).extend(shots)
        if len(learnt) >= support and len(told) >= asked:
            drawn.shuffle(learnt)
            tasks.append(Task(name, tuple(learnt[:support]), tuple(told[:asked])))
    return tasks
