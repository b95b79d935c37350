"""A Ray cluster of several nodes within one machine, small and silent, and ways to take parts of it away."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest


class Nodes:
    """A head without processors, and nodes of one each, so that what one of them held fits on no other."""

    def __init__(self):
        # Sockets lie below it, and their paths may not be long.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        (self._folder / "ray").mkdir()
        os.environ |= {
            "RAY_TMPDIR": str(self._folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "OMP_NUM_THREADS": "1",
        }
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self.cache = self._folder / "cache"

    def add(self):
        """Start another node, whose processes have a cache of their own."""
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("UPTAKE_CACHE", str(self.cache))
            return self._cluster.add_node(num_cpus=1, object_store_memory=80_000_000)

    def lose(self, node, pids):
        """Kill a node; return when the processes `pids` on it are gone too."""
        self._cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: not any(alive(pid) for pid in pids))

    def end(self):
        import ray

        ray.shutdown()
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def alive(pid):
    """Tell whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true, seconds=60):
    """Return once `true()` is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became so"
        time.sleep(0.02)
