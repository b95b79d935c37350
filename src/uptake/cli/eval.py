"""`uptake eval`: score text under one method; all else is as in `compare`."""

import inspect
from typing import Any

from uptake.cli import inputs, options
from uptake.cli.compare import compare
from uptake.errors import BadInput

EXAMPLES = options.examples(
    "uptake eval -m gpt2 -s notes.store --data test.jsonl -k 20 --json out.json",
    "uptake eval -m gpt2 -s notes.store --data test.jsonl --set learning_rate=5e-5",
    "uptake eval -m gpt2 --data test.jsonl --method finetune --protocol running",
)


def eval(**given: Any) -> None:
    """Score documents under one method and compare it with the base model.

    With --json, an interrupted run resumes when started again.
    """
    recipe = inputs.recipe(given["recipe"])
    method = given.pop("method")
    if method is None:
        method = recipe.method if recipe else "ttt-nn"
    if recipe and recipe.method != method:
        raise BadInput(
            f"--method {method} --recipe {given['recipe']}: the recipe is for {recipe.method}, leave one out"
        )
    if not method.strip():
        raise BadInput(f"--method {method!r}: name one, such as ttt-nn")
    if "," in method:
        raise BadInput(
            f"--method {method}: eval scores one; for several, `uptake compare --methods {method}`"
        )
    compare(methods=method, **given)


# The options of `compare`, with one method instead of several.
_method = inspect.Parameter(
    "method", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=options.MethodOr
)
_parameters = [
    _method if name == "methods" else parameter
    for name, parameter in inspect.signature(compare).parameters.items()
]
eval.__signature__ = inspect.Signature(_parameters)  # type: ignore[attr-defined]
eval.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters}
