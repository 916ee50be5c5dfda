"""A search whose trials run in this program: ask for parameters, report values, tell how it ended.

The samplers and the early stopping are those of ``phalanx``, which runs beside as ``phalanx study``.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Callable, Optional, Union

from phalanx import _binary, _toml
from phalanx.errors import StudyError

__all__ = ["Best", "Study", "Trial"]

#: Longest wait for the process to end once it has nothing more to read, in seconds.
END_PATIENCE_S = 10.0
#: Between two asks while there is nothing to run but trials of other threads, in seconds.
WAIT_S = 0.02

Values = Union[float, Sequence[float]]


@dataclass(frozen=True)
class Best:
    """The best completed trial, or one of the front where there are several objectives."""

    number: int
    params: dict[str, Any]
    #: The value of each objective.
    values: list[float]

    @property
    def value(self) -> float:
        """The value of the first objective."""
        return self.values[0]


@dataclass
class Trial:
    """Parameters to try."""

    number: int
    params: dict[str, Any]
    #: It was paused and goes on: from its checkpoint, if it kept one.
    resumed: bool = False
    #: The trial whose checkpoint it goes on from, in population-based training.
    source: Optional[int] = None
    #: What proposed it: ``tpe``, ``random``, …
    sampler: str = ""
    #: ``stop`` or ``pause`` once the study has said so; it runs while this is ``continue``.
    decision: str = "continue"
    _study: Optional[Study] = field(default=None, repr=False, compare=False)

    def report(self, step: int, value: float) -> str:
        """Reports the metric at a step, and returns ``continue``, ``stop`` or ``pause``.

        After ``stop`` the trial is over; after ``pause`` it may come back from :meth:`Study.ask`.
        """
        self.decision = self._owner().report(self.number, step, value)
        return self.decision

    def tell(self, value: Optional[Values] = None, *, constraints: Optional[Mapping[str, float]] = None) -> None:
        """The trial is complete: with this value, one for each objective, or without any that of its last report."""
        self._owner().tell(self.number, value, constraints=constraints)

    def fail(self) -> None:
        """The trial failed."""
        self._owner().tell(self.number, state="failed")

    def _owner(self) -> Study:
        if self._study is None:
            raise StudyError("the trial belongs to no study")
        return self._study


class Study:
    """A search over the space of a sweep file, or of a dict of the same form.

    >>> with Study({
    ...     "sweep": {"metric": "loss", "mode": "min", "trials": 20, "seed": 7},
    ...     "params": {"x": {"kind": "float", "low": -5.0, "high": 5.0}},
    ... }) as study:
    ...     for trial in study:
    ...         trial.tell(trial.params["x"] ** 2)
    >>> study.best.value < 1
    True

    With ``journal`` every trial is kept in that file, and a study of the same file goes on where it ends. Threads may share
    a study.
    """

    def __init__(
        self,
        sweep: Union[str, os.PathLike[str], Mapping[str, Any]],
        *,
        journal: Union[None, str, os.PathLike[str]] = None,
        binary: Optional[str] = None,
    ) -> None:
        self._lock = threading.Lock()
        self._written: Optional[str] = None
        #: Trials that were asked for and are not over, and the threads that asked.
        self._open: dict[int, int] = {}
        #: The best completed trial so far, and the front where there are several objectives.
        self.best: Optional[Best] = None
        self.front: list[Best] = []
        command = [_binary.find(binary), "study"]
        if isinstance(sweep, Mapping):
            self._written = _write({"version": 1, **sweep})
            command.append(self._written)
        else:
            command.append(os.fspath(sweep))
        if journal is not None:
            command += ["--journal", os.fspath(journal)]
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=-1
            )
        except BaseException:
            self._forget()
            raise
        try:
            # What a journal has found so far; and a file that is wrong is told at once.
            self._hear(self._request({"op": "best"}))
        except BaseException:
            self.close()
            raise

    def ask(self) -> Optional[Trial]:
        """The next trial, new or resumed; None when there are no more, or none before another one is told."""
        trial = self._request({"op": "ask"}).get("trial")
        if trial is None:
            return None
        self._open[trial["number"]] = threading.get_ident()
        return Trial(
            trial["number"],
            trial["params"],
            bool(trial.get("resumed")),
            trial.get("from"),
            trial.get("sampler") or "",
            _study=self,
        )

    def report(self, number: int, step: int, value: float) -> str:
        """Reports a trial's metric at a step; returns ``continue``, ``stop`` or ``pause``.

        A value that is not finite cannot be compared with others: the trial is best told failed.
        """
        if not math.isfinite(value):
            raise StudyError(f"trial {number} reported {value}; tell it failed, or report a large number instead")
        request = {"op": "report", "number": number, "step": step, "value": float(value)}
        decision = str(self._request(request)["decision"])
        if decision != "continue":
            self._open.pop(number, None)
        return decision

    def tell(
        self,
        number: int,
        value: Optional[Values] = None,
        *,
        state: Optional[str] = None,
        constraints: Optional[Mapping[str, float]] = None,
    ) -> None:
        """Says how a trial ended: complete with this value, one for each objective, or without any that of its last report.

        ``state`` says otherwise: ``failed``, ``stopped``, ``cancelled``. A trial whose value is not finite has failed.
        ``constraints`` are the values of the metrics that the sweep's ``[[constraint]]`` tables name.
        """
        request: dict[str, Any] = {"op": "tell", "number": number}
        values = None if value is None else [float(one) for one in (value if isinstance(value, Sequence) else [value])]
        if state is not None:
            request["state"] = state
        elif values is None:
            request["state"] = "complete"
        elif not all(map(math.isfinite, values)):
            request["state"] = "failed"
        else:
            request["values"] = values
        if constraints is not None:
            request["constraints"] = {name: float(value) for name, value in constraints.items()}
        self._hear(self._request(request))
        self._open.pop(number, None)

    def importance(self) -> dict[str, float]:
        """How much each parameter matters to the first objective, as parts of 1; empty before there is enough to tell."""
        return dict(self._request({"op": "importance"})["importance"])

    def _hear(self, answer: Mapping[str, Any]) -> None:
        if "front" in answer:
            self.front = [Best(one["number"], one["params"], one["values"]) for one in answer["front"]]
            self.best = self.front[0] if self.front else None
        elif answer.get("best"):
            best = answer["best"]
            self.best = Best(best["number"], best["params"], [best["value"]])

    def __iter__(self) -> Iterator[Trial]:
        """Every trial until there are no more; each is over before the next one is asked for."""
        while True:
            trial = self.ask()
            if trial is not None:
                yield trial
            elif self._runs_elsewhere():
                # What comes of it may let a trial go on that waits.
                time.sleep(WAIT_S)
            else:
                return

    def _runs_elsewhere(self) -> bool:
        """Whether another thread that lives has a trial under way."""
        others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        return not others.isdisjoint(list(self._open.values()))

    def optimize(self, objective: Callable[[Trial], Values]) -> Optional[Best]:
        """Runs every trial through ``objective``, which returns its value or values; returns the best.

        An objective that reports returns once :attr:`Trial.decision` is no longer ``continue``; its value then does not
        count. One that raises fails its trial, and the error is raised on.
        """
        for trial in self:
            try:
                value = objective(trial)
            except BaseException:
                trial.fail()
                raise
            if trial.decision == "continue":
                trial.tell(value)
        return self.best

    def close(self) -> None:
        """Ends the study; its journal, if it has one, is complete."""
        with self._lock:
            process = self._process
            if process.stdin is not None and not process.stdin.closed:
                try:
                    process.stdin.close()
                except BrokenPipeError:
                    pass
                try:
                    process.wait(END_PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if process.stdout is not None:
                    process.stdout.close()
            self._forget()

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            if stdin is None or stdout is None or stdin.closed:
                raise StudyError("the study is closed")
            try:
                stdin.write(line)
                stdin.flush()
                answered = stdout.readline()
            except BrokenPipeError:
                answered = b""
            if not answered.endswith(b"\n"):
                raise StudyError(self._end())
        answer = json.loads(answered)
        if "error" in answer:
            raise StudyError(answer["error"])
        return dict(answer)

    def _end(self) -> str:
        """Why the process has ended."""
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return said or f"`phalanx study` ended with code {code}"

    def _forget(self) -> None:
        self._errors.close()
        if self._written is not None:
            try:
                os.unlink(self._written)
            except FileNotFoundError:
                pass
            self._written = None


def _write(document: Mapping[str, Any]) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False, encoding="utf-8") as file:
        file.write(_toml.dumps(document))
    return file.name
