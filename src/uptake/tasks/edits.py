"""Edits: single changes wanted of what a model says."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """After `prompt` the model is to say `target`, and after the `rephrased` prompts as well.

    What it says after the `unrelated` prompts is to stay as it was. `document` is the id of a document
    that states the change, "" where there is none.
    """

    id: str
    prompt: str
    target: str
    document: str = ""
    rephrased: tuple[str, ...] = ()
    unrelated: tuple[str, ...] = ()
