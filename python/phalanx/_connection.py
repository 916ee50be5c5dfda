"""The way to a service: which one is meant, its token, calls that are repeated and streams that are resumed."""

from __future__ import annotations

import json
import os
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


class Connection:
    """A connection that is made when needed, and made anew where the service came back at another address."""

    def __init__(
        self, server: Optional[str], token_file: Optional[str], ca_file: Optional[str], data: Optional[str]
    ) -> None:
        self._server = server or os.environ.get("PHALANX_SERVER") or None
        self._token_file = token_file or os.environ.get("PHALANX_TOKEN_FILE") or None
        self._ca_file = ca_file or os.environ.get("PHALANX_CA_FILE") or None
        self._data = data or os.environ.get("PHALANX_DATA") or _default_data()
        self._channel: Optional[Any] = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._methods: dict[str, dict[str, Callable[..., Any]]] = {}

    def call(self, service: str, method: str, request: Any) -> Any:
        """One request, repeated while the service is away: it has to be one that may be sent twice."""
        patience = _Patience()
        while True:
            try:
                call = self._method(service, method)
                return call(request, metadata=self._metadata, timeout=CALL_S)
            except grpc.RpcError as error:
                self._cut(error, _AWAY, patience)
            except Unavailable as error:
                self._away(error, patience)

    def stream(
        self, service: str, method: str, request: Callable[[int], Any], seq: Callable[[Any], Optional[int]]
    ) -> Iterator[Any]:
        """Messages of a stream. One that is cut is opened again with ``request(after_seq)``, without gap or repeat."""
        after, patience = 0, _Patience()
        while True:
            try:
                for message in self._method(service, method)(request(after), metadata=self._metadata):
                    patience = _Patience()
                    after = seq(message) or after
                    yield message
                return
            except grpc.RpcError as error:
                self._cut(error, _CUT, patience)
            except Unavailable as error:
                self._away(error, patience)

    def close(self) -> None:
        """Ends it; the next call makes it anew."""
        if self._channel is not None:
            self._channel.close()
        self._channel, self._methods = None, {}

    def _method(self, service: str, method: str) -> Callable[..., Any]:
        if self._channel is None:
            self._open()
        if service not in self._methods:
            self._methods[service] = _wire.methods(self._channel, service)
        return self._methods[service][method]

    def _open(self) -> None:
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
        self._metadata = (("authorization", f"Bearer {token}"),)
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.keepalive_time_ms", 20_000)]
        if server.startswith(("127.", "localhost:", "[::1]")):
            # A proxy of this machine's environment does not lead to this machine.
            options.append(("grpc.enable_http_proxy", 0))
        ca_file = self._ca_file or endpoint.get("ca_file")
        if ca_file:
            with open(ca_file, "rb") as trusted:
                credentials = grpc.ssl_channel_credentials(trusted.read())
            self._channel = grpc.secure_channel(server, credentials, options)
        else:
            self._channel = grpc.insecure_channel(server, options)

    def _cut(self, error: Any, passing: set[Any], patience: _Patience) -> None:
        if error.code() not in passing:
            raise _error(error) from error
        self.close()
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
