"""Whether a plan can be done at all, asked before its first query: none is refused after others have run."""

from uptake.errors import BadInput
from uptake.evaluation.failures import reason_of
from uptake.evaluation.plan import Plan
from uptake.lm.base import LM
from uptake.preparation import prepared
from uptake.store.datastore import Datastore
from uptake.store.unfinished import said


def check(lm: LM, plan: Plan, store: Datastore | None) -> dict[str, float]:
    """Raise BadInput, Mismatch, Missing or Damaged where a method cannot work on this model or this store.

    Return the CPU seconds of what was prepared for each method, such as an index. `store` is None where
    nothing is searched. What else goes wrong in here (memory, a method's own error) goes wrong again with
    the queries and is counted there as their failure.
    """
    if store is not None and not store.count:
        begun = said(store.unfinished)
        cure = begun or f"add text with `uptake index add {store.path}`"
        raise BadInput(f"{store.path} is empty, nothing can be found in it: {cure}")
    begun_at = prepared().cpu
    source = None if store is None else store.source("")
    shared, spent = prepared().cpu - begun_at, dict[str, float]()
    for name, spec in plan.methods.items():
        if not spec.method.reads:
            continue
        k, begun_at = max(plan.neighbour_counts(spec)), prepared().cpu
        try:
            if source is not None and spec.searches and k:
                spec.select.check(source, k)
            spec.method.check(lm, source)
        except Exception as error:
            reason_of(error)  # raises it again where the set-up is what is wrong
        spent[name] = prepared().cpu - begun_at + (shared if spec.searches and spec.select.ranks else 0.0)
    return spent
