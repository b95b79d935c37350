"""A protocol says itself which options of the command line set it."""

import dataclasses
import inspect

import pytest

from uptake.cli import evaluating
from uptake.cli.compare import compare
from uptake.errors import BadInput
from uptake.evaluation import protocols
from uptake.evaluation.protocols.holes import Holes
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.protocols.running import Running

DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(compare).parameters.items()}


@pytest.mark.parametrize("name", protocols.names())
def test_each_option_is_one_of_compare_and_sets_a_field(name: str) -> None:
    protocol = protocols.find(name)
    settings = {field.name for field in dataclasses.fields(protocol)}  # type: ignore[arg-type]
    assert protocol.options.keys() <= settings
    assert set(protocol.options.values()) <= DEFAULTS.keys()
    assert isinstance(evaluating.protocol(name, DEFAULTS), protocol)


def test_options_set_the_protocol_they_are_for() -> None:
    values = DEFAULTS | {"prefix": 3, "suffix": 4, "windows": 5, "search": 2, "segment": 6}
    values |= {"hole": "line", "around": "before"}
    assert evaluating.protocol("per-query", values) == PerQuery(prefix=3, suffix=4, windows=5, search=2)
    assert evaluating.protocol("running", values) == Running(segment=6, context=3)
    assert evaluating.protocol("holes", values) == Holes(kind="line", count=5, prefix=3, around="before")


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(BadInput, match="did you mean per-query"):
        evaluating.protocol("per-qeury", DEFAULTS)
