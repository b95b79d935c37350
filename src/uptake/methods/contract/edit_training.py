"""What training an editor's network is made of: edits, what asks for them, what is to stay as it was.

It knows nothing of how a network makes an edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.edited_rows import EditedRows, ReadRows
from uptake.lm.examples import Example, encode
from uptake.methods.contract.learned import TrainingData

Weighted = tuple[Example, int, float]  # a text, the place of its edit, and how much it counts
Said = tuple[str, str]  # a prompt, and what follows it


@dataclass(frozen=True)
class EditEpisode:
    """An edit to make, the prompts that ask for it, and texts to stay as they were: near ones and another.

    A near text is a prompt and what follows it; of both each token is to stay as likely as it was.
    `entailed` ones are prompts with what follows from the edit, `old` is what was true before.
    """

    prompt: str
    target: str
    asked: tuple[str, ...]
    near: tuple[Said, ...] = ()
    unrelated: str = ""
    entailed: tuple[Said, ...] = ()
    old: str = ""


def edit_episodes(material: TrainingData, locality: float) -> list[EditEpisode]:
    """Return the edits in their order; texts not related come round in turn.

    Raises BadInput where there is none, or no unrelated text though `locality` gives it a weight.
    """
    if not material.edits:
        raise BadInput("no edits to learn from: give some, with --edits")
    if locality and not material.unrelated:
        raise BadInput(
            f"locality {locality} without unrelated text: give some, with --unrelated, or locality=0"
        )
    other = [document.text for document in material.unrelated] or [""]
    return [
        EditEpisode(
            edit.prompt,
            edit.text,
            (edit.prompt, *edit.rephrases),
            tuple((probe.prompt, probe.text) for probe in edit.neighbours),
            other[place % len(other)],
            tuple((probe.prompt, probe.text) for probe in edit.ripples if probe.target),
            edit.old,
        )
        for place, edit in enumerate(material.edits)
    ]


def asked_texts(lm: LM, edits: Sequence[EditEpisode], weight: float) -> list[Weighted]:
    """Return each edit's target after all prompts that ask for it, which share the weight."""
    return [
        (encode(lm.tokenizer, prompt, each.target).ending(lm.window), place, weight / len(each.asked))
        for place, each in enumerate(edits)
        for prompt in each.asked
    ]


def kept_texts(lm: LM, edits: Sequence[EditEpisode], locality: float, near: float) -> list[Weighted]:
    """Return the texts that are to stay as likely as they were, whole; those that are near share a weight."""
    found = []
    for place, each in enumerate(edits):
        if locality and each.unrelated:
            found.append((whole(lm, each.unrelated), place, locality))
        if near:
            found += [(whole(lm, before + text), place, near / len(each.near)) for before, text in each.near]
    return found


def whole(lm: LM, text: str) -> Example:
    """Return a text of which every token counts, as much of it as fits."""
    example = encode(lm.tokenizer, "", text)
    return example.part(0, min(len(example.target), lm.window), lm.window)


def read_all(rows: EditedRows, texts: Sequence[Weighted]) -> ReadRows:
    """Return texts read, each owned by its edit."""
    return rows.read([example for example, _, _ in texts], [place for _, place, _ in texts])


def weighted_sum(values: Sequence[Tensor], texts: Sequence[Weighted]) -> Tensor:
    """Return the sum of the mean of each text's values, [targets], times how much it counts."""
    counted = [value.mean() * weight for value, (_, _, weight) in zip(values, texts, strict=True)]
    return torch.stack(counted).sum()
