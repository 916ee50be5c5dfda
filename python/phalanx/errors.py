"""What a service or a study says when it does not do what it was asked."""

from __future__ import annotations


class PhalanxError(Exception):
    """Any of the errors below. The message says what was asked, what is there and what to do."""


class InvalidFile(PhalanxError, ValueError):
    """A job or sweep file, or another argument, is wrong; nothing was changed."""


class Infeasible(PhalanxError):
    """No node can ever hold what was asked for."""


class NotFound(PhalanxError, LookupError):
    """There is no job or sweep of this id."""


class WrongState(PhalanxError):
    """The job or sweep is in a state in which this cannot be done."""


class Unauthenticated(PhalanxError):
    """The token is missing or wrong."""


class Unavailable(PhalanxError, ConnectionError):
    """The service is away, or stayed away for longer than it was waited for."""


class StudyError(PhalanxError, ValueError):
    """The study refused a request; it is as it was before."""
