"""A model with edits, kept in a folder: the edits are the truth, what a method made of them follows from it.

`edits.json` holds every edit that was accepted, whole and under its sum; it is on the disk before a method
begins. `state` is what the method has made so far. A process that is killed in between leaves edits that are
stored and not made, or removed and not forgotten: that is seen, told, and done by the next call. Where what
was made is a change of weights alone, it lies beside as `delta.safetensors`.
"""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uptake import arguments
from uptake.adaptation.delta import Delta
from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput, Busy, Damaged, Mismatch, Missing
from uptake.evaluation.edit_making import make_edits
from uptake.export import only_delta
from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Method
from uptake.methods.contract.naming import method_specs
from uptake.methods.contract.state import load_state, save_state
from uptake.report.formatting import many
from uptake.sealed import from_json, to_json, write_whole
from uptake.tasks.edit_files import Contradictions, fitting, settled
from uptake.tasks.edits import Edit
from uptake.text.files import Skipped
from uptake.text.types import stable_hash

FORMAT = "uptake-edits-1"
EDITS, STATE, DELTA, LOCK = "edits.json", "state", "delta.safetensors", "lock"
_SAVE_EVERY = 100  # edits made from one writing of the state to the next
_NO_DELTA = {
    "adapter_config.json": "a peft adapter, which peft loads: give the folder of `uptake edit` or the delta "
    "that it was written from",
    "config.json": "a model: `uptake delta make BASE` of it and its base gives what differs, or name it with "
    "--model",
}
_CURE = "restore it from a copy, or make the edits anew in another folder"


@dataclass(frozen=True)
class _Kept:
    method: str
    settings: tuple[str, ...]
    seed: int
    model: str  # fingerprint
    edits: tuple[Edit, ...] = ()
    format: str = FORMAT


@dataclass
class Made:
    """What came of a call: ids of the edits made, and what was left out, counted by reason and named."""

    ids: list[str] = field(default_factory=list)
    left_out: Skipped = field(default_factory=Skipped)


