"""The way to a service: which one is meant, its token, calls that are repeated and streams that are resumed."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

import grpc

from phalanx import _wire
from phalanx.errors import (
    Infeasible,
    InvalidFile,
    NotFound,
    PhalanxError,
    Unauthenticated,
    Unavailable,
    WrongState,
)

#: How long a service that is away is waited for, in seconds.
PATIENCE_S = 60.0
#: Longest a single call may take, in seconds.
CALL_S = 60.0
#: Waits between attempts, in seconds: the first, and the longest.
FIRST_RETRY_S, LONGEST_RETRY_S = 0.05, 2.0
#: Longest message, in bytes: a page of jobs with large gangs.
MESSAGE_BYTES = 8 << 20

#: A call is repeated after these, a stream opened again after those, too, with which one that is cut may end.
_AWAY = {grpc.StatusCode.UNAVAILABLE}
_CUT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
_ERRORS = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidFile,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: WrongState,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}


class _Channel:
    """A channel, what calls on it say of their caller, and how many use it."""

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self.channel = channel
        self.metadata = metadata
        self.users = 0
        self._methods: dict[str, dict[str, Callable[..., Any]]] = {}

    def method(self, service: str, method: str) -> Callable[..., Any]:
        if service not in self._methods:
            self._methods[service] = _wire.methods(self.channel, service)
        return self._methods[service][method]


class Connection:
    """A connection that is made when needed, and made anew where the service came back at another address.

    Threads share it: a channel that one of them gave up is closed once none uses it.
    """

    def __init__(
        self, server: Optional[str], token_file: Optional[str], ca_file: Optional[str], data: Optional[str]
    ) -> None:
        self._server = server or os.environ.get("PHALANX_SERVER") or None
        self._token_file = token_file or os.environ.get("PHALANX_TOKEN_FILE") or None
        self._ca_file = ca_file or os.environ.get("PHALANX_CA_FILE") or None
        self._data = data or os.environ.get("PHALANX_DATA") or _default_data()
        self._lock = threading.Lock()
        self._channel: Optional[_Channel] = None

    def call(self, service: str, method: str, request: Any) -> Any:
        """One request, repeated while the service is away: it has to be one that may be sent twice."""
        patience = _Patience()
        while True:
            try:
                with self._used() as channel:
                    return channel.method(service, method)(request, metadata=channel.metadata, timeout=CALL_S)
            except grpc.RpcError as error:
                self._cut(channel, error, _AWAY, patience)
            except Unavailable as error:
                self._away(error, patience)

    def stream(
        self, service: str, method: str, request: Callable[[int], Any], seq: Callable[[Any], Optional[int]]
    ) -> Iterator[Any]:
        """Messages of a stream. One that is cut is opened again with ``request(after_seq)``, without gap or repeat."""
        after, patience = 0, _Patience()
        while True:
            try:
                with self._used() as channel:
                    for message in channel.method(service, method)(request(after), metadata=channel.metadata):
                        patience = _Patience()
                        after = seq(message) or after
                        yield message
                return
            except grpc.RpcError as error:
                self._cut(channel, error, _CUT, patience)
            except Unavailable as error:
                self._away(error, patience)

    def close(self) -> None:
        """Ends it, calls under way included; the next call makes it anew."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.channel.close()

    @contextlib.contextmanager
    def _used(self) -> Iterator[_Channel]:
        with self._lock:
            if self._channel is None:
                self._channel = self._open()
            channel = self._channel
            channel.users += 1
        try:
            yield channel
        finally:
            with self._lock:
                channel.users -= 1
                self._close_unused(channel)

    def _close_unused(self, channel: _Channel) -> None:
        if channel is not self._channel and channel.users == 0:
            channel.channel.close()

    def _open(self) -> _Channel:
        endpoint = {} if self._server else _endpoint(self._data)
        server = self._server or endpoint.get("grpc")
        if not server:
            raise Unavailable(
                f"no service runs on {self._data}; start one with `phalanx up`, or name one by Client('HOST:PORT')"
            )
        token_file = self._token_file or endpoint.get("token_file") or os.path.join(self._data, "token")
        try:
            with open(token_file, encoding="ascii") as file:
                token = file.read().strip()
        except OSError as error:
            raise Unauthenticated(f"no token for {server}: {error}; name its file by token_file") from error
        metadata = (("authorization", f"Bearer {token}"),)
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.keepalive_time_ms", 20_000)]
        if server.startswith(("127.", "localhost:", "[::1]")):
            # A proxy of this machine's environment does not lead to this machine.
            options.append(("grpc.enable_http_proxy", 0))
        ca_file = self._ca_file or endpoint.get("ca_file")
        if ca_file:
            with open(ca_file, "rb") as trusted:
                credentials = grpc.ssl_channel_credentials(trusted.read())
            return _Channel(grpc.secure_channel(server, credentials, options), metadata)
        return _Channel(grpc.insecure_channel(server, options), metadata)

    def _cut(self, channel: _Channel, error: Any, passing: set[Any], patience: _Patience) -> None:
        if error.code() not in passing:
            raise _error(error) from error
        with self._lock:
            # Another thread may have made a new one already.
            if self._channel is channel:
                self._channel = None
            self._close_unused(channel)
        self._away(Unavailable(f"the service is away: {error.details()}"), patience)

    def _away(self, error: Unavailable, patience: _Patience) -> None:
        if not patience.wait():
            raise error


class _Patience:
    """How long a service that is away is still waited for."""

    def __init__(self) -> None:
        self._until: Optional[float] = None
        self._pause_s = FIRST_RETRY_S

    def wait(self) -> bool:
        now = time.monotonic()
        # Counts from the first failure on: a stream may have been silent for long.
        if self._until is None:
            self._until = now + PATIENCE_S
        left_s = self._until - now
        if left_s <= 0:
            return False
        time.sleep(min(self._pause_s, left_s))
        self._pause_s = min(2 * self._pause_s, LONGEST_RETRY_S)
        return True


def _error(error: Any) -> PhalanxError:
    kind = _ERRORS.get(error.code(), PhalanxError)
    reason = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    # A code of its own in the details (google.rpc.ErrorInfo), without a dependency to read them.
    if kind is WrongState and b"INFEASIBLE" in reason:
        kind = Infeasible
    return kind(error.details() or str(error.code()))


def _endpoint(data: str) -> dict[str, Any]:
    """Where the service on a data folder says it is; one that died without a word refuses the connection."""
    try:
        with open(os.path.join(data, "service.json"), encoding="utf-8") as file:
            endpoint = json.load(file)
    except (OSError, ValueError):
        return {}
    return endpoint if isinstance(endpoint, dict) else {}


def _default_data() -> str:
    folder = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(folder):
        folder = os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(folder, "phalanx")
