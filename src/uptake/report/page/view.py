"""What every page shows, as the template's variables: results in, text, figures and charts out."""

from typing import Any

from uptake.codec import plain
from uptake.report.page.layout import TokensSection, colours
from uptake.report.results import Results
from uptake.report.summary import summary


def view(results: Results) -> dict[str, Any]:
    """Return the template's variables. Text is as it came: the template escapes it."""
    figures = summary(results)
    kind = results.kind
    return {
        "model": str(results.header.model.get("name", "the model")),
        "page": kind.page(results, figures),
        "lines": kind.lines(figures),
        "colours": colours(figures["methods"]),
        "samples": results.samples,
        "is_tokens": lambda section: isinstance(section, TokensSection),
        "facts": {
            "Protocol": figures["protocol"],
            "Model": figures["model"],
            "Store": figures["store"],
            "Versions": figures["versions"],
        },
        "settings": {method: plain(values) for method, values in figures["settings"].items()},
        "notes": figures["notes"],
        "failures": kind.failures(figures),
        "figures": figures,
    }
