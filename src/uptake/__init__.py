"""Uptake: a trained language model takes new text up, under one honest evaluation.

Importing this costs nothing: what is named below is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from uptake.api import adapt as adapt
    from uptake.api import compare as compare
    from uptake.api import stream as stream
    from uptake.causal import load as load
    from uptake.errors import UptakeError as UptakeError
    from uptake.overlap import LeakFilter as LeakFilter
    from uptake.page import write_page as write_page
    from uptake.protocol import Holes as Holes
    from uptake.protocol import PerQuery as PerQuery
    from uptake.protocol import Running as Running
    from uptake.protocol import Whole as Whole
    from uptake.readers import read as read
    from uptake.report import read_json as read_json
    from uptake.report import summary as summary
    from uptake.report import table as table
    from uptake.report import write_json as write_json
    from uptake.store.datastore import Datastore as Datastore
    from uptake.tasks.asking import Asking as Asking
    from uptake.tasks.questions import Question as Question
    from uptake.tasks.questions import read_questions as read_questions
    from uptake.tasks.worlds import make_world as make_world
    from uptake.text import Document as Document

_WHERE = {
    "adapt": "api",
    "compare": "api",
    "stream": "api",
    "load": "causal",
    "UptakeError": "errors",
    "LeakFilter": "overlap",
    "write_page": "page",
    "Holes": "protocol",
    "PerQuery": "protocol",
    "Running": "protocol",
    "Whole": "protocol",
    "read": "readers",
    "read_json": "report",
    "summary": "report",
    "table": "report",
    "write_json": "report",
    "Datastore": "store.datastore",
    "Asking": "tasks.asking",
    "Question": "tasks.questions",
    "read_questions": "tasks.questions",
    "make_world": "tasks.worlds",
    "Document": "text",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'uptake' has no attribute {name!r}")
    return getattr(importlib.import_module(f"uptake.{_WHERE[name]}"), name)
