"""Installs PyTorch into the environment that runs this, and says beforehand what it will fetch.

    python tools/install_torch.py 2.13.0                  # without CUDA where there is no NVIDIA GPU
    python tools/install_torch.py 2.13.0 --build cuda     # or cpu; --say only says

For Linux the usual package index has PyTorch with CUDA alone, some thirty packages; the build without is
there only if somebody put it beside (a folder of wheels, a mirror), else in PyTorch's own index. So which one
an installation gets depends on what lies where, for one version of Python and not for another, unless it is
asked for by name: "2.13.0+cpu". That is what this does. It needs pip and nothing else.
"""

import argparse
import json
import os
import platform
import shutil
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OTHER = "TORCH=cuda takes the build for NVIDIA GPUs, TORCH=cpu the one without, as in `make demo TORCH=cpu`"


class Plan(NamedTuple):
    """What pip would do: its arguments, and the name, version and address of each package."""

    arguments: tuple[str, ...]
    packages: list[tuple[str, str, str]]


def has_gpu() -> bool:
    """Return whether an NVIDIA GPU can be used here."""
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    program = shutil.which("nvidia-smi")
    return bool(program) and "GPU" in subprocess.run([program, "-L"], capture_output=True, text=True).stdout


def plan(*arguments: str) -> Plan | None:
    """Return what `pip install` with these arguments fetches into an empty environment; None if it cannot."""
    asked = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", *arguments]
    ran = subprocess.run([sys.executable, "-m", "pip", *asked], capture_output=True, text=True)
    if ran.returncode:
        return None
    found = json.loads(ran.stdout)["install"]
    each = [(one["metadata"], one["download_info"]["url"]) for one in found]
    return Plan(arguments, [(about["name"], about["version"], url) for about, url in each])


def choose(number: str, build: str) -> tuple[Plan | None, str]:
    """Return what to install, and why, in a line for people; no plan where it is not to be had."""
    plain, with_cuda, bare = f"torch=={number}", f"torch==={number}", f"torch=={number}+cpu"
    if platform.system() != "Linux":
        return plan(plain), f"torch {number}: there is one build for {platform.system()}"
    if build == "cuda" or (build == "auto" and has_gpu()):
        reason = "as TORCH=cuda says" if build == "cuda" else "for the NVIDIA GPU here"
        return plan(with_cuda), f"torch {number} with CUDA, {reason}"
    reason = "as TORCH=cpu says" if build == "cpu" else "for there is no NVIDIA GPU here"
    wait = ("--retries", "1", "--timeout", "15")
    found = plan(bare) or plan(bare, "--extra-index-url", CPU_INDEX, *wait)
    if found or build == "cpu":
        return found, f"torch {number} without CUDA, {reason}"
    python = ".".join(platform.python_version_tuple()[:2])
    return plan(with_cuda), (
        f"torch {number} with CUDA, though there is no NVIDIA GPU here, for the build without is neither "
        f"in the package index for Python {python} nor to be reached at {CPU_INDEX} "
        "(TORCH=cpu would stop here)"
    )


def size(url: str) -> int | None:
    """Return how many bytes a package has, None where nobody says."""
    if url.startswith("file:"):
        return Path(urllib.request.url2pathname(url.removeprefix("file://"))).stat().st_size
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
    try:
        asked = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(asked, timeout=20, context=context) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def told(packages: Sequence[tuple[str, str, str]]) -> str:
    """Return what is fetched, as people say it: how many packages, how many bytes, the largest."""
    sizes = {name: size(url) for name, _, url in packages}
    known = {name: each for name, each in sizes.items() if each is not None}
    largest = sorted(known, key=lambda name: -known[name])[:3]
    count = f"{len(sizes)} {'package' if len(sizes) == 1 else 'packages'}"
    if not known:
        return f"{count} of unknown size"
    least = "at least " if len(known) < len(sizes) else ""
    return (
        f"{count}, {least}{amount(sum(known.values()))} to fetch, less what pip has kept; "
        f"the largest: {', '.join(f'{name} {amount(known[name])}' for name in largest)}"
    )


def amount(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def installed() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def main() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("number", metavar="VERSION", help="such as 2.13.0")
    parser.add_argument("--build", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--say", action="store_true", help="say what would be installed, and install nothing")
    arguments = parser.parse_args()
    number, there = arguments.number, installed()
    if arguments.build == "auto" and there.split("+")[0] == number:
        return print(f"torch {there} is installed already")
    chosen, reason = choose(number, arguments.build)
    if chosen is None:
        return f"{reason}: not found in the package index{asked_where(arguments.build)}; {OTHER}"
    print(f"{reason}.\n{told(chosen.packages)}.\n{OTHER}.", flush=True)
    if arguments.say:
        return None
    anew = ["--force-reinstall", "--no-deps"] if there and there != dict_of(chosen)["torch"] else []
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    for more in ([anew] if anew else []) + [[]]:
        if code := subprocess.run([*pip, *more, *chosen.arguments]).returncode:
            return code
    return None


def asked_where(build: str) -> str:
    return f" and not to be reached at {CPU_INDEX}" if build == "cpu" else ""


def dict_of(chosen: Plan) -> dict[str, str]:
    return {name.lower(): number for name, number, _ in chosen.packages}


if __name__ == "__main__":
    sys.exit(main())
