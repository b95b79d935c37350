"""Which methods cannot stand together because one puts places before the text and another counts them."""

from collections.abc import Mapping
from typing import Any

from uptake.errors import BadInput
from uptake.methods.contract.method import Method


def check_input_tokens(parts: Mapping[str, Method[Any]]) -> None:
    """Raise BadInput where one part takes input tokens and another adds modules inside the network."""
    inside = [name for name, part in parts.items() if getattr(part, "in_network", False)]
    taking = [name for name, part in parts.items() if _innermost(part).takes_input_tokens]
    if inside and taking:
        raise BadInput(
            f"{taking[0]} puts a soft prompt before the text, and {inside[0]} counts places from there: "
            "train something else, such as trainable=ia3"
        )


def _innermost(method: Method[Any]) -> Method[Any]:
    """Return what a wrapper, and the wrappers within, wrap; else the method itself."""
    wrapped = getattr(method, "wrapped", None)
    return method if wrapped is None else _innermost(wrapped)
