"""What a program calls from inside a Phalanx job: report metrics, hand over checkpoints, restore, read parameters.

Outside a job (``PHALANX_SOCKET`` is unset) every call does nothing, so that the same script runs by hand. The module needs
the standard library only and speaks newline-delimited JSON over the Unix socket at ``PHALANX_SOCKET``.
"""

from __future__ import annotations

import atexit
import collections
import json
import math
import os
import socket
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any, Optional, SupportsFloat, Union

__all__ = ["checkpoint", "params", "report", "restore", "should_stop"]

#: How long a report waits for a service that is away before training goes on without its answer, in seconds.
REPORT_PATIENCE_S = 20.0
#: How long a later report waits while the service is still away, in seconds.
REPORT_RETRY_S = 0.05
#: How long the end of the process waits for reports that were never answered, in seconds.
EXIT_PATIENCE_S = 5.0
#: How long a checkpoint may take to become durable, in seconds; large ones are copied and synced.
CHECKPOINT_PATIENCE_S = 1800.0
#: Reports kept while the service is away; the oldest goes first.
KEPT_REPORTS = 10_000
#: Longest line that the service takes, in bytes.
LINE_BYTES = 1 << 20
#: Waits between attempts to connect, in seconds: the first, and the longest.
FIRST_RETRY_S, LONGEST_RETRY_S = 0.02, 1.0

_Path = Union[str, "os.PathLike[str]"]


class _Connection:
    """A connection to the service that is made when needed, and made anew after it broke."""

    def __init__(self) -> None:
        self._socket: Optional[socket.socket] = None
        self._path = ""
        self._unread = b""

    def exchange(self, path: str, line: bytes, deadline: float) -> dict[str, Any]:
        """Sends a line and returns the answer, repeating until ``deadline``; then raises ``ConnectionError``."""
        retry_s = FIRST_RETRY_S
        while True:
            try:
                return self._once(path, line, deadline)
            except (OSError, EOFError) as error:
                self.close()
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise ConnectionError(f"the Phalanx service did not answer at {path}: {error}") from error
                time.sleep(min(retry_s, left_s))
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    def _once(self, path: str, line: bytes, deadline: float) -> dict[str, Any]:
        if self._socket is None or self._path != path:
            self.close()
            self._socket, self._path, self._unread = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path, b""
            self._limit(deadline)
            self._socket.connect(path)
        self._limit(deadline)
        self._socket.sendall(line)
        while b"\n" not in self._unread:
            self._limit(deadline)
            received = self._socket.recv(65536)
            if not received:
                raise EOFError("the connection was closed before the answer")
            self._unread += received
        answer, self._unread = self._unread.split(b"\n", 1)
        try:
            decoded = json.loads(answer)
        except ValueError as error:
            raise EOFError(f"the answer was cut: {error}") from error
        if not isinstance(decoded, dict):
            raise EOFError("the answer is no object")
        return decoded

    def _limit(self, deadline: float) -> None:
        # At least a little, as a deadline that has just passed still deserves one attempt.
        assert self._socket is not None
        self._socket.settimeout(max(deadline - time.monotonic(), REPORT_RETRY_S))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Client:
    """The state of this process: one connection for reports, one for checkpoints, which may take long."""

    def __init__(self) -> None:
        self.reports = threading.Lock()
        self.checkpoints = threading.Lock()
        self.for_reports = _Connection()
        self.for_checkpoints = _Connection()
        self.waiting: collections.deque[bytes] = collections.deque()
        self.dropped = 0
        self.away = False
        self.stop = False

    def report(self, path: str, line: bytes) -> bool:
        with self.reports:
            if len(self.waiting) >= KEPT_REPORTS:
                self.waiting.popleft()
                self.dropped += 1
            self.waiting.append(line)
            # After the first long wait, a service that stays away must not slow every step down.
            self.flush(path, REPORT_RETRY_S if self.away else REPORT_PATIENCE_S)
            return self.stop

    def flush(self, path: str, patience_s: float) -> None:
        """Sends what waits, the oldest first; stops quietly if the service is away."""
        deadline = time.monotonic() + patience_s
        while self.waiting:
            try:
                answer = self.for_reports.exchange(path, self.waiting[0], deadline)
            except ConnectionError as error:
                if not self.away:
                    self.away = True
                    warnings.warn(f"{error}; going on, and sending the reports later", RuntimeWarning, stacklevel=4)
                return
            self.away = False
            self.waiting.popleft()
            self.take(answer)
        if self.dropped:
            warnings.warn(f"{self.dropped} reports were lost while the service was away", RuntimeWarning, stacklevel=4)
            self.dropped = 0

    def checkpoint(self, path: str, line: bytes, patience_s: float) -> None:
        with self.checkpoints:
            answer = self.for_checkpoints.exchange(path, line, time.monotonic() + patience_s)
        self.take(answer)

    def take(self, answer: dict[str, Any]) -> None:
        if "error" in answer:
            raise ValueError(f"Phalanx refused it: {answer['error']}")
        # Once asked to stop, always asked to stop.
        self.stop = self.stop or answer.get("stop") is True


