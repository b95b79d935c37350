"""`uptake eval`: one way of taking text up; `compare` with a single name for a default."""

import functools
import inspect

from uptake.cli.compare import compare


@functools.wraps(compare)
def eval(**options: object) -> None:
    """Score documents under one method, against the base model."""
    compare(**options)  # type: ignore[arg-type]


_signature = inspect.signature(compare)
_one = _signature.parameters["methods"].replace(default="ttt-nn")
eval.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[_one if name == "methods" else each for name, each in _signature.parameters.items()]
)
eval.__doc__ = "Score documents under one method, against the base model."
