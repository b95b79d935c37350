"""States that were kept: each is a file in its tenant's folder, and answers until it is deleted."""

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from uptake.errors import BadInput, UptakeError
from uptake.export import export_peft, only_delta
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Method
from uptake.methods.contract.naming import method_specs
from uptake.methods.contract.state import load_state, save_state
from uptake.server.engine.files import Act
from uptake.server.engine.forgetting import Shelf
from uptake.server.engine.plans import Plan
from uptake.server.engine.states import Adapted, Made
from uptake.server.errors import ApiError, bad, not_found
from uptake.server.records import Thing, minted
from uptake.settings import parse, written


class KeptStates:
    """The states that clients keep."""

    def __init__(self, shelf: Shelf, lm: Causal, name: str) -> None:
        """`name` is what clients call the base."""
        self._at, self._records, self._shelf = shelf.at, shelf.records, shelf
        self._lm, self._name = lm, name
        self.acts: dict[str, Act] = {
            "state_get": self._get,
            "state_list": self._list,
            "state_delete": self._delete,
            "state_adapter": self._adapter,
        }

    def save(self, made: Made, plan: Plan, quota: int) -> None:
        """Keep a state, once for all who ask for the same. Raises ApiError."""
        if self.has(made.tenant, made.name):
            return
        if made.whole is None or made.stopped not in (None, "budget"):
            raise bad(f"reading was stopped ({made.stopped}), and the state is not kept", "uptake.keep")
        method = made.whole.method
        try:
            text = written(method)
            if parse(Method, text, "method") != method:
                raise ValueError
        except (UptakeError, ValueError):
            told = f"the settings of {plan.method} have no text to be kept as: use a method by its name"
            raise bad(told, "uptake.keep") from None
        path = self._at.of(made.tenant, "states") / made.name
        try:
            try:
                save_state(made.whole.state, path)
            except UptakeError as error:
                raise bad(str(error), "uptake.keep") from None
            size = path.stat().st_size
            self._records.room(made.tenant, size, quota, "uptake.keep")
            data = {
                "key": made.key,
                "method": plan.method,
                "settings": text,
                "base": self._lm.fingerprint,
                "store": made.store,
                "documents": [passage.document for passage in made.passages],
                "steps": made.steps,
                "trained": made.trained,
                "stopped": made.stopped,
                "seed": plan.seed,
            }
            self._records.make("state", made.tenant, data, size=size, name=made.name)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def has(self, tenant: str, name: str) -> bool:
        """Whether a tenant keeps a state of this id."""
        return self._records.owner("state", name) == tenant

    def known(self, tenant: str, name: str) -> Thing:
        """Return what is known of a state. Raises ApiError where there is none, or for another base."""
        try:
            found = self._records.get("state", tenant, name)
        except ApiError as error:
            raise replace(error, param="model") from None
        if found["base"] != self._lm.fingerprint:
            told = f"state {name} was made for other weights than those of {self._name} now: make it anew"
            raise bad(told, "model", "other_base")
        return found

    def load(self, tenant: str, name: str) -> Adapted:
        """Return a state from the disk. Raises ApiError, Damaged."""
        found = self.known(tenant, name)
        method_specs([found["method"]])  # whose classes are known from then on
        method: Method[Any] = parse(Method, found["settings"], "method")
        path = self._at.of(tenant, "states") / name
        try:
            return Adapted(method, load_state(type(method.init(self._lm)), path, self._lm))
        except BadInput:  # it was deleted this moment
            raise not_found(f"state {name[:60]!r}", "model") from None

    def exported(self, tenant: str, name: str, folder: Path) -> Adapted:
        """Write a state as a peft adapter into a folder. Raises BadInput where it is none."""
        found = self.load(tenant, name)
        adapted = found.method.adapted([found.state], self._lm)
        export_peft(only_delta(found.state, adapted), self._lm, folder)
        return found

    def _get(self, tenant: str, asked: Thing) -> Thing:
        return self._told(self._records.get("state", tenant, asked["id"]))

    def _list(self, tenant: str, asked: Thing) -> list[Thing]:
        where = asked["limit"], asked["after"], asked["newest_first"]
        return [self._told(each) for each in self._records.page("state", tenant, None, *where)]

    def _delete(self, tenant: str, asked: Thing) -> Thing:
        self._records.get("state", tenant, asked["id"])
        return self._shelf.delete("state", tenant, asked["id"])

    def _adapter(self, tenant: str, asked: Thing) -> str:
        """Return the path of a packed adapter, which whoever sends it deletes."""
        path = self._at.of("", "uploads") / minted("upload")
        folder = path.with_suffix(".adapter")
        try:
            self.exported(tenant, asked["id"], folder)
            with zipfile.ZipFile(path, "w") as packed:
                for each in sorted(folder.iterdir()):
                    packed.write(each, each.name)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return str(path)

    def _told(self, found: Thing) -> Thing:
        sound = found["base"] == self._lm.fingerprint
        return {**found, "model": f"{self._name}@{found['id']}", "answers": sound}
