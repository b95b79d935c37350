"""A shard that a test can hold up in the middle of a search, and see there."""

from pathlib import Path

from clusters import wait_until
from uptake.store.cluster.shard import Shard


class Gated(Shard):
    """Searches once the gate of its replica is open; while it waits it says so."""

    def __init__(self, place, replica):
        super().__init__(place, replica)
        self.gate = Gate(Path(place.store).parent, replica)

    def search(self, *arguments):
        self.gate.pass_through()
        return super().search(*arguments)


class Gate:
    """The gate of one replica: a file in a folder that all processes see."""

    def __init__(self, folder, replica):
        self._shut, self._waits = (folder / f"{name}-{replica}" for name in ("shut", "waits"))

    def shut(self):
        self._waits.unlink(missing_ok=True)
        self._shut.touch()

    def open(self):
        self._shut.unlink()

    def pass_through(self):
        """Return once it is open."""
        while self._shut.exists():
            self._waits.touch()
            wait_until(lambda: not self._shut.exists())

    def held(self):
        """Return once a search waits there."""
        wait_until(self._waits.exists)
