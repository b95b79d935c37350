"""When something is done again in a training: every so many steps, or as Atlas writes it, by stretches."""

import re
from dataclasses import dataclass

from uptake.errors import BadInput

_STRETCH = re.compile(r"(\d+)-(\d+):(\d+)")


@dataclass(frozen=True)
class Schedule:
    """Stretches of steps, from the first to before the second, in which it is done every so many steps."""

    stretches: tuple[tuple[int, float, int], ...] = ()

    @classmethod
    def of(cls, text: str) -> "Schedule":
        """Read `50`, `0-100:50,100-1000:200`, or "" for never; raises BadInput for anything else."""
        if not text:
            return cls()
        if re.fullmatch(r"\d+", text) and int(text) > 0:
            return cls(((0, float("inf"), int(text)),))
        parts = [_STRETCH.fullmatch(part.strip()) for part in text.split(",")]
        found = tuple((int(p[1]), float(p[2]), int(p[3])) for p in parts if p)
        if len(found) < len(parts) or any(last <= first or every < 1 for first, last, every in found):
            raise BadInput(
                f"refresh {text!r}: write how many steps lie between two, such as 50, or by stretches, such "
                "as 0-100:50,100-1000:200; nothing for never"
            )
        return cls(found)

    def due(self, step: int) -> bool:
        """Whether it is done before step `step`, which counts from 0; never before the first."""
        return step > 0 and any(
            first <= step < last and step % every == 0 for first, last, every in self.stretches
        )
