"""The study against the real `phalanx study`."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import unittest
from typing import Any

from phalanx.errors import StudyError
from phalanx.study import Study, Trial
from tests.support import binary

SWEEP: dict[str, Any] = {
    "sweep": {"metric": "loss", "mode": "min", "trials": 12, "seed": 3},
    "search": {"kind": "tpe"},
    "params": {"x": {"kind": "float", "low": -5.0, "high": 5.0}, "k": {"kind": "choice", "values": ["a", "b"]}},
}


def square(trial: Trial) -> float:
    return float(trial.params["x"]) ** 2


def run(trial: Trial) -> dict[str, Any]:
    trial.tell(square(trial))
    return trial.params


class Studies(unittest.TestCase):
    def setUp(self) -> None:
        self.binary = binary()

    def study(self, sweep: Any = None, **more: Any) -> Study:
        study = Study(sweep or SWEEP, binary=self.binary, **more)
        self.addCleanup(study.close)
        return study

    def test_trials_until_there_are_no_more(self) -> None:
        with self.study() as study:
            told = []
            for trial in study:
                told.append((square(trial), trial.number))
                trial.tell(square(trial))
            self.assertEqual([number for _, number in told], list(range(12)))
            assert study.best is not None
            self.assertEqual((study.best.value, study.best.number), min(told))
            self.assertEqual(set(study.best.params), {"x", "k"})

    def test_a_journal_goes_on_where_it_was(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            journal = os.path.join(folder, "study.log")
            with self.study(journal=journal) as study:
                first = [run(trial) for trial in itertools.islice(study, 4)]
            with self.study(journal=journal) as study:
                rest = [run(trial) for trial in study]
            with self.study(journal=journal) as study:
                # It knows what was found before anything is told.
                assert study.best is not None
                self.assertIsNone(study.ask())
        with self.study() as study:
            self.assertEqual(first + rest, [run(trial) for trial in study])

    def test_optimize_stops_the_poor_and_fails_what_raises(self) -> None:
        sweep = {**SWEEP, "stopping": {"kind": "threshold", "upper": 4.0}}
        stopped: list[int] = []

        def objective(trial: Trial) -> float:
            if trial.report(1, square(trial)) == "stop":
                stopped.append(trial.number)
            return square(trial)

        with self.study(sweep) as study:
            best = study.optimize(objective)
            assert best is not None
            self.assertLess(best.value, 4.0)
            self.assertTrue(stopped, "no trial of a wide space was above the threshold")

        def broken(_: Trial) -> float:
            raise RuntimeError("no")

        with self.study() as study, self.assertRaisesRegex(RuntimeError, "no"):
            study.optimize(broken)

    def test_what_is_not_finite_has_failed(self) -> None:
        with self.study() as study:
            trial = study.ask()
            assert trial is not None
            with self.assertRaisesRegex(StudyError, "nan"):
                trial.report(1, float("nan"))
            trial.tell(float("inf"))
            self.assertIsNone(study.best)

    def test_a_refused_request_changes_nothing(self) -> None:
        with self.study() as study:
            trial = study.ask()
            assert trial is not None
            trial.report(2, 1.0)
            with self.assertRaises(StudyError):
                trial.report(1, 1.0)
            with self.assertRaises(StudyError):
                study.tell(99, 1.0)
            trial.tell()
            assert study.best is not None
            self.assertEqual(study.best.value, 1.0)

    def test_a_wrong_file_says_what_is_wrong(self) -> None:
        with self.assertRaisesRegex(StudyError, "mode"):
            self.study({"sweep": {"metric": "loss", "mode": "sideways"}})
        study = self.study()
        study.close()
        with self.assertRaisesRegex(StudyError, "closed"):
            study.ask()

    def test_threads_share_a_study(self) -> None:
        numbers: list[int] = []

        def work(study: Study) -> None:
            for trial in study:
                trial.tell(square(trial))
                numbers.append(trial.number)

        with self.study() as study:
            threads = [threading.Thread(target=work, args=(study,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(sorted(numbers), list(range(12)))

    def test_constraints_and_importance(self) -> None:
        sweep = {**SWEEP, "constraint": [{"metric": "size", "max": 1.0}]}
        with self.study(sweep) as study:
            for trial in study:
                trial.tell(square(trial), constraints={"size": abs(trial.params["x"])})
            # What breaks a constraint is not best.
            self.assertTrue(study.best is None or abs(study.best.params["x"]) <= 1.0)
            importance = study.importance()
        self.assertEqual(set(importance), {"x", "k"})
        self.assertGreater(importance["x"], importance["k"])

    def test_trials_that_are_never_told_hang_nothing(self) -> None:
        with self.study() as study:
            self.assertEqual(len(list(study)), 12)

    def test_several_objectives_have_a_front(self) -> None:
        sweep = {
            "sweep": {"trials": 8, "seed": 1},
            "objective": [{"metric": "a", "mode": "min"}, {"metric": "b", "mode": "min"}],
            "search": {"kind": "random"},
            "params": {"x": {"kind": "float", "low": 0.0, "high": 1.0}},
        }
        with self.study(sweep) as study:
            for trial in study:
                trial.tell([trial.params["x"], 1 - trial.params["x"]])
            self.assertEqual(len(study.front), 8)
