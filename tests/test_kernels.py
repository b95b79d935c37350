"""Kernels that a processor makes for each length of a text do not fill the memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uptake import kernels

DEMO = Path(__file__).parents[1] / "examples" / "demo-model"
# What passages of eighty lengths ask of a layer, there and back; prints by how many MB the process grew.
LENGTHS = """
import ctypes
import torch

def anonymous():
    try:
        ctypes.CDLL(None).malloc_trim(0)
        lines = open("/proc/self/status").read().splitlines()
    except (OSError, AttributeError):
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

torch.set_num_threads(1)
shapes = (576, 1536), (1536, 576)
layers = [torch.nn.Linear(*shape, bias=False).to(torch.bfloat16) for shape in shapes]

def passage(length):
    text = torch.ones(1, length, 576, dtype=torch.bfloat16, requires_grad=True)
    layers[1](layers[0](text)).sum().backward()

passage(100)
before = anonymous()
for length in range(120, 160):
    passage(length)
print(anonymous() - before)
"""


def said(code: str, **more: str) -> str:
    unset = {name: value for name, value in os.environ.items() if name not in kernels.LIMITS}
    return subprocess.run(
        [sys.executable, "-c", code], env={**unset, **more}, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "loading",
    [
        f"import uptake; uptake.load({str(DEMO)!r})",
        f"from uptake.text.encoders import make_encoder; make_encoder('lm:' + {str(DEMO)!r})",
    ],
    ids=["a model", "an encoder"],
)
def test_texts_of_many_lengths_do_not_fill_the_memory(loading: str) -> None:
    # Where a processor computes bfloat16 itself, these forty took 3 MB each.
    assert int(said(f"{loading}\n{LENGTHS}")) < 60


def test_what_the_environment_says_stays() -> None:
    first, *others = kernels.LIMITS
    asked = f"print(*map(os.environ.get, {kernels.LIMITS!r}))"
    code = f"import os; import uptake; uptake.load({str(DEMO)!r}); {asked}"
    assert said(code, **{first: "7"}).split() == ["7", *[str(kernels.KEPT)] * len(others)]
