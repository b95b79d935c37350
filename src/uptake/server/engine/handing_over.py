"""Kept states handed over to servers elsewhere, those alone that whoever runs this one has named."""

import contextlib
import shutil
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from uptake.cache import sync
from uptake.errors import BadInput, Mismatch
from uptake.hand_over import adapter_name, hand_over, target
from uptake.lm.causal import Causal
from uptake.server.engine.files import Act
from uptake.server.engine.forgetting import Shelf
from uptake.server.engine.keeping import KeptStates
from uptake.server.engine.states import Adapted
from uptake.server.errors import ApiError, bad
from uptake.server.records import Thing, minted


class HandingOver:
    """The servers that adapters may go to. What waits for them does so in a thread of its own."""

    def __init__(self, shelf: Shelf, states: KeptStates, lm: Causal, targets: dict[str, str]) -> None:
        """`targets` are KIND=URL by their names."""
        self._shelf, self._states, self._lm = shelf, states, lm
        self._targets = {name: target(where) for name, where in targets.items()}
        self._thread = ThreadPoolExecutor(1, "handing over")
        self.acts: dict[str, Act] = {"state_hand_over": self._hand_over}

    def submit(self, do: Callable[[], None]) -> None:
        """Do something in the thread that waits."""
        self._thread.submit(do)

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def unload(self, name: str, adapter: str) -> bool:
        """Let a target drop an adapter; return whether it has."""
        try:
            self._targets[name].unload(adapter)
        except Exception as error:  # whatever it is, the client is told what is left
            traceback.print_exception(error)
            return False
        return True

    def _hand_over(self, tenant: str, asked: Thing) -> dict[str, Any]:
        """Let a target load a state as an adapter, and make sure that it answers with it."""
        name, to = asked["id"], self._targets.get(asked["target"])
        state = self._shelf.records.get("state", tenant, name)
        if to is None:
            known = ", ".join(sorted(self._targets)) or "none: whoever runs this server names them"
            raise bad(f"target {asked['target'][:60]!r}: there are {known}", "target")
        folder = self._shelf.at.of(tenant, "adapters") / name
        found = self._states.load(tenant, name) if folder.exists() else self._exported(tenant, name, folder)
        adapted = found.method.adapted([found.state], self._lm)
        texts = [passage.text for passage in found.state.passages]
        here = {"target": asked["target"], "name": adapter_name(folder)}
        records = self._shelf.records
        # Kept before it is loaded there: killed meanwhile, it is unloaded with the state all the same.
        records.change("state", tenant, name, handing=[here])
        try:
            handed = hand_over(to, folder, adapted, self._lm, texts)
        except (BadInput, Mismatch) as error:
            with contextlib.suppress(ApiError):  # the state was deleted meanwhile
                records.change("state", tenant, name, handing=[])
            # No address and no path of the server's is the client's.
            told = str(error).replace(to.url, asked["target"]).replace(str(folder), "the adapter")
            raise ApiError(502, told, "hand_over_failed", "target", retry=False) from None
        try:
            others = [each for each in state.get("handed", []) if each != here]
            records.change("state", tenant, name, handed=[*others, here], handing=[])
        except ApiError:  # the state was deleted meanwhile
            self.unload(asked["target"], handed.name)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return {**here, "from_adapted": handed.from_adapted, "from_base": handed.from_base}

    def _exported(self, tenant: str, name: str, folder: Path) -> Adapted:
        """Write a state as an adapter, whole or not at all. Raises BadInput where it is none."""
        draft = self._shelf.at.of("", "uploads") / minted("upload")  # swept at the next start
        try:
            found = self._states.exported(tenant, name, draft)
            draft.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return found
