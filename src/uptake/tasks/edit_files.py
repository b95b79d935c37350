"""Edits read from files: what cannot be made is left out, counted by reason and named.

Only a file that is not there or holds no edit at all is an error. It knows nothing of models.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from uptake import arguments
from uptake.errors import BadInput
from uptake.tasks.edit_forms import counterfact, form_of, zsre
from uptake.tasks.edits import Edit, Probe, prompt_key, wanted
from uptake.tasks.json_records import encodes, records
from uptake.text.files import SkipError, Skipped, shown
from uptake.text.records import Unusable, name_of
from uptake.text.tokenizer import Tokenizer

Contradictions = Literal["refuse", "last"]
_SURROGATE = "lone surrogate; write the character itself, in UTF-8"
_EXPECTED = 'write {"id": "...", "prompt": "...", "target": "..."} a line'
_TEXTS = ("prompt", "target", "subject", "old", "relation")
_ANSWERS = ("target", "old")  # of these a number is what it looks like


def read_edits(
    paths: str | Path | Sequence[str | Path],
    skipped: Skipped | None = None,
    contradicting: Contradictions = "refuse",
) -> tuple[Edit, ...]:
    """Return the edits of a file, or of several, in their order; packed files are unpacked.

    Records are objects, one a line or in a list, with `prompt` and `target` and, if they like, `id`,
    `subject`, `old`, `rephrases`, `loose`, `neighbours` and `ripples` (each a prompt, or {"prompt",
    "target"}), `document` and `relation` (or `kind`); more keys are passed over. CounterFact and zsRE are
    read as they are: see edit_forms.py. Left out and counted in `skipped`: what is broken or cannot be made,
    and of two edits that contradict the later one, or with `contradicting` "last" the earlier one. Raises
    BadInput where a file cannot be read or no edit is left.
    """
    skipped = Skipped() if skipped is None else skipped
    before = len(skipped.examples)
    files = [paths] if isinstance(paths, str | Path) or not isinstance(paths, Iterable) else [*paths]
    for file in files:
        arguments.file("edits", file)
    several = [Path(file) for file in files]
    found: dict[str, tuple[Edit, str]] = {}
    for record, where in _own_form([each for path in several for each in _read(path)]):
        made = record if isinstance(record, str) else edit_of(record, where)
        if isinstance(made, Edit) and made.id in found:
            made = "duplicate id; give each edit one of its own"
        if isinstance(made, str):
            skipped.add(made if ";" in made else f"{made}; {_EXPECTED}", where)
        else:
            found[made.id] = (made, where)
    places = {key: where for key, (_, where) in found.items()}
    left = settled([edit for edit, _ in found.values()], skipped, contradicting, places)
    if not left:
        first = [*skipped.examples[before:], "it is empty"][0]
        raise BadInput(f"no edit to make in {', '.join(map(shown, several))}: {first}; {_EXPECTED}")
    return left


def _read(path: Path) -> list[tuple[dict[str, Any] | str, str]]:
    try:
        return list(records(path))
    except OSError as error:
        raise BadInput(f"cannot read edits {shown(path)}: {error.strerror}; give a file") from error
    except SkipError as error:
        raise BadInput(f"cannot read edits {shown(path)}: {error}; give the file whole") from error


def _own_form(read: Sequence[tuple[dict[str, Any] | str, str]]) -> list[tuple[dict[str, Any] | str, str]]:
    """Return records in Uptake's own form, whichever data set they are of; those of one are read together."""
    found = list(read)
    for name, convert in (("counterfact", counterfact), ("zsre", zsre)):
        some = {
            place: (record, where)
            for place, (record, where) in enumerate(read)
            if isinstance(record, dict) and form_of(record) == name
        }
        for place, made in zip(some, convert([*some.values()]), strict=True):
            found[place] = made
    return found


