"""Uptake: adapts a trained language model to new text, and measures honestly whether that helps.

Importing this costs nothing: what is named below is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from uptake.api import adapt as adapt
    from uptake.api import compare as compare
    from uptake.api import stream as stream
    from uptake.editing import EditedModel as EditedModel
    from uptake.errors import UptakeError as UptakeError
    from uptake.evaluation.inputs import Inputs as Inputs
    from uptake.evaluation.protocols.holes import Holes as Holes
    from uptake.evaluation.protocols.per_query import PerQuery as PerQuery
    from uptake.evaluation.protocols.running import Running as Running
    from uptake.evaluation.protocols.stream import Stream as Stream
    from uptake.evaluation.protocols.whole import Whole as Whole
    from uptake.evaluation.run import read_json as read_json
    from uptake.lm.loading import load as load
    from uptake.methods.contract.spending import Budget as Budget
    from uptake.report.page import write_page as write_page
    from uptake.report.summary import summary as summary
    from uptake.report.summary import table as table
    from uptake.report.summary import write_json as write_json
    from uptake.session import Session as Session
    from uptake.store.datastore import Datastore as Datastore
    from uptake.tasks.asking import Asking as Asking
    from uptake.tasks.counterfactuals import counterfactuals as counterfactuals
    from uptake.tasks.edit_files import read_edits as read_edits
    from uptake.tasks.edits import Edit as Edit
    from uptake.tasks.questions import Question as Question
    from uptake.tasks.questions import read_questions as read_questions
    from uptake.tasks.worlds import make_world as make_world
    from uptake.text.overlap import LeakFilter as LeakFilter
    from uptake.text.readers import read as read
    from uptake.text.reading import Reading as Reading
    from uptake.text.types import Document as Document

_WHERE = {
    "adapt": "api",
    "compare": "api",
    "stream": "api",
    "load": "lm.loading",
    "UptakeError": "errors",
    "LeakFilter": "text.overlap",
    "write_page": "report.page",
    "Holes": "evaluation.protocols.holes",
    "Inputs": "evaluation.inputs",
    "PerQuery": "evaluation.protocols.per_query",
    "Running": "evaluation.protocols.running",
    "Stream": "evaluation.protocols.stream",
    "Whole": "evaluation.protocols.whole",
    "read": "text.readers",
    "Reading": "text.reading",
    "read_json": "evaluation.run",
    "summary": "report.summary",
    "table": "report.summary",
    "write_json": "report.summary",
    "Session": "session",
    "Budget": "methods.contract.spending",
    "Datastore": "store.datastore",
    "Asking": "tasks.asking",
    "counterfactuals": "tasks.counterfactuals",
    "Edit": "tasks.edits",
    "EditedModel": "editing",
    "read_edits": "tasks.edit_files",
    "Question": "tasks.questions",
    "read_questions": "tasks.questions",
    "make_world": "tasks.worlds",
    "Document": "text.types",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'uptake' has no attribute {name!r}")
    return getattr(importlib.import_module(f"uptake.{_WHERE[name]}"), name)
