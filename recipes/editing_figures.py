"""What `editing.py` keeps of an editor's results: never those of prompts that were not answered."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from uptake.errors import BadInput
from uptake.evaluation.protocols.edits import ORACLE, OTHER
from uptake.report.edited.rows import Told
from uptake.report.results import Results

COLUMNS = (
    "success", "tight", "loose", "forced", "same", "leak", "ripple", "kl", "bits_change", "edit_seconds",
)  # fmt: skip


def refuse_unasked(name: str, results: Results) -> None:
    """Raise BadInput where there was no answer to some prompts, as on a device whose memory is full."""
    reasons = Counter(row.failed for row in results.rows if isinstance(row, Told) and row.failed)
    if reasons:
        ((reason, _),) = reasons.most_common(1)
        raise BadInput(
            f"{name}: {reasons.total():,} prompts were not answered, most often {reason[:160]!r}: run it "
            "again, with a smaller --batch where memory was full"
        )


def thousand(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what editors reach after a thousand edits and more: the four figures that count together."""
    rows = []
    for key, run in runs.items():
        oracle = run["editors"].get(ORACLE, {})
        if run["edits"] < 1000:
            continue
        for method, told in run["editors"].items():
            if method not in (ORACLE, OTHER):
                rows.append(
                    {
                        "method": method,
                        "run": key,
                        "success": told["success"],
                        "tight_paraphrase": told["tight"],
                        "oracle_tight_paraphrase": oracle.get("tight"),
                        "leak": told["leak"],
                        "bits_change": told["bits_change"],
                    }
                )
    return rows


def table(editors: Mapping[str, Any]) -> list[str]:
    """Return a line an editor, the columns' names first."""
    lines = [f"{'':16}" + "".join(f"{column:>13}" for column in COLUMNS)]
    for name, told in editors.items():
        cells = ("" if told[column] is None else f"{told[column]:.3f}" for column in COLUMNS)
        lines.append(f"{name:16}" + "".join(f"{cell:>13}" for cell in cells))
    return lines
