"""The report as one HTML file that opens from a disk, with no network and no script needed to read it.

The kind of the results says what stands on it (layout.py), view.py gathers that, page.html.jinja places
it, chart.css and page.css colour it; page.js lets a reader choose whose gains colour
the text. All text is escaped by the template.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uptake.report.results import Results
from uptake.sealed import write_whole

HOME = Path(__file__).parent

# What would hide, reorder or garble text is shown for what it is.
_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"} | {0x7F: "\u2421"}
_TURNERS = {code: f"\u27e8U+{code:04X}\u27e9" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def write_page(results: Results, path: str | Path) -> None:
    """Write the results as one self-contained HTML file. Raises BadInput where `path` cannot be written."""
    write_whole(path, page(results).encode())


def page(results: Results) -> str:
    """Return the HTML of the results; any text in them is shown, none of it is markup."""
    from uptake.report.page.view import view

    return render("page.html.jinja", view(results))


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Return the HTML of a template of this folder, with the style and the script that all pages share."""
    import jinja2
    from markupsafe import Markup

    style, script = _file("chart.css") + _file("page.css"), _file("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HOME),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The browser runs this one script and no other, whatever a text might smuggle in.
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template(template).render(
        variables, style=Markup(style), script=Markup(script), allowed=allowed
    )
    return visible(html)


def write_chart(svg: str, path: str | Path) -> None:
    """Write one chart of chart.py as an SVG file, in the page's light colours."""
    style = f"<style>svg {{ font-family: sans-serif; }}\n{_file('chart.css')}</style>"
    paper = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    opening, rest = svg.split(">", 1)
    whole = f'{opening} xmlns="http://www.w3.org/2000/svg">{style}{paper}{rest}\n'
    write_whole(path, whole.encode())


def visible(text: str) -> str:
    """Return `text` with control characters as pictures, text turners by name, lone surrogates replaced."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.translate(_PICTURES | _TURNERS)


def _file(name: str) -> str:
    return (HOME / name).read_text(encoding="utf8")
