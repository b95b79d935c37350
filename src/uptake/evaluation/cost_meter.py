"""What work costs: the one place where an evaluation measures seconds and memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from uptake.evaluation.memory import peak_bytes, reset_peak
from uptake.methods.contract.spending import cpu_seconds


@dataclass
class CostMeter:
    """Measures stretches of work in this process; `peaks` is the most bytes each method has held."""

    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def seconds(self, into: list[float]) -> Iterator[None]:
        """Append the CPU seconds that the block takes, over all threads, to `into`."""
        with cpu_seconds(into):
            yield

    @contextmanager
    def memory(self, method: str) -> Iterator[None]:
        """Note the most memory that the block holds under the name of a method."""
        self.start()
        try:
            yield
        finally:
            self.note(method)

    def start(self) -> None:
        """Begin a stretch of work whose memory will be noted."""
        reset_peak()

    def note(self, method: str) -> None:
        """Note the most memory held since the start under the name of a method."""
        self.peaks[method] = max(self.peaks.get(method, 0), peak_bytes())
