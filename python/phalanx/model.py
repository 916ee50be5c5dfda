"""What a service tells of jobs, sweeps and nodes, as plain objects. States and names are those of ``phalanx describe``."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Optional

from phalanx import _wire

#: States that a job or a sweep does not leave any more.
TERMINAL = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})


@dataclass(frozen=True)
class Reason:
    """Why something is as it is: a code for programs, a text for people."""

    code: str = ""
    text: str = ""


@dataclass(frozen=True)
class Placement:
    """Where a rank runs, and the devices it was given."""

    rank: int
    node: str
    gpus: list[int]


@dataclass(frozen=True)
class Attempt:
    """One run of a job's gang."""

    number: int
    state: str
    start_time: Optional[datetime]
    end_time: Optional[datetime]
    exit_code: Optional[int]
    failed_rank: Optional[int]
    message: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in the service's keeping."""

    attempt: int
    step: int
    time: Optional[datetime]
    metric: Optional[float]
    path: str


@dataclass(frozen=True)
class LogLine:
    """A line that a rank wrote, or a piece of a long one."""

    job: str
    attempt: int
    rank: int
    #: ``STDOUT`` or ``STDERR``.
    stream: str
    seq: int
    time: Optional[datetime]
    #: The bytes as they were written, without the newline.
    line: bytes
    #: Another piece of the same line follows.
    partial: bool

    @property
    def text(self) -> str:
        """The line as text; bytes that are not UTF-8 become U+FFFD."""
        return self.line.decode("utf-8", "replace")


@dataclass(frozen=True)
class MetricPoint:
    """What a rank reported at a step."""

    job: str
    attempt: int
    rank: int
    step: int
    time: Optional[datetime]
    metrics: dict[str, float]
    seq: int


@dataclass(frozen=True)
class Amount:
    """How much there is, and how much of it no gang holds."""

    total: float
    free: float


@dataclass(frozen=True)
class Gpu:
    """A device of a node."""

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_used: int
    utilization: float
    #: 1 for a whole device, a fraction where it is shared, 0 for none.
    free: float


@dataclass(frozen=True)
class Node:
    """A machine with an agent."""

    name: str
    state: str
    cpus: Amount
    memory: Amount
    gpus: list[Gpu]
    labels: dict[str, str]


@dataclass(frozen=True)
class Best:
    """One of the best trials of a sweep."""

    number: int
    params: dict[str, Any]
    value: float
    #: The value of every objective.
    values: list[float]
    job: str


@dataclass(frozen=True)
class Stint:
    """A time during which a trial ran."""

    start_time: Optional[datetime]
    #: None while it runs.
    end_time: Optional[datetime]


@dataclass(frozen=True)
class SweepTrial:
    """A trial of a sweep."""

    number: int
    state: str
    params: dict[str, Any]
    #: The last value of the first objective; None before the first report.
    value: Optional[float]
    values: list[float]
    step: Optional[int]
    #: Its job; empty where the sweep's trials run elsewhere.
    job: str
    #: What made its parameters: ``enqueued``, ``random``, ``tpe``, ….
    sampler: str = field(default="", compare=False)
    #: How it ended, where that needs saying.
    message: str = ""
    #: When it was handed out, and when it ended.
    start_time: Optional[datetime] = None
    end_time: Optional[datetime] = None
    #: When it ran; between two it was paused, or waited to go on. Of very many the latest.
    stints: list[Stint] = field(default_factory=list, repr=False)


def reason(message: Any) -> Reason:
    return Reason(message.code, message.text)


def placement(message: Any) -> Placement:
    return Placement(message.rank, message.node, list(message.gpus))


def attempt(message: Any) -> Attempt:
    return Attempt(
        message.number,
        _wire.enum(message, "state"),
        _wire.time(message, "start_time"),
        _wire.time(message, "end_time"),
        _wire.optional(message, "exit_code"),
        _wire.optional(message, "failed_rank"),
        message.message,
    )


def checkpoint(message: Any) -> Checkpoint:
    metric = _wire.optional(message, "metric")
    return Checkpoint(message.attempt, message.step, _wire.time(message, "time"), metric, message.path)


def log_line(message: Any) -> LogLine:
    time, stream = _wire.time(message, "time"), _wire.enum(message, "stream")
    return LogLine(message.job, message.attempt, message.rank, stream, message.seq, time, message.line, message.partial)


def metric_point(message: Any) -> MetricPoint:
    time, metrics = _wire.time(message, "time"), dict(message.metrics)
    return MetricPoint(message.job, message.attempt, message.rank, message.step, time, metrics, message.seq)


def node(message: Any) -> Node:
    gpus = [
        Gpu(gpu.index, gpu.uuid, gpu.name, gpu.memory_total, gpu.memory_used, gpu.utilization, gpu.free)
        for gpu in message.gpus
    ]
    cpus, memory = (Amount(amount.total, amount.free) for amount in (message.cpus, message.memory))
    return Node(message.name, _wire.enum(message, "state"), cpus, memory, gpus, dict(message.labels))


def best(message: Any) -> Best:
    return Best(message.number, _wire.plain(message.params), message.value, list(message.values), message.job)


def sweep_trial(message: Any) -> SweepTrial:
    return SweepTrial(
        message.number,
        _wire.enum(message, "state"),
        _wire.plain(message.params),
        _wire.optional(message, "value"),
        list(message.values),
        _wire.optional(message, "step"),
        message.job,
        message.sampler,
        message.message,
        _wire.time(message, "start_time"),
        _wire.time(message, "end_time"),
        [Stint(_wire.time(stint, "start_time"), _wire.time(stint, "end_time")) for stint in message.stints],
    )