def edit_of(record: Mapping[str, Any], where: str) -> Edit | str:
    """Return the edit that a record makes, or the reason why it makes none."""
    texts = {}
    for key in _TEXTS:
        value = record.get(key)
        if key == "relation" and value is None:
            value = record.get("kind")
        if key in _ANSWERS and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if value is None:
            value = ""
        if not isinstance(value, str):
            return f"{key} is not text; write it in quotes"
        texts[key] = value
    if "prompt" not in record:
        return f"no prompt; its keys are {', '.join(map(shown, record))[:200]}"
    lists = {key: _texts(record.get(key)) for key in ("rephrases", "loose")}
    probes = {key: _probes(record.get(key)) for key in ("neighbours", "ripples")}
    for name, each in {**lists, **probes}.items():
        if each is None:
            return f'{name} is not a list of prompts; write texts, or {{"prompt", "target"}}, in brackets'
    try:
        key, document = name_of(record.get("id")) or where, name_of(record.get("document")) or ""
    except Unusable as error:
        return f"id or document {error}; write one of them"
    except UnicodeEncodeError:
        return _SURROGATE
    asked = [probe for each in probes.values() for probe in each or ()]
    others = [text for each in lists.values() for text in each or ()]
    if not encodes(
        key, *texts.values(), *others, *(probe.prompt + probe.target + probe.hinges for probe in asked)
    ):
        return _SURROGATE
    if "\0" in texts["prompt"] + texts["target"]:
        return "NUL character; leave it out"
    edit = Edit(
        key,
        texts["prompt"].rstrip(" "),
        texts["target"].strip(),
        texts["subject"].strip(),
        texts["old"].strip(),
        rephrases=lists["rephrases"] or (),
        loose=lists["loose"] or (),
        neighbours=probes["neighbours"] or (),
        ripples=probes["ripples"] or (),
        document=document,
        relation=texts["relation"].strip(),
    )
    return edit.fault() or edit


def settled(
    edits: Sequence[Edit],
    skipped: Skipped,
    contradicting: Contradictions = "refuse",
    places: Mapping[str, str] | None = None,
) -> tuple[Edit, ...]:
    """Return the edits of which no two contradict or say the same; `places` say where each stood."""
    last = contradicting == "last"
    gone: dict[int, str] = {}
    stands: dict[str, int] = {}
    for place, edit in enumerate(edits):
        earlier = stands.setdefault(prompt_key(edit.prompt), place)
        if earlier == place:
            continue
        other = edits[earlier]
        if wanted(other.target) == wanted(edit.target):
            gone[place] = f"said twice; as edit {shown(other.id)}"
        elif last:
            gone[earlier] = f"replaced by a later edit; {shown(edit.id)} says {edit.target!r:.60}"
            stands[prompt_key(edit.prompt)] = place
        else:
            cure = "leave one out, or let the last one stand with --contradictions last"
            gone[place] = f"contradicts an earlier edit; {shown(other.id)} says {other.target!r:.60}: {cure}"
    for place, reason in sorted(gone.items()):
        skipped.add(reason, (places or {}).get(edits[place].id, shown(edits[place].id)))
    return tuple(edit for place, edit in enumerate(edits) if place not in gone)


def fitting(edits: Sequence[Edit], tokenizer: Tokenizer, window: int, skipped: Skipped) -> tuple[Edit, ...]:
    """Return the edits that fit whole, with the opening token, into a window of so many tokens."""
    left = []
    for edit in edits:
        count = 1 + len(tokenizer.encode(edit.prompt)[0]) + len(tokenizer.encode(edit.text)[0])
        if count <= window:
            left.append(edit)
        else:
            cure = f"{count:,} tokens where the model reads {window:,}: shorten its prompt"
            skipped.add(f"longer than the window; {cure}", shown(edit.id))
    return tuple(left)


def _texts(value: Any) -> tuple[str, ...] | None:
    """Return prompts as a record lists them, None where they are no such list."""
    probes = _probes(value)
    return None if probes is None else tuple(probe.prompt for probe in probes)


def _probes(value: Any) -> tuple[Probe, ...] | None:
    if value is None:
        return ()
    if isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list):
        return None
    found = []
    for one in value:
        record = one if isinstance(one, dict) else {"prompt": one}
        prompt, target, hinges = (record.get(key, "") for key in ("prompt", "target", "hinges"))
        if not all(isinstance(text, str) for text in (prompt, target, hinges)) or not prompt.strip():
            return None
        found.append(Probe(prompt.rstrip(" "), target.strip(), hinges))
    return tuple(dict.fromkeys(found))
