"""Options of learning under differential privacy, the same for streams and for training a network."""

from typing import Annotated

from uptake.cli import options
from uptake.errors import BadInput

PRIVACY = "Privacy"
PREFIX = "privacy."  # of its settings
Epsilon = Annotated[
    float | None,
    options.option(
        PRIVACY,
        "E",
        "Learn the documents under differential privacy with this epsilon, a document being the unit; "
        "--set privacy.unit=user for all of a group, privacy.steps and privacy.batch for the training.",
    ),
]
Delta = Annotated[
    float | None,
    options.option(PRIVACY, "D", "The delta beside --epsilon, far below 1 / documents. Default: 1e-5."),
]
Clip = Annotated[
    float | None,
    options.option(PRIVACY, "NORM", "Largest norm of a document's gradient under --epsilon. Default: 0.1."),
]


def given(epsilon: float | None, delta: float | None, clip: float | None) -> str:
    """Return the `dp(...)` that the options stand for, "" for none. Raises BadInput without an epsilon."""
    named = {"epsilon": epsilon, "delta": delta, "clip": clip}
    written = [f"{name}={value}" for name, value in named.items() if value is not None]
    if written and epsilon is None:
        name = written[0].partition("=")[0]
        raise BadInput(f"--{name} without --epsilon: give an epsilon too, such as --epsilon 8")
    return f"dp({','.join(written)})" if written else ""
