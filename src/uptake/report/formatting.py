"""Figures as people read them: the table, the page and the command line say them the same way."""

from collections.abc import Iterable, Sequence


def number(value: float | None, digits: int, style: str = "") -> str:
    """Return a number in `digits` decimals with a true minus sign; nothing for None."""
    return "" if value is None else f"{value:{style}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as "8.8 %"; nothing for None."""
    return "" if share is None else f"{number(100 * share, digits)}\N{NO-BREAK SPACE}%"


def points(share: float | None) -> str:
    """Return a difference of shares in percentage points, "+5.1"; nothing for None."""
    return "" if share is None else number(100 * share, 1, "+")


ONE_OFF = "one-off seconds CPU time of preparation, such as opening or building an index"


def one_off(seconds: float | None) -> str:
    """Return seconds of preparation; nothing where they round to none."""
    return number(seconds, 1) if seconds and seconds >= 0.05 else ""


def size(count: int | None) -> str:
    """Return bytes in a unit people read: "1.2 GB"; nothing for None."""
    if count is None:
        return ""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def ends(interval: Sequence[float] | None) -> str:
    """Return an interval of shares as " [6.1, 11.2]", in percent; nothing for None."""
    return f" [{', '.join(number(100 * end, 1) for end in interval)}]" if interval else ""


def many(count: int, one: str, more: str) -> str:
    """Return "1 query" or "1,200 queries"."""
    return f"{count:,} {one if count == 1 else more}"


def filled(lines: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Return lines of a table without the headings under which nothing stands."""
    lines = list(lines)
    said = [heading for heading in lines[0] if any(line[heading] for line in lines)] if lines else []
    return [{heading: line[heading] for heading in said} for line in lines]


def not_scored(lost: int, scored: int, of: str = "") -> str:
    """Return the line on bytes that a tokenizer does not give back; nothing where there are none."""
    if not lost:
        return ""
    share = percent(lost / (lost + scored))
    return (
        f"not scored, because the tokenizer does not give them back: {lost:,} of {lost + scored:,} bytes{of} "
        f"({share}); do not compare these figures with another model's"
    )
