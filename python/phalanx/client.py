"""A service's jobs and sweeps: submit them, follow them, read what they reported. Needs ``grpcio`` and ``protobuf``."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Optional, TypeVar, Union

from phalanx import _toml, _wire, model
from phalanx._connection import Connection
from phalanx.model import (
    TERMINAL,
    Attempt,
    Best,
    Checkpoint,
    LogLine,
    MetricPoint,
    Node,
    Placement,
    Reason,
    SweepTrial,
)

__all__ = ["Client", "Job", "Sweep"]

#: Rows that are asked for at a time.
PAGE = 1000
#: Between two looks while a wait with a timeout goes on, in seconds.
LOOK_S = 0.2

_Waited = TypeVar("_Waited", "Job", "Sweep")

#: A job or sweep: the path of its file, or the same as a dict.
Spec = Union[str, "os.PathLike[str]", Mapping[str, Any]]


class Client:
    """A connection to a service.

    >>> with phalanx.Client() as client:
    ...     job = client.submit("job.toml").wait()
    ...     print(job.state, job.exit_code)

    Without ``server`` (or ``PHALANX_SERVER``) it is the service that runs on the data folder, as for the command line. Calls
    outlast a restart of the service, and streams go on where they were. May be shared by threads.
    """

    def __init__(
        self,
        server: Optional[str] = None,
        *,
        token_file: Union[None, str, os.PathLike[str]] = None,
        ca_file: Union[None, str, os.PathLike[str]] = None,
        data: Union[None, str, os.PathLike[str]] = None,
    ) -> None:
        token_file, ca_file, data = (None if path is None else os.fspath(path) for path in (token_file, ca_file, data))
        self._connection = Connection(server, token_file, ca_file, data)

    def submit(self, job: Spec, *, name: Optional[str] = None, validate_only: bool = False) -> Job:
        """Queues a job and returns it once it is durable. Relative paths start from its file's folder, or from here."""
        request = _wire.message("SubmitRequest")(**_spec(job, name), validate_only=validate_only)
        return self._job(self._call("Jobs", "Submit", request))

    def job(self, id: str) -> Job:
        """The job of this id."""
        return self._job(self._call("Jobs", "Get", _wire.message("GetJobRequest")(id=id)))

    def jobs(self, *, unfinished: bool = False) -> Iterator[Job]:
        """All jobs, or only those that are not over, the newest first."""
        for page in self._pages("Jobs", "List", "ListJobsRequest", unfinished=unfinished):
            yield from map(self._job, page.jobs)

    def create_sweep(self, sweep: Spec, *, name: Optional[str] = None, validate_only: bool = False) -> Sweep:
        """Starts a sweep and returns it once it is durable."""
        request = _wire.message("CreateSweepRequest")(**_spec(sweep, name), validate_only=validate_only)
        return self._sweep(self._call("Sweeps", "Create", request))

    def sweep(self, id: str) -> Sweep:
        """The sweep of this id."""
        return self._sweep(self._call("Sweeps", "Get", _wire.message("GetSweepRequest")(id=id)))

    def sweeps(self) -> Iterator[Sweep]:
        """All sweeps, the newest first."""
        for page in self._pages("Sweeps", "List", "ListSweepsRequest"):
            yield from map(self._sweep, page.sweeps)

    def nodes(self) -> list[Node]:
        """All nodes, with what is free on them."""
        answer = self._call("Cluster", "Nodes", _wire.message("NodesRequest")())
        return [model.node(node) for node in answer.nodes]

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _call(self, service: str, method: str, request: Any) -> Any:
        return self._connection.call(service, method, request)

    def _pages(self, service: str, method: str, request: str, **fields: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = self._call(service, method, _wire.message(request)(page_size=PAGE, page_token=token, **fields))
            yield page
            token = page.next_page_token
            if not token:
                return

    def _job(self, message: Any) -> Job:
        return Job(
            message.id,
            message.name,
            _wire.enum(message, "state"),
            model.reason(message.reason),
            message.queue,
            message.priority,
            message.attempt,
            _wire.optional(message, "exit_code"),
            _wire.time(message, "submit_time"),
            _wire.time(message, "start_time"),
            _wire.time(message, "end_time"),
            message.sweep or None,
            _wire.optional(message, "trial"),
            [model.placement(one) for one in message.placement],
            [model.attempt(one) for one in message.attempts],
            [model.checkpoint(one) for one in message.checkpoints],
            self,
        )

    def _sweep(self, message: Any) -> Sweep:
        counts = {one.name: getattr(message.counts, one.name) for one in message.counts.DESCRIPTOR.fields}
        return Sweep(
            message.id,
            message.name,
            _wire.enum(message, "state"),
            model.reason(message.reason),
            model.best(message.best) if message.HasField("best") else None,
            [model.best(one) for one in message.front],
            counts,
            message.steps_run,
            self,
        )


@dataclass(frozen=True)
class Job:
    """A job as it was when it was asked for; :meth:`refresh` and :meth:`wait` return it as it is then."""

    id: str
    name: str
    state: str
    reason: Reason
    queue: str
    priority: int
    #: The number of its latest attempt; 0 before the first.
    attempt: int
    exit_code: Optional[int]
    submit_time: Optional[datetime]
    start_time: Optional[datetime]
    end_time: Optional[datetime]
    #: The sweep it belongs to, and its number there.
    sweep: Optional[str]
    trial: Optional[int]
    placement: list[Placement] = field(repr=False)
    attempts: list[Attempt] = field(repr=False)
    checkpoints: list[Checkpoint] = field(repr=False)
    _client: Client = field(repr=False, compare=False)

    @property
    def done(self) -> bool:
        """Whether it has ended for good."""
        return self.state in TERMINAL

    def refresh(self) -> Job:
        """The job as it is now."""
        return self._client.job(self.id)

    def wait(self, timeout_s: Optional[float] = None) -> Job:
        """The job once it has ended. Raises ``TimeoutError`` where that takes longer than ``timeout_s``."""
        if timeout_s is not None:
            return _wait(self, timeout_s)
        job = self
        for job in self.watch():
            pass
        return job

    def watch(self) -> Iterator[Job]:
        """The job after every change, from the first one on; the last one is its end."""
        request = _wire.message("WatchJobRequest")
        answers = self._stream("Watch", lambda after: request(id=self.id, after_seq=after), lambda answer: answer.seq)
        for answer in answers:
            yield self._client._job(answer.job)

    def logs(
        self, *, follow: bool = False, rank: Optional[int] = None, attempt: Optional[int] = None
    ) -> Iterator[LogLine]:
        """What the ranks wrote so far; with ``follow`` until the job has ended."""
        for line in self._rows("Logs", "JobLogsRequest", "line", follow, rank, attempt):
            yield model.log_line(line)

    def metrics(
        self, *, follow: bool = False, rank: Optional[int] = None, attempt: Optional[int] = None
    ) -> Iterator[MetricPoint]:
        """What the ranks reported so far; with ``follow`` until the job has ended."""
        for point in self._rows("Metrics", "JobMetricsRequest", "point", follow, rank, attempt):
            yield model.metric_point(point)

    def cancel(self) -> Job:
        """Ends it for good."""
        return self._change("Cancel")

    def pause(self) -> Job:
        """Ends its processes, to go on later from its checkpoint."""
        return self._change("Pause")

    def resume(self) -> Job:
        """Lets it go on."""
        return self._change("Resume")

    def _change(self, method: str) -> Job:
        request = _wire.message(f"{method}JobRequest")(id=self.id)
        return self._client._job(self._client._call("Jobs", method, request))

    def _stream(self, method: str, request: Any, seq: Any) -> Iterator[Any]:
        return self._client._connection.stream("Jobs", method, request, seq)

    def _rows(
        self, method: str, request: str, row: str, follow: bool, rank: Optional[int], attempt: Optional[int]
    ) -> Iterator[Any]:
        kind = _wire.message(request)
        answers = self._stream(
            method,
            lambda after: kind(id=self.id, follow=follow, after_seq=after, rank=rank, attempt=attempt),
            lambda answer: getattr(answer, row).seq,
        )
        for answer in answers:
            # The last message has only the job.
            if answer.HasField(row):
                yield getattr(answer, row)


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was when it was asked for; :meth:`refresh` and :meth:`wait` return it as it is then."""

    id: str
    name: str
    state: str
    reason: Reason
    #: The complete trial with the best value of the first objective.
    best: Optional[Best]
    #: With several objectives: the complete trials that no other one beats in all of them.
    front: list[Best] = field(repr=False)
    #: Trials by state: ``complete``, ``stopped``, ``failed``, ``running``, ``queued``, ``paused``, ….
    counts: dict[str, int]
    steps_run: int
    _client: Client = field(repr=False, compare=False)

    @property
    def done(self) -> bool:
        """Whether it has ended for good."""
        return self.state in TERMINAL

    def refresh(self) -> Sweep:
        """The sweep as it is now."""
        return self._client.sweep(self.id)

    def wait(self, timeout_s: Optional[float] = None) -> Sweep:
        """The sweep once it has ended. Raises ``TimeoutError`` where that takes longer than ``timeout_s``."""
        if timeout_s is not None:
            return _wait(self, timeout_s)
        sweep = self
        for sweep in self.watch():
            pass
        return sweep

    def watch(self) -> Iterator[Sweep]:
        """The sweep after every change of it or its trials; the last one is its end."""
        for sweep, _ in self.watch_trials():
            yield sweep

    def watch_trials(self) -> Iterator[Any]:
        """The sweep after every change, with the list of its trials that have changed."""
        request = _wire.message("WatchSweepRequest")
        answers = self._client._connection.stream(
            "Sweeps", "Watch", lambda after: request(id=self.id, after_seq=after), lambda answer: answer.seq
        )
        for answer in answers:
            yield self._client._sweep(answer.sweep), [model.sweep_trial(trial) for trial in answer.trials]

    def trials(self) -> Iterator[SweepTrial]:
        """All its trials, by number."""
        for page in self._client._pages("Sweeps", "Trials", "ListTrialsRequest", id=self.id):
            yield from map(model.sweep_trial, page.trials)

    def cancel(self) -> Sweep:
        """Ends it and its trials for good."""
        return self._change("Cancel")

    def pause(self) -> Sweep:
        """Starts no more trials, and pauses those that run."""
        return self._change("Pause")

    def resume(self) -> Sweep:
        """Lets it and its trials go on."""
        return self._change("Resume")

    def _change(self, method: str) -> Sweep:
        request = _wire.message(f"{method}SweepRequest")(id=self.id)
        return self._client._sweep(self._client._call("Sweeps", method, request))


def _wait(what: _Waited, timeout_s: float) -> _Waited:
    until = time.monotonic() + timeout_s
    while not what.done:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"{what.id} is {what.state} after {timeout_s:g} s")
        time.sleep(min(LOOK_S, left_s))
        what = what.refresh()
    return what


def _spec(spec: Spec, name: Optional[str]) -> dict[str, str]:
    """The fields of a request: the file's text, where its paths start from, and a key that lets it be repeated."""
    if isinstance(spec, Mapping):
        toml, base_dir, default = _toml.dumps({"version": 1, **spec}), os.getcwd(), ""
    else:
        path = os.path.abspath(os.fspath(spec))
        with open(path, encoding="utf-8") as file:
            toml = file.read()
        base_dir, default = os.path.dirname(path), os.path.splitext(os.path.basename(path))[0]
    return {
        "toml": toml,
        "base_dir": base_dir,
        "default_name": name or default,
        "request_id": str(uuid.uuid4()),
    }
