"""Phalanx from Python: what a job's process calls, and what drives a service from outside.

From inside a job, with the standard library alone and as no-ops outside one: :func:`report`, :func:`checkpoint`,
:func:`restore`, :func:`params`, :func:`should_stop`. From outside: :class:`Client` (needs ``grpcio`` and ``protobuf``) submits
and follows jobs and sweeps, :class:`Study` runs a search in this process, :class:`PhalanxSearchCV` does that for scikit-learn,
and :mod:`phalanx.callbacks` joins training frameworks to jobs. Nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from phalanx._job import checkpoint, params, report, restore, should_stop

if TYPE_CHECKING:
    from phalanx.client import Client as Client
    from phalanx.errors import PhalanxError as PhalanxError
    from phalanx.sklearn import PhalanxSearchCV as PhalanxSearchCV
    from phalanx.study import Study as Study

__version__ = "0.1.0"
__all__ = [
    "Client",
    "PhalanxError",
    "PhalanxSearchCV",
    "Study",
    "checkpoint",
    "params",
    "report",
    "restore",
    "should_stop",
]

#: Where the names that are imported when they are used live.
_LAZY = {
    "Client": "phalanx.client",
    "PhalanxError": "phalanx.errors",
    "PhalanxSearchCV": "phalanx.sklearn",
    "Study": "phalanx.study",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
