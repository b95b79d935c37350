"""The kinds of error that Uptake raises.

Every message is one line that names the offending value and the cure. The command line prints
that line and exits 2; a server answers 4xx with it.
"""


class UptakeError(Exception):
    """Base of every error Uptake raises on purpose."""


class BadInput(UptakeError):
    """A value, file or argument from outside cannot be used as it is."""


class Mismatch(UptakeError):
    """Two things that must belong together do not: store and encoder, delta and base model."""


class Damaged(UptakeError):
    """Stored data is not what was written."""


class Busy(UptakeError):
    """Another process holds what this call needs, such as a store's writer lease."""


class Missing(UptakeError):
    """An optional dependency, a model or a file that the call needs is not there."""


class Incomplete(UptakeError):
    """Part of a cluster did not answer, and the caller has not said that the rest will do."""


class Diverged(UptakeError):
    """A loss or a gradient is no longer finite: the step was not taken."""