_client = _Client()


def _after_fork() -> None:
    # A connection, a lock and what waits belong to the parent; two processes on one socket would mix their lines.
    global _client
    stop, _client = _client.stop, _Client()
    _client.stop = stop


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    path = os.environ.get("PHALANX_SOCKET")
    # Another thread may hold the lock in a call that hangs; the end of the process does not wait for it.
    if path and _client.waiting and _client.reports.acquire(timeout=EXIT_PATIENCE_S):
        try:
            _client.flush(path, EXIT_PATIENCE_S)
        except ValueError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=1)
        finally:
            _client.reports.release()


def report(step: int, metrics: Optional[Mapping[str, SupportsFloat]] = None, **more: SupportsFloat) -> bool:
    """Reports metrics of a step; returns whether the service wants this run to end.

    ``step`` is an integer from 0. ``metrics`` maps names to numbers, or things that ``float`` takes such as a scalar tensor;
    keywords are added to it. The answer is awaited, for up to :data:`REPORT_PATIENCE_S` while the service is away; the
    report is then sent with a later one. Raises ``ValueError`` or ``TypeError`` for what can never be accepted.
    """
    values = {**(metrics or {}), **more}
    if not values:
        raise ValueError("a report needs at least one metric")
    line = _line({"report": {"step": _step(step), "metrics": {_name(n): _number(n, v) for n, v in values.items()}}})
    path = os.environ.get("PHALANX_SOCKET")
    return _client.report(path, line) if path else False


def checkpoint(folder: _Path, step: int, *, patience_s: float = CHECKPOINT_PATIENCE_S) -> None:
    """Hands a finished checkpoint folder over, and returns when the service has a durable copy.

    The folder may be changed or removed afterwards. Raises ``ValueError`` if it was refused, ``NotADirectoryError`` if it is
    no folder, and ``ConnectionError`` if there was no answer within ``patience_s`` seconds.
    """
    absolute = os.path.abspath(os.fspath(folder))
    line = _line({"checkpoint": {"step": _step(step), "path": absolute}})
    if not os.path.isdir(absolute):
        raise NotADirectoryError(f"no checkpoint folder at {absolute}")
    path = os.environ.get("PHALANX_SOCKET")
    if path:
        _client.checkpoint(path, line, patience_s)


def restore() -> Optional[str]:
    """The checkpoint folder to go on from, or None at the first start and outside a job."""
    return os.environ.get("PHALANX_CHECKPOINT") or None


def params() -> dict[str, Any]:
    """The parameters of this trial; empty when there are none."""
    path = os.environ.get("PHALANX_PARAMS")
    if not path:
        return {}
    with open(path, encoding="utf-8") as file:
        loaded = json.load(file)
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no JSON object")
    return loaded


def should_stop() -> bool:
    """Whether the service wants this run to end, as of the last answer to :func:`report` or :func:`checkpoint`."""
    return _client.stop


def _step(step: int) -> int:
    # Numpy's integers are no `int`, but have `__index__`; bools have it too, and are a mistake.
    if isinstance(step, bool):
        raise TypeError("a step is an integer, not a bool")
    number = step.__index__() if hasattr(step, "__index__") else None
    if number is None:
        raise TypeError(f"a step is an integer, not {type(step).__name__}")
    if not 0 <= number < 1 << 64:
        raise ValueError(f"a step is 0 or more and fits 64 bits, not {number}")
    return number


def _name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a metric's name is text, not {type(name).__name__}")
    return name


def _number(name: str, value: SupportsFloat) -> Union[float, str]:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"the metric {name!r} is text, not a number")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the metric {name!r} is no number: {error}") from error
    # JSON has no NaN and no infinity; the service reads these words.
    if math.isnan(number):
        return "nan"
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return number


def _line(request: dict[str, Any]) -> bytes:
    line = json.dumps(request, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
    if len(line) > LINE_BYTES:
        raise ValueError(f"{len(line)} bytes are more than one report may have ({LINE_BYTES}); report fewer metrics")
    return line
