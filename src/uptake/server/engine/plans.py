"""What a request asks for: the base, a recipe by its name, or a method of its own."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from uptake.codec import plain
from uptake.errors import BadInput
from uptake.evaluation.defaults import with_defaults_of
from uptake.lm.causal import Causal
from uptake.methods import names as method_names
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.methods.contract.spending import Budget
from uptake.server.config import Config, Recipe
from uptake.server.errors import ApiError, bad
from uptake.settings import describe
from uptake.store.datastore import Datastore
from uptake.text.select import Random
from uptake.text.types import Passage

CHECKED = 256  # methods with settings that are known to work
MOST = {"rank": 256, "neighbours": 4096, "passes": 64}  # of settings that a request gives


@dataclass(frozen=True)
class Plan:
    """How the model adapts for one request. `store` is the id of what it searches, None for nothing."""

    method: str
    spec: MethodSpec
    k: int
    store: str | None
    seed: int
    budget: Budget
    texts: tuple[Passage, ...] = ()  # each with the id it is kept under, "" where it is not
    query: str | None = None
    on_limit: str = "answer"
    explain: bool = False
    keep: bool = False  # the state on the disk
    kept: str | None = None  # the id of the state that answers, where it is one that was kept

    @property
    def searches(self) -> bool:
        """Whether it finds passages in a store."""
        return self.store is not None and self.spec.searches and self.k > 0

    @property
    def alike(self) -> str:
        """What has to be equal for two requests to be adapted to together."""
        return digest(plain(describe(self.spec.method)), self.seed, self.budget.tokens, self.budget.steps)


def digest(*parts: Any) -> str:
    """Return the SHA-256 of plain data, each part framed by its length."""
    found = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode("utf8", "replace")
        found.update(len(raw).to_bytes(8, "little"))
        found.update(raw)
    return found.hexdigest()


class Plans:
    """The names that this server answers to."""

    def __init__(self, config: Config, lm: Causal, store_of: Callable[[str], Datastore]) -> None:
        """Check every recipe on the model. Raises BadInput where one cannot be."""
        self._config, self._lm = config, lm
        self.notes: list[str] = []
        self._checked: dict[tuple[str, tuple[str, ...]], MethodSpec] = {}
        self._base = MethodSpec(method_specs(["base"])["base"].method)
        self._recipes: dict[str, tuple[Recipe, MethodSpec]] = {}
        for recipe in config.recipes:
            spec = method_specs([recipe.method], recipe.settings)[recipe.method]
            store = None if recipe.store is None else store_of(recipe.store)
            spec, notes = with_defaults_of(lm, recipe.method, spec, store, recipe.k)
            spec.method.check(lm, None if store is None else store.source("a"))
            self._recipes[f"{config.name}+{recipe.name}"] = recipe, spec
            if spec.searches and spec.select.ranks:
                # Its control: the same method on passages drawn at random.
                control = replace(recipe, name=f"{recipe.name}.random")
                self._recipes[f"{config.name}+{control.name}"] = control, replace(spec, select=Random())
            self.notes += notes

    def listed(self) -> list[dict[str, Any]]:
        """Return what each name stands for, the base first."""
        recipes = [
            {
                "id": name,
                "method": recipe.method,
                "k": recipe.k,
                "settings": list(recipe.settings),
                "store": recipe.store,
            }
            for name, (recipe, _) in self._recipes.items()
        ]
        base = {
            "id": self._config.name,
            "method": "base",
            "methods": method_names(),
            "keeps_stores": bool(self._config.data),
        }
        return [base, *recipes]

    def of(self, model: str, uptake: Mapping[str, Any] | None) -> Plan | None:
        """Return the plan of a request, None for the base as it is. Raises ApiError, BadInput."""
        known = {self._config.name, *self._recipes}
        if model not in known:
            near = difflib.get_close_matches(model, known, 1)
            meant = f": did you mean {near[0]!r}?" if near else ": /v1/models lists them"
            raise ApiError(404, f"model {model[:100]!r} does not exist{meant}", "model_not_found", "model")
        asked = dict(uptake or {})
        limits = asked.get("budget") or {}
        most = self._config.trained_tokens
        tokens = most if limits.get("tokens") is None else min(most, limits["tokens"])
        base = Plan("base", self._base, 20, None, 0, Budget(tokens, limits.get("steps")))
        plan = base
        if model in self._recipes:
            recipe, spec = self._recipes[model]
            plan = replace(base, method=recipe.method, spec=spec, k=recipe.k, store=recipe.store)
        if asked.get("settings") and not asked.get("method"):
            raise bad("settings are those of a method: name it", "uptake.settings")
        if method := asked.get("method"):
            spec = self._spec(method, tuple(asked.get("settings") or ()))
            plan = replace(plan, method=method, spec=spec)
        for name in ("k", "store", "seed", "query"):
            if asked.get(name) is not None:
                plan = replace(plan, **{name: asked[name]})
        plan = replace(
            plan,
            texts=tuple(asked.get("texts") or ()),
            on_limit=asked.get("on_limit") or "answer",
            explain=bool(asked.get("explain")),
            keep=bool(asked.get("keep")),
        )
        if asked.get("control"):
            if not (plan.searches and plan.spec.select.ranks):
                told = f"{plan.method} chooses nothing from a store here, so it has no control: leave it out"
                raise bad(told, "uptake.control")
            plan = replace(plan, spec=replace(plan.spec, select=Random()))
        if not plan.spec.method.reads:
            for name, given in (("texts", plan.texts), ("store", plan.store), ("keep", plan.keep)):
                if given:
                    told = f"the base reads nothing, so leave {name} out or name a method"
                    raise bad(told, "uptake.method")
            return None
        if plan.spec.searches and plan.k and plan.store is None and not plan.texts:
            raise bad(f"{plan.method} reads neighbours and there is no store: name one", "uptake.store")
        return plan

    def of_kept(self, name: str, kept: Mapping[str, Any], uptake: Mapping[str, Any] | None) -> Plan:
        """Return the plan of a request that a kept state answers as it is. Raises ApiError."""
        asked = {what for what, value in (uptake or {}).items() if value}
        if other := sorted(asked - {"explain", "budget", "on_limit"}):
            told = f"a state that was kept answers as it is: leave {other[0]} out, or name the base"
            raise bad(told, f"uptake.{other[0]}")
        explain = bool((uptake or {}).get("explain"))
        return Plan(kept["method"], self._base, 0, None, kept["seed"], Budget(), explain=explain, kept=name)

    def _spec(self, method: str, settings: tuple[str, ...]) -> MethodSpec:
        """Return a method with its settings, checked on the model once. Raises ApiError."""
        key = method, settings
        if key not in self._checked:
            try:
                spec = method_specs([method], settings)[method]
                # Before anything of it is tried: that alone may open a file, or take all memory.
                _check_harmless(spec.method)
                _check_harmless(spec.select)
                spec, _ = with_defaults_of(self._lm, method, spec, None, 1)
                spec.method.check(self._lm)
            except BadInput as error:
                raise bad(str(error), "uptake.settings" if settings else "uptake.method") from None
            if spec.segment is not None or spec.method.sequential:
                told = f"{method} passes something from text to text and cannot serve requests: use another"
                raise bad(told, "uptake.method")
            if len(self._checked) >= CHECKED:
                self._checked.pop(next(iter(self._checked)))
            self._checked[key] = spec
        return self._checked[key]


def _check_harmless(value: Any) -> None:
    """Raise ApiError where a client's settings name a file or a package, or take more than a request may."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    hints = get_type_hints(type(value))
    for part in dataclasses.fields(value):
        own = getattr(value, part.name)
        if hints.get(part.name) is str and own not in (part.default, "untrained", ""):
            told = f"{part.name}={own[:60]!r} may name a file: recipes of the server may, requests not"
            raise bad(told, "uptake.settings")
        if part.name in MOST and isinstance(own, int) and own > MOST[part.name]:
            raise bad(f"{part.name}={own}: use at most {MOST[part.name]}", "uptake.settings")
        for inner in own if isinstance(own, tuple) else (own,):
            _check_harmless(inner)
