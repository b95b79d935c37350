"""Options of learning under differential privacy, the same for streams and for training a network."""

from collections.abc import Sequence
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


def given(
    epsilon: float | None, delta: float | None, clip: float | None, settings: Sequence[str] = ()
) -> str:
    """Return the `dp(...)` that the options stand for, "" for none.

    Raises BadInput for a `--delta`, `--clip` or `--set privacy.NAME=VALUE` without an epsilon.
    """
    named = {"epsilon": epsilon, "delta": delta, "clip": clip}
    written = [f"{name}={value}" for name, value in named.items() if value is not None]
    if written and epsilon is None:
        name = written[0].partition("=")[0]
        raise BadInput(f"--{name} without --epsilon: give an epsilon too, such as --epsilon 8")
    lone = [each for each in settings if part_of(each)]
    if lone and epsilon is None and not any(each.split(".")[-1].startswith("privacy=") for each in settings):
        raise BadInput(f"--set {lone[0]} without --epsilon: give an epsilon too, such as --epsilon 8")
    return f"dp({','.join(written)})" if written else ""


def without_any(names: Sequence[str]) -> list[str]:
    """Return those of the methods that read documents and have no setting `privacy`."""
    from uptake import api
    from uptake.settings import Miss, NoSuchSetting, find

    lacking = []
    for name, spec in api.method_specs(names).items():
        try:
            find(spec.method, "privacy")
        except NoSuchSetting as error:
            lacking += [name] if spec.method.reads and error.miss != Miss.AMBIGUOUS else []
    return lacking


def part_of(setting: str) -> bool:
    """Whether an assignment sets a part of the private training, for all methods or one."""
    return PREFIX in setting.partition("=")[0]
