"""Connects to Ray, and separates our own errors from Ray's."""

import logging
import os
import socket
import sys
import warnings
from typing import Any

from uptake.errors import BadInput, Missing, UptakeError

NAMESPACE = "uptake"  # the Ray namespace of our actors
SECONDS = 5  # that an address may take to answer
# How HTTP/2 begins, which gRPC and so Ray speaks, with an empty frame of settings: it is answered at once.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def connect(address: str) -> Any:
    """Return the module ray, connected to the cluster at `address` unless the program is already.

    "local" starts one on this machine that ends with the program. Raises Missing without Ray,
    BadInput where no cluster answers, within a few seconds.
    """
    # No usage statistics are sent and no dashboard is served, unless the user has set it otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise Missing("a cluster needs Ray: pip install 'uptake[ray]'") from error
    if not ray.is_initialized():
        page = False if address == "local" else None
        _check_answers(address)
        try:
            with warnings.catch_warnings():
                # Ray starts its processes in a way that Lance warns of; nothing of Lance is used in them.
                warnings.filterwarnings("ignore", "lance is not fork-safe", UserWarning)
                ray.init(
                    address,
                    namespace=NAMESPACE,
                    include_dashboard=page,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise BadInput(
                f"no Ray cluster at {address!r} ({reason}); start one with `ray start --head`, or give local"
            ) from error
    return ray


def _check_answers(address: str) -> None:
    """Raise BadInput where nothing at HOST:PORT speaks as Ray does: Ray itself tries for minutes."""
    told = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, colon, port = told.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # a cluster of this machine, which Ray finds by itself
    try:
        with socket.create_connection((host.strip("[]"), int(port)), SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.settimeout(SECONDS)
                connection.sendall(_HELLO)
                if not connection.recv(1):
                    raise ConnectionError("what listens there is no Ray")
    except (OSError, OverflowError) as error:
        reason = f"no answer within {SECONDS} seconds" if isinstance(error, TimeoutError) else str(error)
        raise BadInput(
            f"no Ray cluster at {told!r} ({reason}); start one with `ray start --head`, or give local"
        ) from error


def disconnect() -> None:
    """Leave the cluster, if there is one; what this program has started there ends."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def own_error(error: Any) -> UptakeError | None:
    """Return the error of ours that an actor raised, if that is what Ray's error holds."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UptakeError) else None
