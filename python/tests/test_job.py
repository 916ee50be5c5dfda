"""The module against a socket that plays the service, in its good and its bad moods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import unittest
import warnings
from typing import Any

import phalanx
from tests.support import InJob, content


class Job(InJob):
    def test_a_report_is_the_line_of_the_contract(self) -> None:
        self.assertIs(phalanx.report(3, {"loss": 0.2, "val/loss": 1}, accuracy=0.5), False)
        wanted = {"report": {"step": 3, "metrics": {"loss": 0.2, "val/loss": 1.0, "accuracy": 0.5}}}
        self.assertEqual(self.service.lines, [wanted])

    def test_values_that_json_has_not(self) -> None:
        phalanx.report(0, {"a": float("nan"), "b": float("inf"), "c": float("-inf")})
        self.assertEqual(self.service.lines[0]["report"]["metrics"], {"a": "nan", "b": "inf", "c": "-inf"})

    def test_things_that_are_numbers_by_conversion(self) -> None:
        class Scalar:
            def __float__(self) -> float:
                return 2.5

            def __index__(self) -> int:
                return 7

        phalanx.report(Scalar(), {"a": Scalar()})  # type: ignore[arg-type]
        self.assertEqual(self.service.lines[0]["report"], {"step": 7, "metrics": {"a": 2.5}})

    def test_stop_stays(self) -> None:
        self.service.mood = lambda _: {"ok": True, "stop": True}
        self.assertFalse(phalanx.should_stop())
        self.assertTrue(phalanx.report(1, loss=1.0))
        self.service.mood = content
        self.assertTrue(phalanx.report(2, loss=1.0))
        self.assertTrue(phalanx.should_stop())

    def test_a_checkpoint_is_handed_over_by_its_absolute_path(self) -> None:
        folder = os.path.join(self.folder, "ckpt")
        os.mkdir(folder)
        phalanx.checkpoint(os.path.relpath(folder), step=4)
        handed = self.service.lines[0]["checkpoint"]
        self.assertEqual((handed["step"], os.path.realpath(handed["path"])), (4, os.path.realpath(folder)))

    def test_a_slow_checkpoint_does_not_hold_up_reports(self) -> None:
        release = threading.Event()

        def slow(request: dict[str, Any]) -> dict[str, Any]:
            if "checkpoint" in request:
                release.wait(10)
            return {"ok": True, "stop": False}

        self.service.mood = slow
        thread = threading.Thread(target=phalanx.checkpoint, args=(self.folder,), kwargs={"step": 1})
        thread.start()
        phalanx.report(1, loss=1.0)
        self.assertTrue(thread.is_alive())
        release.set()
        thread.join(10)
        self.assertFalse(thread.is_alive())

    def test_what_is_refused_raises_and_does_not_come_back(self) -> None:
        self.service.mood = lambda _: {"error": "the name is too long"}
        with self.assertRaisesRegex(ValueError, "the name is too long"):
            phalanx.report(1, loss=1.0)
        with self.assertRaisesRegex(ValueError, "the name is too long"):
            phalanx.checkpoint(self.folder, step=1)
        self.service.mood = content
        phalanx.report(2, loss=1.0)
        self.assertEqual(self.service.steps(), [1, 2])

    def test_what_can_never_be_accepted_is_not_sent(self) -> None:
        for step, metrics, error in [
            (-1, {"a": 1}, ValueError),
            (1 << 64, {"a": 1}, ValueError),
            (1.5, {"a": 1}, TypeError),
            (True, {"a": 1}, TypeError),
            ("1", {"a": 1}, TypeError),
            (1, {}, ValueError),
            (1, {"a": "1"}, TypeError),
            (1, {"a": None}, TypeError),
            (1, {2: 1}, TypeError),
            (1, {"a" * (1 << 20): 1}, ValueError),
        ]:
            with self.assertRaises(error, msg=f"{step!r} {str(metrics)[:40]}"):
                phalanx.report(step, metrics)  # type: ignore[arg-type]
        with self.assertRaises(NotADirectoryError):
            phalanx.checkpoint(os.path.join(self.folder, "absent"), step=1)
        self.assertEqual(self.service.lines, [])

    def test_a_report_that_was_not_answered_is_repeated(self) -> None:
        hang_ups = iter([None, None])
        self.service.mood = lambda _: next(hang_ups, {"ok": True, "stop": False})
        phalanx.report(1, loss=1.0)
        self.assertEqual(self.service.steps(), [1, 1, 1])

    def test_a_service_that_comes_back_is_met_again(self) -> None:
        phalanx.report(1, loss=1.0)
        self.service.stop()
        threading.Timer(0.3, self.service.start).start()
        phalanx.report(2, loss=1.0)
        self.assertEqual(self.service.steps(), [1, 2])

    def test_training_goes_on_while_the_service_stays_away(self) -> None:
        self.patch("REPORT_PATIENCE_S", 0.2)
        self.service.stop()
        with self.assertWarnsRegex(RuntimeWarning, "sending the reports later"):
            phalanx.report(1, loss=1.0)
        start = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(2, 7):
                phalanx.report(step, loss=1.0)
        self.assertLess(time.monotonic() - start, 2.0)
        self.service.start()
        phalanx.report(7, loss=1.0)
        self.assertEqual(self.service.steps(), [1, 2, 3, 4, 5, 6, 7])

    def test_a_checkpoint_that_is_not_durable_raises(self) -> None:
        self.service.stop()
        with self.assertRaises(ConnectionError):
            phalanx.checkpoint(self.folder, step=1, patience_s=0.2)

    def test_a_service_that_never_answers_is_given_up(self) -> None:
        self.service.mood = lambda _: time.sleep(5)  # type: ignore[assignment,return-value]
        self.patch("REPORT_PATIENCE_S", 0.2)
        start = time.monotonic()
        with self.assertWarns(RuntimeWarning):
            phalanx.report(1, loss=1.0)
        self.assertLess(time.monotonic() - start, 3.0)

    def test_threads_share_the_module(self) -> None:
        def work(first: int) -> None:
            for step in range(first, first + 50):
                phalanx.report(step, loss=1.0)

        threads = [threading.Thread(target=work, args=(50 * i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(self.service.steps()), list(range(400)))

    def test_a_forked_child_has_a_connection_of_its_own(self) -> None:
        phalanx.report(1, loss=1.0)
        child = os.fork()
        if child == 0:
            try:
                phalanx.report(2, loss=1.0)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        phalanx.report(3, loss=1.0)
        self.assertEqual(self.service.steps(), [1, 2, 3])
        self.assertEqual(len(self.service._open), 2)

    def test_reports_that_wait_are_sent_at_the_end(self) -> None:
        self.service.stop()
        program = (
            "import phalanx, sys\nfrom phalanx import _job\n_job.REPORT_PATIENCE_S = 0.05\n"
            "phalanx.report(1, loss=1.0)\nprint('done', flush=True)\nsys.stdin.read()\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=os.path.dirname(os.path.dirname(phalanx.__file__)),
        )
        assert child.stdout is not None
        self.assertEqual(child.stdout.readline(), b"done\n")
        self.service.start()
        child.communicate()
        self.assertEqual((child.returncode, self.service.steps()), (0, [1]))

    def test_parameters_and_checkpoint_come_from_the_environment(self) -> None:
        path = os.path.join(self.folder, "params.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"lr": 0.1, "opt": "adamw"}, file)
        self.set("PHALANX_PARAMS", path)
        self.set("PHALANX_CHECKPOINT", self.folder)
        self.assertEqual(phalanx.params(), {"lr": 0.1, "opt": "adamw"})
        self.assertEqual(phalanx.restore(), self.folder)


class OutsideJob(unittest.TestCase):
    def test_nothing_happens(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PHALANX_")}
        program = (
            "import phalanx, tempfile\n"
            "assert phalanx.report(1, {'loss': 0.5}, a=1) is False\n"
            "phalanx.checkpoint(tempfile.mkdtemp(), step=1)\n"
            "assert phalanx.restore() is None and phalanx.params() == {} and phalanx.should_stop() is False\n"
        )
        folder = os.path.dirname(os.path.dirname(phalanx.__file__))
        subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=folder, timeout=30)


if __name__ == "__main__":
    unittest.main()
