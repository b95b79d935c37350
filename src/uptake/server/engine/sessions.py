"""Sessions: texts that are read in order, with a way to adapt."""

from uptake.server.engine.files import Act
from uptake.server.engine.forgetting import Shelf
from uptake.server.engine.reading import Named, passages, size
from uptake.server.errors import not_found
from uptake.server.records import Thing


class Sessions:
    """What was taken up, session by session."""

    def __init__(self, shelf: Shelf) -> None:
        self._records, self._shelf = shelf.records, shelf
        self.acts: dict[str, Act] = {
            "session_add": self._add,
            "session_get": self._get,
            "session_take": self._take,
            "session_drop": self._drop,
            "session_delete": self._delete,
        }

    def read(self, tenant: str, name: str) -> tuple[Thing, list[Named]]:
        """Return how a session adapts, and the texts and edits that it has read with their ids, in order."""
        found = self._get(tenant, {"id": name})
        return found["uptake"], [(each["id"], each.get("edit") or each["text"]) for each in found["texts"]]

    def _add(self, tenant: str, asked: Thing) -> Thing:
        return self._records.make("session", tenant, {"uptake": asked["uptake"]})

    def _get(self, tenant: str, asked: Thing) -> Thing:
        found = self._records.get("session", tenant, asked["id"])
        texts = self._records.page("text", tenant, asked["id"], 1 << 30, newest_first=False)
        kept = [
            {name: each[name] for name in ("id", "edit", "text") if each.get(name) is not None}
            for each in texts
        ]
        return {**found, "texts": kept}

    def _take(self, tenant: str, asked: Thing) -> Thing:
        self._records.get("session", tenant, asked["id"])
        if not all(isinstance(one, str) for one in asked["texts"]):
            # Edits alone can be impossible, or contradict what was taken before.
            before = self.read(tenant, asked["id"])[1]
            passages([("", one) for one in asked["texts"]], "texts", before)
        sizes = [size(one) for one in asked["texts"]]
        self._records.room(tenant, sum(sizes), asked["quota"], "texts")
        made = [
            self._records.make(
                "text", tenant, {"text": one} if isinstance(one, str) else {"edit": one}, asked["id"], bytes_
            )
            for one, bytes_ in zip(asked["texts"], sizes, strict=True)
        ]
        return {"id": asked["id"], "passages": [each["id"] for each in made]}

    def _drop(self, tenant: str, asked: Thing) -> Thing:
        found = self._records.get("text", tenant, asked["passage"])
        if found["parent"] != asked["id"]:
            raise not_found(f"passage {asked['passage'][:60]!r}")
        return self._shelf.delete("text", tenant, asked["passage"])

    def _delete(self, tenant: str, asked: Thing) -> Thing:
        self._records.get("session", tenant, asked["id"])
        return self._shelf.delete("session", tenant, asked["id"])
