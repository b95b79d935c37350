"""What a client is told of the state that answers it, or of why none does."""

from typing import Any

from uptake.errors import Diverged
from uptake.evaluation.queries import neighbours
from uptake.server.engine.plans import Plan
from uptake.server.engine.states import Made
from uptake.server.errors import ApiError
from uptake.text.overlap import Overlap
from uptake.text.types import Found, Passage


def forgotten() -> ApiError:
    """Return what is told of a request whose text was deleted meanwhile: asked again, it answers without."""
    return ApiError(409, "a text that was read was deleted: send the request again", "forgotten", retry=True)


def shown(made: Made, cache: str, plan: Plan, asked: str) -> dict[str, Any]:
    """Return what a client is told of the state that answers it; `asked` is the text it is asked about."""
    whole = Overlap(asked)
    rows = neighbours(Found(made.passages, made.scores, (0.0,) * len(made.scores), (0.0,) * len(made.scores)))
    near = [
        {
            "id": f"pa_{passage.id:016x}",
            "document": passage.document,
            "start": passage.start,
            "score": row.score,
            **(_explained(passage, whole) if plan.explain else {}),
        }
        for passage, row in zip(made.passages, rows, strict=True)
    ]
    return {
        "state": made.name,
        "cache": cache,
        "method": plan.method,
        "neighbours": near,
        "steps": made.steps,
        "tokens_trained": made.trained,
        "stopped": made.stopped,
        "seed": plan.seed,
        "kept": plan.keep or plan.kept is not None,
        "ms": {"search": round(made.search_ms, 1), "adapt": round(made.adapt_ms, 1)},
    }


def _explained(passage: Passage, asked: Overlap) -> dict[str, Any]:
    return {"text": passage.text, "overlap": round(asked.share(passage.text), 3)}


def refusal(made: Made, plan: Plan) -> ApiError | None:
    """Return why a request fails where its state could not be had whole, if it asked for that."""
    if plan.on_limit == "answer" or made.stopped is None:
        return None
    if made.diverged:
        raise Diverged("training diverged: use a smaller learning rate")
    return ApiError(
        400, "the budget was spent before everything was read: give more", "budget", "uptake.budget"
    )
