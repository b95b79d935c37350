"""The report as one HTML file that opens from a disk, with no network and no script needed to read it.

view.py turns results into words, figures and charts; page.html.jinja places them; page.css colours
them; page.js lets a reader choose whose gains colour the text. All text is escaped by the template.
"""

import base64
import hashlib
from pathlib import Path

from uptake.plain import write_whole
from uptake.results import Results

# What would hide, reorder or garble text is shown for what it is.
_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"} | {0x7F: "\u2421"}
_TURNERS = {code: f"\u27e8U+{code:04X}\u27e9" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def write_page(results: Results, path: str | Path) -> None:
    """Write the results as one self-contained HTML file. Raises BadInput where `path` cannot be written."""
    write_whole(path, page(results).encode())


def page(results: Results) -> str:
    """Return the HTML of the results; any text in them is shown, none of it is markup."""
    import jinja2
    from markupsafe import Markup

    from uptake.page.view import view

    home = Path(__file__).parent
    style, script = ((home / name).read_text(encoding="utf8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(home),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The browser runs this one script and no other, whatever a text might smuggle in.
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template("page.html.jinja").render(
        view(results), style=Markup(style), script=Markup(script), allowed=allowed
    )
    return visible(html)


def visible(text: str) -> str:
    """Return `text` with control characters as pictures, text turners by name, lone surrogates replaced."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.translate(_PICTURES | _TURNERS)
