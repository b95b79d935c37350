"""Errors as clients see them: one shape, one line, the parameter that is wrong, and no path or stack."""

import errno
import sqlite3
from dataclasses import dataclass
from typing import Any

from uptake import errors

MOST_WAIT = 120  # seconds in Retry-After; OpenAI's client gives up on more

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}

# By the kind of an error of the library: its status, its code, and whether trying again can help.
_STATUS: dict[type[errors.UptakeError], tuple[int, str, bool]] = {
    errors.BadInput: (400, "bad_input", False),
    errors.Mismatch: (400, "mismatch", False),
    errors.Diverged: (400, "diverged", False),
    errors.Busy: (503, "busy", True),
    errors.Incomplete: (503, "incomplete", True),
    errors.Missing: (501, "missing", False),
    errors.Damaged: (500, "damaged", False),
}


@dataclass
class ApiError(Exception):
    """What a request is refused with.

    `param` names what is wrong in the body, `code` is for programs. `retry_after` are seconds; where trying
    again cannot help, `retry` is False and the client is told so.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after: float | None = None
    retry: bool | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def may_retry(self) -> bool:
        """Whether the same request may go through later."""
        return self.status in (429, 503) if self.retry is None else self.retry

    def body(self) -> dict[str, Any]:
        """Return the one shape that every error has."""
        kind = KINDS.get(self.status, "server_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }

    def headers(self) -> dict[str, str]:
        """Return what a client needs to know before it tries again."""
        found = {"x-should-retry": "true" if self.may_retry else "false"}
        if self.retry_after is not None:
            found["retry-after"] = str(min(MOST_WAIT, max(1, round(self.retry_after + 0.5))))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found

    def plain(self) -> dict[str, Any]:
        """Return this error as plain data, for another process."""
        return {
            "status": self.status,
            "message": self.message,
            "code": self.code,
            "param": self.param,
            "retry": self.may_retry,
        }


def bad(message: str, param: str | None = None, code: str = "bad_input") -> ApiError:
    """Return the refusal of a value in the body."""
    return ApiError(400, message, code, param)


def not_found(what: str, param: str | None = None) -> ApiError:
    """Return what is told of a thing that is not there, or is somebody else's: the same."""
    return ApiError(404, f"{what} does not exist", "not_found", param)


def internal() -> ApiError:
    """Return what is told of a fault of the server's own; its log says more."""
    return ApiError(500, "the server failed at this request; its log says why", "internal", retry=True)


def of(error: BaseException) -> ApiError:
    """Return an error of the library as clients see it; what is not meant for them is `internal`."""
    if isinstance(error, ApiError):
        return error
    for kind, (status, code, retry) in _STATUS.items():
        if isinstance(error, kind):
            message = "stored data is damaged; tell whoever runs this server" if status == 500 else str(error)
            return ApiError(status, message, code, retry=retry)
    if _disk_is_full(error):
        told = "the disk of the server is full and nothing was kept: tell whoever runs it"
        return ApiError(507, told, "disk_full", retry=True)
    return internal()


def _disk_is_full(error: BaseException) -> bool:
    """Whether there was no room to write; libraries below pass on the words alone."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
    return isinstance(error, sqlite3.OperationalError) and "full" in str(error)