class EditedModel:
    """A base model with the edits of a folder on it; the base stays as it is.

    A folder that is not there is made, for `method` (default breadth-first) with `settings` as on the
    command line; one that is there knows its own, and refuses another, as it refuses another base. `lm` is
    the edited model, an LM like any other. For one process at a time to write: others raise Busy.
    """

    def __init__(
        self,
        folder: str | Path,
        model: LM,
        method: str | None = None,
        *,
        settings: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        arguments.model(model)
        self.folder, self.model = Path(folder), model
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"{self.folder} is a file: give a new or an empty folder, or one of edits")
        if (self.folder / EDITS).exists():
            self._kept = _read(self.folder)
            self._check(method, settings)
        else:
            # A lock alone is what a first call left that was cut short, or refused what it was given.
            if self.folder.exists() and any(path.name != LOCK for path in self.folder.iterdir()):
                raise BadInput(
                    f"{self.folder} holds no edits and is not empty: give a new or an empty folder"
                )
            self._kept = _Kept(method or "breadth-first", tuple(settings), seed, model.fingerprint)
        self.method: Method[Any] = method_specs([self._kept.method], self._kept.settings)[
            self._kept.method
        ].method
        if not self.method.reads:
            raise BadInput(
                f"method {self._kept.method}: it reads nothing, so it makes no edit: use one that does, "
                "such as memit or finetune"
            )
        self._state: Any = self._load()

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits that are stored, in the order in which they came."""
        return self._kept.edits

    @property
    def pending(self) -> tuple[list[Edit], list[int]]:
        """Edits that are stored and not made, and ids of passages made of edits that are stored no more."""
        made = {passage.id for passage in self._state.passages}
        stored = {edit.passage_id for edit in self._kept.edits}
        return [edit for edit in self._kept.edits if edit.passage_id not in made], sorted(made - stored)

    @property
    def state(self) -> Any:
        """What the method has made: a plain value."""
        return self._state

    @property
    def lm(self) -> LM:
        """The edited model. Raises BadInput where a call that was interrupted has left something to do."""
        waiting, gone = self.pending
        if waiting or gone:
            raise BadInput(
                f"{self.folder}: {many(len(waiting), 'edit is', 'edits are')} stored and not made, "
                f"{len(gone)} "
                f"removed and not forgotten, for a call was interrupted: run `uptake edit --out "
                f"{self.folder}` again"
            )
        adapted = self.method.adapted([self._state], self.model)
        return adapted if adapted.rows is None else adapted.at([0])

    def generate(self, prompt: str, tokens: int = 64, **decoding: Any) -> str:
        """Return the continuation of a prompt, as `LM.generate` does."""
        return self.lm.generate(prompt, tokens, **decoding)

    def make(
        self, edits: Sequence[Edit] = (), turn: int = 0, contradicting: Contradictions = "refuse"
    ) -> Made:
        """Store edits, then make what is not made yet, `turn` at a time (0: all at once).

        Those that cannot be made are named and not kept. Of two that contradict the later is refused, or with
        `contradicting` "last" takes the place of the earlier one. Without edits, finishes what was
        interrupted.
        """
        edits = edits if isinstance(edits, str | Path) else tuple(edits)
        arguments.records("edits", edits, "target", "edits, as uptake.read_edits(FILE) gives them")
        made = Made()
        with self._locked():
            known = {edit.id: edit for edit in self._kept.edits}
            new = []
            for edit in edits:
                if (fault := edit.fault()) or edit.id in known:
                    same = not fault and known[edit.id].passage_id == edit.passage_id
                    made.left_out.add(fault or ("made before" if same else "duplicate id"), edit.id)
                else:
                    known[edit.id] = edit
                    new.append(edit)
            new = list(fitting(new, self.model.tokenizer, self.model.window, made.left_out))
            self._store(settled([*self._kept.edits, *new], made.left_out, contradicting))
            before = {edit.id for edit in self.pending[0]}
            failed = self._finish(turn)
            for key, reason in failed.items():
                made.left_out.add(reason, key)
            if failed:
                self._store(tuple(edit for edit in self._kept.edits if edit.id not in failed))
            made.ids = [edit.id for edit in self._kept.edits if edit.id in before]
        return made

    def remove(self, ids: Sequence[str]) -> None:
        """Take edits back: the model is as if they had never been made. Raises BadInput for an unknown id."""
        arguments.several("ids", ids)
        with self._locked():
            known = {edit.id for edit in self._kept.edits}
            if unknown := [key for key in ids if key not in known]:
                raise BadInput(f"{self.folder} has no edit {unknown[0]!r}: `uptake edit --list` names them")
            gone = set(ids)
            self._store(tuple(edit for edit in self._kept.edits if edit.id not in gone))
            self._finish(0)

    def _finish(self, turn: int) -> dict[str, str]:
        """Forget what is stored no more, make what is not made; return why some edits cannot be, by id."""
        waiting, gone = self.pending
        if gone:
            self._state = self.method.forget(self._state, self.model, gone)
            self._save()
        failed: dict[str, str] = {}
        size = turn or max(1, len(waiting))
        unsaved = 0
        for start in range(0, len(waiting), size):
            some = waiting[start : start + size]
            seed = stable_hash(str(self._kept.seed), "edits", str(len(self._state.history)))
            self._state, bad = make_edits(self.method, self._state, self.model, some, Context(seed))
            failed |= {some[place].id: reason for place, reason in bad}
            unsaved += len(some)
            if unsaved >= _SAVE_EVERY or start + size >= len(waiting):
                self._save()
                unsaved = 0
        return failed

    def _store(self, edits: tuple[Edit, ...]) -> None:
        if edits == self._kept.edits and (self.folder / EDITS).exists():
            return
        kept = self._kept
        self._kept = _Kept(kept.method, kept.settings, kept.seed, kept.model, edits)
        write_whole(self.folder / EDITS, to_json(plain(self._kept)))

    def _save(self) -> None:
        save_state(self._state, self.folder / STATE)
        try:
            delta = only_delta(self._state, self.method.adapted([self._state], self.model))
        except BadInput:  # more than weights: the state holds it all
            (self.folder / DELTA).unlink(missing_ok=True)
        else:
            delta.save(self.folder / DELTA)

    def _load(self) -> Any:
        fresh = self.method.init(self.model)
        path = self.folder / STATE
        if not path.exists():
            return fresh
        try:
            return load_state(type(fresh), path, self.model)
        except Damaged as error:
            raise Damaged(f"{error}; or delete {path}, and the stored edits are made again") from None

    def _check(self, method: str | None, settings: Sequence[str]) -> None:
        kept = self._kept
        if kept.model != self.model.fingerprint:
            raise Mismatch(
                f"{self.folder} holds edits of model {kept.model}, not {self.model.fingerprint}: load "
                f"that model"
            )
        if method not in (None, kept.method) or (settings and tuple(settings) != kept.settings):
            own = " ".join([kept.method, *kept.settings])
            raise BadInput(
                f"{self.folder} holds edits made by {own}: leave method and settings out, or use a new folder"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder; what another process has written meanwhile is read first."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / LOCK).open("w")
        except OSError as error:
            raise BadInput(f"cannot write to {self.folder}: {error.strerror}; give another folder") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(f"another process writes to {self.folder}: wait for it, or stop it") from None
            if (self.folder / EDITS).exists():
                kept = _read(self.folder)
                if kept != self._kept:
                    self._kept, self._state = kept, self._load()
            yield


def edited(model: LM, path: str | Path) -> LM:
    """Return the model with what is changed in a folder of edits, or in a delta's file. Raises Mismatch."""
    if (Path(path) / EDITS).exists():
        return EditedModel(path, model).lm
    return model.overlay(Delta.load(delta_file(path), model.fingerprint))


def stored_edits(folder: str | Path) -> tuple[Edit, ...]:
    """Return the edits of a folder; needs no model. Raises Missing and Damaged."""
    return _read(Path(folder)).edits


def delta_file(path: str | Path) -> Path:
    """Return the file of a delta: `path`, or that in a folder of edits. Raises Missing for none."""
    found = Path(path)
    if found.is_dir():
        for name, what in _NO_DELTA.items():
            if (found / name).exists() and not (found / DELTA).exists():
                raise BadInput(f"{found} is {what}")
        if (found / EDITS).exists() and not (found / DELTA).exists():
            raise Missing(
                f"{found} changes more than weights, which no delta holds: use it with `uptake generate "
                f"--delta`"
            )
        found /= DELTA
    if not found.is_file():
        raise Missing(f"no delta at {found}: give a file of `uptake delta`, or a folder of `uptake edit`")
    return found


def _read(folder: Path) -> _Kept:
    path = folder / EDITS
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}; give a folder of `uptake edit`") from None
    data = from_json(raw, path, "file of edits", _CURE)
    try:
        kept = load(_Kept, data)
    except Malformed as error:
        raise Damaged(f"{path} holds no edits that can be read ({error}); {_CURE}") from None
    if kept.format != FORMAT:
        raise BadInput(f"{path} is of format {kept.format!r}, not {FORMAT}: {_CURE}")
    return kept
