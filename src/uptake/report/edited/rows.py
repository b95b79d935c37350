"""The rows of an evaluation of edits: one a prompt and method, and the like for drift, cost and failures."""

from dataclasses import dataclass

from uptake.report.results import Row


@dataclass(frozen=True, slots=True)
class Told(Row):
    """One prompt under one method, asked once `made` edits had been made; the base's is asked at 0, once.

    `right` says whether what was said is right, or for a prompt that `leaks` whether it says the edit's
    target; `says_old` whether it is the answer that the edit replaces. `nats` and `old_nats` are a token of
    the target and of the old one, when given; `forced` says whether each token of the target is the
    likeliest after those before it. None where it was not measured.
    Where it could not be asked, `failed` says why, and it counts at the base's answer.
    """

    made: int
    edit: str
    place: int  # of the edit in the order made, from 1
    kind: str
    number: int  # among the prompts of its kind
    said: str
    right: bool
    says_old: bool | None = None
    nats: float | None = None
    old_nats: float | None = None
    forced: bool | None = None
    said_nats: float = 0.0  # of what was said, its end included
    said_tokens: int = 0  # 0 where nothing was generated
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Elsewhere(Row):
    """One unrelated text under one method: bits under the base and under it, KL(base || it) of each token."""

    made: int
    text: str
    base_bits: float
    bits: float
    bytes: int
    kl: tuple[float, ...]  # nats


@dataclass(frozen=True, slots=True)
class Cost(Row):
    """What a method had spent once `made` edits had been made; seconds are CPU seconds."""

    made: int
    edit_seconds: float = 0.0
    gpu_seconds: float = 0.0  # of editing, where there is a GPU
    ask_seconds: float = 0.0  # at this point alone
    asked: int = 0  # prompts
    bytes: int = 0  # of its state on the disk, at the end
    tokens_trained: int = 0
    steps: int = 0
    prepare_seconds: float = 0.0  # of what was done once: in none of the others


@dataclass(frozen=True, slots=True)
class EditFailed(Row):
    """An edit that could not be made: the state before it was kept."""

    edit: str
    place: int
    reason: str


@dataclass(frozen=True, slots=True)
class ShownEdit:
    """A prompt in words, for showing what was said after it."""

    edit: str
    kind: str
    number: int
    prompt: str
    target: str
