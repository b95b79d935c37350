"""A Ray cluster of several nodes within one machine, small and silent, and ways to take parts of it away."""

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from stubs import StubEncoder
from uptake.store.cluster import build
from uptake.store.passages import table
from uptake.text.types import stable_hash


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
        self.caches = {}  # node id -> where its processes keep what they derive
        self._nodes = []
        self._started = 0

    def have(self, count):
        """Start nodes until there are so many; return them. Each has a cache of its own."""
        while len(self._nodes) < count:
            with pytest.MonkeyPatch.context() as environment:
                self._started += 1
                cache = self._folder / "cache" / f"{self._started}"
                environment.setenv("UPTAKE_CACHE", str(cache))
                node = self._cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
                self._nodes.append(node)
                self.caches[node.node_id] = cache
        return list(self._nodes)

    def lose(self, node, pids):
        """Kill a node; return when the processes `pids` on it are gone too."""
        self._nodes.remove(node)
        del self.caches[node.node_id]
        self._cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: not any(alive(pid) for pid in pids))

    def lose_one_with(self, kind):
        """Kill a node on which an actor of this class runs."""
        raylets = self._raylets()
        pid = next(self._pids_of(kind))
        self.lose(raylets[parent(pid)], [pid])

    def kill_one_with_open(self, kind, part):
        """Kill an actor of this class while it has a file open whose path has `part` in it; return when."""
        killed = []

        def caught():
            for pid in self._pids_of(kind):
                if any(part in path for path in open_files(pid)):
                    os.kill(pid, signal.SIGSTOP)
                    if any(part in path for path in open_files(pid)):  # still
                        killed.append(time.time())
                    os.kill(pid, signal.SIGKILL if killed else signal.SIGCONT)
                if killed:
                    return True
            return False

        wait_until(caught, pause=0.0005)
        return killed[0]

    def _raylets(self):
        return {node.all_processes["raylet"][0].process.pid: node for node in self._nodes}

    def _pids_of(self, kind):
        raylets = self._raylets()
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return (pid for pid in pids if title(pid).startswith(f"ray::{kind}") and parent(pid) in raylets)

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


def open_files(pid):
    """Return the paths of the files that a process has open; none where it is gone."""
    found = []
    with contextlib.suppress(OSError):
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it has been closed meanwhile
                found.append(str(handle.readlink()))
    return found


def wait_until(true, seconds=300, pause=0.02):
    """Return once `true()` is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became so"
        time.sleep(pause)


class Witness(StubEncoder):
    """An encoder that writes down what each process embeds, and dies once where it is told to.

    The process that takes away FOLDER/deadly, where the word in it says "embedding" or "noting" (when
    its fragment is written), is killed then; FOLDER/died says at what time. With the word "full" it
    finds the disk full when it writes.
    """

    def __init__(self, folder, dimensions=16):
        super().__init__(dimensions)
        self.folder = folder

    def embed(self, texts):
        self._meet_death()
        vectors = super().embed(texts)
        with (self.folder / f"{os.getpid()}").open("a") as file:
            file.writelines(f"{hash_of(text)}\n" for text in texts)
        return vectors

    def _meet_death(self):
        try:
            (self.folder / "deadly").rename(self.folder / f"deadly-{os.getpid()}")
        except FileNotFoundError:
            return
        word = (self.folder / f"deadly-{os.getpid()}").read_text()
        if word == "noting":
            build.write_json = lambda path, data: self._die()
        elif word == "full":
            table.write_fragments = _no_room
        else:
            self._die()

    def _die(self):
        (self.folder / "died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    def seen(self):
        """Return what every text that a worker embedded hashes to, each as often as it was."""
        files = [f for f in self.folder.iterdir() if f.name.isdigit() and f.name != str(os.getpid())]
        return [line for file in files for line in file.read_text().splitlines()]


def _no_room(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hash_of(text):
    return f"{stable_hash(text):016x}"
