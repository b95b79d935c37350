"""Write the tables of docs/trainable.md from what each kind does on a tiny model: `python
docs/make_trainable.py`.

A test compares. The tiny models are those of the tests.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import toys
from uptake import methods, settings
from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import Trainable
from uptake.errors import UptakeError
from uptake.export import export_peft
from uptake.lm.causal import Causal
from uptake.lm.side_by_side import SideBySide, side_by_side
from uptake.methods.contract.composed import Together
from uptake.methods.contract.learned import Learned

PAGE = Path(__file__).with_name("trainable.md")
BEGIN, END = "<!-- {}: made by docs/make_trainable.py -->", "<!-- end of {} -->"
KINDS = ("all", "top", "named", "lora", "ia3", "prompt", "compacter", "tarp")
PROMPT = "prompt(tokens=3)"  # the toys' window is short


def page() -> str:
    """Return the page with its tables made anew."""
    text = PAGE.read_text(encoding="utf8")
    for name, lines in (("algebra", algebra()), ("methods", by_method())):
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{after}"
    return text


def algebra() -> Iterator[str]:
    """Yield the table of what can be done with the delta of each kind."""
    yield "| `trainable=` | adds | scales, subtracts | leaves as a peft adapter | many rows in one pass |"
    yield "|---|---|---|---|---|"
    lm = toys.lm()
    for kind in KINDS:
        delta = _trained(lm, kind)
        cells = [_can(lambda d=delta: d + d), _can(lambda d=delta: -d), _exported(lm, delta)]
        together = "yes" if isinstance(side_by_side(lm, [delta, delta]), SideBySide) else "one by one"
        yield f"| `{kind}` | {' | '.join([*cells, together])} |"


def by_method() -> Iterator[str]:
    """Yield the table of which method takes which kind, and the reasons where one does not."""
    reasons: dict[str, int] = {}

    def cell(name: str, kind: str) -> str:
        method = methods.find(name).method
        with suppress(settings.NoSuchSetting):
            method = settings.apply(method, "weights=untrained")
        try:
            method = settings.apply(method, f"trainable={PROMPT if kind == 'prompt' else kind}")
            if isinstance(method, Together):
                method.check(toys.lm())
        except UptakeError as error:
            return f"no ({reasons.setdefault(str(error), len(reasons) + 1)})"
        if isinstance(method, Learned) and name != "fwl":  # whose build is long, and says no more
            try:
                method.fresh(toys.lm())
            except UptakeError as error:
                return f"untrained ({reasons.setdefault(str(error), len(reasons) + 1)})"
        return "yes"

    yield f"| method | {' | '.join(f'`{kind}`' for kind in KINDS)} |"
    yield "|" + "---|" * (len(KINDS) + 1)
    for name in (*methods.names(), "ttt-nn+in-context", "ttt-nn+retro", "in-context/ttt-nn"):
        with suppress(settings.NoSuchSetting):
            settings.find(methods.find(name).method, "trainable")
            yield f"| `{name}` | {' | '.join(cell(name, kind) for kind in KINDS)} |"
    yield ""
    yield from (f"{number}. {reason}." for reason, number in reasons.items())


def _trained(lm: Causal, kind: str) -> Delta:
    chosen = settings.parse(Trainable, PROMPT if kind == "prompt" else kind, "trainable")
    copy = chosen.copy(lm.module, Delta(lm.fingerprint), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in copy.parameters.values():
            parameter.add_(0.01)
    return copy.delta()


def _can(work: object) -> str:
    try:
        work()  # type: ignore[operator]
    except UptakeError:
        return "no"
    return "yes"


def _exported(lm: Causal, delta: Delta) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = export_peft(delta, lm, Path(folder) / "adapter")
        except UptakeError:
            return "no"
        return str(json.loads((made / "adapter_config.json").read_text())["peft_type"])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf8")
