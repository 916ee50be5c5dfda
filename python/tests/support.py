"""What the tests share: a socket that plays the service, and the real service where the tests are told of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import unittest
from typing import Any, Callable, Optional

from phalanx import _job

#: The folder that has the package.
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: What a mood does with a line: an answer, or None to hang up without one.
Mood = Callable[[dict[str, Any]], Optional[dict[str, Any]]]


def content(_: dict[str, Any]) -> dict[str, Any]:
    return {"ok": True, "stop": False}


class Service:
    """A service at a Unix socket that can go away and come back."""

    def __init__(self, path: str, mood: Mood = content) -> None:
        self.path = path
        self.mood = mood
        self.lines: list[dict[str, Any]] = []
        self._open: list[socket.socket] = []
        self._listener: Optional[socket.socket] = None
        self.start()

    def start(self) -> None:
        if os.path.exists(self.path):
            os.unlink(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._open = []

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                self.lines.append(request)
                answer = self.mood(request)
                if answer is None:
                    return
                try:
                    connection.sendall(json.dumps(answer).encode() + b"\n")
                except OSError:
                    return

    def steps(self) -> list[int]:
        return [line["report"]["step"] for line in self.lines if "report" in line]


class InJob(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.service = Service(os.path.join(self.folder, "socket"))
        self.addCleanup(self.service.stop)
        client = _job._client = _job._Client()
        self.addCleanup(client.for_reports.close)
        self.addCleanup(client.for_checkpoints.close)
        self.set("PHALANX_SOCKET", self.service.path)
        for name in ("PHALANX_PARAMS", "PHALANX_CHECKPOINT"):
            self.set(name, None)
        self.patch("REPORT_PATIENCE_S", 5.0)

    def set(self, name: str, value: Optional[str]) -> None:
        before = os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value

        def back() -> None:
            os.environ.pop(name, None)
            if before is not None:
                os.environ[name] = before

        self.addCleanup(back)

    def patch(self, name: str, value: float) -> None:
        self.addCleanup(setattr, _job, name, getattr(_job, name))
        setattr(_job, name, value)


def binary() -> str:
    """The ``phalanx`` command to test with; skips the test where none is named."""
    found = os.environ.get("PHALANX_TEST_BINARY")
    if not found:
        raise unittest.SkipTest("PHALANX_TEST_BINARY names no phalanx command; `cargo test --test python` does")
    return found


class RealService:
    """The real service on a folder of its own and free ports."""

    def __init__(self, folder: str) -> None:
        self.data = os.path.join(folder, "data")
        self._log = open(os.path.join(folder, "service.log"), "ab")
        self.start()

    def start(self) -> None:
        addresses = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        command = [binary(), "up", "--json", "--data", self.data, "--cpus", "4", *addresses]
        # Jobs import the package as if it were installed.
        env = {**os.environ, "PYTHONPATH": PACKAGE}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, env=env)
        assert self._process.stdout is not None
        self.ready: dict[str, Any] = json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        """As a crash would end it."""
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=60)
        self._log.close()


class WithService(unittest.TestCase):
    """Tests that share a real service."""

    real: RealService
    _folder: tempfile.TemporaryDirectory[str]

    @classmethod
    def setUpClass(cls) -> None:
        binary()
        cls._folder = tempfile.TemporaryDirectory()
        cls.real = RealService(cls._folder.name)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.real.stop()
        cls._folder.cleanup()
