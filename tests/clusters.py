"""A Ray cluster of several nodes within one machine, small and silent, and ways to take parts of it away."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from stubs import StubEncoder
from uptake.text import stable_hash


@pytest.fixture(scope="module", name="nodes")
def nodes_fixture():
    """A cluster of a module's own."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("RAY_TMPDIR", "OMP_NUM_THREADS", "PYTHONPATH"):
            environment.setenv(name, os.environ.get(name, ""))  # put back as they were at the end
        made = Nodes()
        yield made
        made.end()


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
            "RAY_worker_niceness": "0",  # on a busy machine tests would wait for minutes
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
        head["_system_config"] = {"metrics_report_interval_ms": 500}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self.cache = self._folder / "cache"
        self._nodes = []

    def have(self, count):
        """Start nodes until there are so many; return them. Their processes have a cache of their own."""
        while len(self._nodes) < count:
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv("UPTAKE_CACHE", str(self.cache))
                self._nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=80_000_000))
        return list(self._nodes)

    def lose(self, node, pids):
        """Kill a node; return when the processes `pids` on it are gone too."""
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: not any(alive(pid) for pid in pids))

    def lose_one_with(self, kind):
        """Kill a node on which an actor of this class runs."""
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in self._nodes}
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        pid = next(pid for pid in pids if title(pid).startswith(f"ray::{kind}") and parent(pid) in raylets)
        self.lose(raylets[parent(pid)], [pid])

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


def title(pid):
    """Return what a process calls itself; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf8", "replace")
    except OSError:
        return ""


def parent(pid):
    """Return the process that has started this one: a node's raylet, if it is a worker."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until(true, seconds=300, pause=0.02):
    """Return once `true()` is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became so"
        time.sleep(pause)


class Witness(StubEncoder):
    """An encoder that writes down what each process embeds, and dies once where it is told to.

    The process that takes away FOLDER/deadly dies with what it has in hand.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def embed(self, texts):
        if (self.folder / "deadly").exists():
            (self.folder / "deadly").rename(self.folder / "died")
            os._exit(1)
        vectors = super().embed(texts)
        with (self.folder / f"{os.getpid()}").open("a") as file:
            file.writelines(f"{hash_of(text)}\n" for text in texts)
        return vectors

    def seen(self):
        """Return what every text that a worker embedded hashes to, each as often as it was."""
        files = [f for f in self.folder.iterdir() if f.name.isdigit() and f.name != str(os.getpid())]
        return [line for file in files for line in file.read_text().splitlines()]


def hash_of(text):
    return f"{stable_hash(text):016x}"
