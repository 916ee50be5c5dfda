"""TOML that is written: read back by a reader of TOML where there is one (Python 3.11)."""

from __future__ import annotations

import math
import unittest
from typing import Any

from phalanx import _toml

try:
    import tomllib
except ImportError:
    tomllib = None  # type: ignore[assignment]

SWEEP: dict[str, Any] = {
    "version": 1,
    "name": 'a "quoted" näme\n\t\\ \x7f \u0001 😀',
    "sweep": {"metric": "val/loss", "mode": "min", "trials": 3, "nothing": None},
    "params": {
        "lr": {"kind": "float", "low": 1e-5, "high": 0.1, "log": True},
        "svc__C": {"kind": "choice", "values": ["a", 1, 2.5, True]},
        "a b": 7,
    },
    "enqueue": [{"lr": 1e-3}, {"lr": 1e22}],
    "program": {"command": ["sh", "-c", "true"], "empty": []},
}


class Toml(unittest.TestCase):
    @unittest.skipIf(tomllib is None, "no tomllib before Python 3.11")
    def test_what_is_written_reads_back(self) -> None:
        read = tomllib.loads(_toml.dumps(SWEEP))
        wanted = {**SWEEP, "sweep": {k: v for k, v in SWEEP["sweep"].items() if v is not None}}
        self.assertEqual(read, wanted)

    def test_numbers_that_are_no_json(self) -> None:
        written = _toml.dumps({"a": math.nan, "b": math.inf, "c": -math.inf, "d": -0.0})
        self.assertEqual(written, "a = nan\nb = inf\nc = -inf\nd = -0.0\n")

    def test_what_has_no_form_is_an_error(self) -> None:
        for document in ({"a": object()}, {1: 2}, {"a": [None]}):
            with self.assertRaises(TypeError):
                _toml.dumps(document)  # type: ignore[arg-type]
