"""The client against the real service."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import threading
import time
import unittest
from typing import Any

from tests.support import WithService

MISSING = [name for name in ("grpc", "google.protobuf") if importlib.util.find_spec(name.split(".")[0]) is None]
if not MISSING:
    import grpc

    from phalanx import Client
    from phalanx.client import Job
    from phalanx.errors import Infeasible, InvalidFile, NotFound, Unauthenticated, Unavailable, WrongState

REPORT = """
import phalanx
for step in (1, 2, 3):
    print("step", step, flush=True)
    phalanx.report(step, loss=1 / step)
"""


def sh(script: str, **more: Any) -> dict[str, Any]:
    """A job around a shell script."""
    return {"gang": {"cpus": 0.1}, "program": {"command": ["sh", "-c", script]}, **more}


@unittest.skipIf(MISSING, "grpcio and protobuf are not installed")
class Clients(WithService):
    def setUp(self) -> None:
        self.client = Client(data=self.real.data)
        self.addCleanup(self.client.close)

    def test_a_job_from_a_dict_to_its_end(self) -> None:
        job = self.client.submit(
            {
                "name": "report",
                "gang": {"cpus": 0.1},
                "program": {"command": ["python3", "-c", REPORT]},
            }
        )
        self.assertIsInstance(job, Job)
        self.assertEqual((job.name, job.done), ("report", False))
        lines = list(job.logs(follow=True))
        self.assertEqual([line.text for line in lines], ["step 1", "step 2", "step 3"])
        self.assertEqual([(line.seq, line.stream, line.rank) for line in lines], [(n, "STDOUT", 0) for n in (1, 2, 3)])
        ended = job.wait()
        self.assertEqual((ended.state, ended.exit_code, ended.done), ("SUCCEEDED", 0, True))
        assert ended.submit_time is not None and ended.end_time is not None
        self.assertLess(ended.submit_time, ended.end_time)
        self.assertEqual([attempt.state for attempt in ended.attempts], ["SUCCEEDED"])
        points = list(job.metrics())
        self.assertEqual([(point.step, point.metrics) for point in points], [(n, {"loss": 1 / n}) for n in (1, 2, 3)])
        self.assertEqual(self.client.job(job.id), ended)
        self.assertIn(job.id, [one.id for one in self.client.jobs()])
        self.assertNotIn(job.id, [one.id for one in self.client.jobs(unfinished=True)])

    def test_a_job_from_a_file_runs_in_its_folder(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "where.toml")
            with open(path, "w", encoding="utf-8") as file:
                file.write('version = 1\n[program]\ncommand = ["sh", "-c", "pwd; exit 3"]\n')
            ended = self.client.submit(path).wait()
            self.assertEqual((ended.name, ended.state, ended.exit_code), ("where", "FAILED", 3))
            self.assertEqual([line.text for line in ended.logs()], [os.path.realpath(folder)])

    def test_watch_ends_with_the_end(self) -> None:
        states = [job.state for job in self.client.submit(sh("true")).watch()]
        self.assertEqual((states[0], states[-1]), ("QUEUED", "SUCCEEDED"))

    def test_cancel_pause_and_resume(self) -> None:
        job = self.client.submit(sh("sleep 60", grace="1s"))
        with self.assertRaisesRegex(TimeoutError, job.id):
            job.wait(timeout_s=0.3)
        self.assertEqual(job.pause().id, job.id)
        self.until(lambda: job.refresh().state == "PAUSED")
        job.resume()
        job.cancel()
        self.assertEqual(job.wait(timeout_s=30).state, "CANCELLED")
        with self.assertRaises(WrongState):
            job.resume()

    def test_errors_are_of_their_kind(self) -> None:
        with self.assertRaisesRegex(NotFound, "j999"):
            self.client.job("j999")
        with self.assertRaisesRegex(InvalidFile, "command"):
            self.client.submit({"program": {"comand": ["true"]}})
        with self.assertRaisesRegex(Infeasible, "1000"):
            self.client.submit({"gang": {"cpus": 1000}, "program": {"command": ["true"]}}, validate_only=True)
        wrong = os.path.join(self.real.data, "wrong-token")
        with open(wrong, "w", encoding="ascii") as file:
            file.write("wrong")
        with Client(self.real.ready["grpc"], token_file=wrong) as client, self.assertRaises(Unauthenticated):
            client.nodes()
        with Client(self.real.ready["grpc"], token_file=wrong + "-missing") as client:
            with self.assertRaisesRegex(Unauthenticated, "token_file"):
                client.nodes()

    def test_a_service_that_stays_away_is_not_waited_for_for_ever(self) -> None:
        from phalanx import _connection

        self.addCleanup(setattr, _connection, "PATIENCE_S", _connection.PATIENCE_S)
        _connection.PATIENCE_S = 0.2
        with tempfile.TemporaryDirectory() as folder, Client(data=folder) as client:
            with self.assertRaisesRegex(Unavailable, "phalanx up"):
                client.nodes()

    def test_nodes(self) -> None:
        (node,) = self.client.nodes()
        self.assertEqual((node.state, node.cpus.total), ("READY", 4.0))

    def test_streams_and_calls_outlast_a_killed_service(self) -> None:
        job = self.client.submit(sh("for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done"))
        seen: list[str] = []
        states: list[str] = []

        def follow() -> None:
            seen.extend(line.text for line in job.logs(follow=True))

        def watch() -> None:
            states.append(job.wait().state)

        threads = [threading.Thread(target=target) for target in (follow, watch)]
        for thread in threads:
            thread.start()
        self.until(lambda: len(list(job.logs())) >= 2)
        self.real.kill()
        self.real.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual((seen, states), (["1", "2", "3", "4", "5", "6"], ["SUCCEEDED"]))

    def test_what_one_thread_gave_up_serves_another_to_its_end(self) -> None:
        from phalanx import _connection, _wire

        class Away(grpc.RpcError):
            def code(self) -> grpc.StatusCode:
                return grpc.StatusCode.UNAVAILABLE

            def details(self) -> str:
                return "away"

        connection = self.client._connection
        nodes = _wire.message("NodesRequest")()
        with connection._used() as channel:
            connection._cut(channel, Away(), {grpc.StatusCode.UNAVAILABLE}, _connection._Patience())
            self.assertEqual(len(self.client.nodes()), 1)
            with connection._used() as another:
                self.assertIsNot(another, channel)
            channel.method("Cluster", "Nodes")(nodes, metadata=channel.metadata, timeout=10)
        with self.assertRaisesRegex(ValueError, "closed"):
            channel.method("Cluster", "Nodes")(nodes, metadata=channel.metadata, timeout=10)

    def until(self, so: Any, limit_s: float = 30.0) -> None:
        start = time.monotonic()
        while not so():
            self.assertLess(time.monotonic() - start, limit_s)
            time.sleep(0.02)

    def test_a_sweep_from_a_dict_to_its_best(self) -> None:
        report = "import phalanx\nphalanx.report(1, loss=(phalanx.params()['x'] - 1) ** 2)\n"
        sweep = self.client.create_sweep(
            {
                "name": "descent",
                "gang": {"cpus": 0.5},
                "program": {"command": ["python3", "-c", report]},
                "sweep": {"metric": "loss", "mode": "min", "trials": 4, "seed": 1},
                "search": {"kind": "random"},
                "params": {"x": {"kind": "float", "low": 0.0, "high": 2.0}, "k": {"kind": "int", "low": 1, "high": 9}},
            }
        )
        states = [one.state for one in sweep.watch()]
        self.assertEqual(states[-1], "SUCCEEDED")
        ended = sweep.wait(timeout_s=30)
        trials = list(ended.trials())
        self.assertEqual([(trial.number, trial.state) for trial in trials], [(n, "COMPLETE") for n in range(4)])
        for trial in trials:
            assert trial.value is not None
            self.assertAlmostEqual(trial.value, (trial.params["x"] - 1) ** 2)
            self.assertIsInstance(trial.params["k"], int)
            (stint,) = trial.stints
            times = [trial.start_time, stint.start_time, stint.end_time, trial.end_time]
            assert all(times)
            self.assertEqual(times, sorted(times))
            self.assertEqual(self.client.job(trial.job).trial, trial.number)
        assert ended.best is not None
        self.assertEqual(ended.best.number, min(trials, key=lambda trial: trial.value or 0.0).number)
        self.assertEqual(ended.counts["complete"], 4)
        self.assertIn(ended.id, [one.id for one in self.client.sweeps()])
        with self.assertRaises(NotFound):
            self.client.sweep("s999")
