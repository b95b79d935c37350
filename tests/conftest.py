"""What every test shares: few threads, no network, and the shared data where there is any."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two threads in each of two processes get in each other's way, FAISS's above all. Set before any of them is
# loaded, and handed on to the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test is about time: on a busy machine an example may take as long as it likes. The same tests read the
# same examples everywhere, so that what passes here passes elsewhere; `make test-all` draws new ones.
settings.register_profile("new", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("new"), derandomize=True)
settings.load_profile("same")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("UPTAKE_SHARED", "../shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set UPTAKE_SHARED to the folder that holds it")
    return folder
