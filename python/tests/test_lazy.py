"""What a job imports: the standard library, and nothing that it does not use."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import subprocess
import sys
import unittest

import phalanx
import phalanx.callbacks


class Lazy(unittest.TestCase):
    def test_the_part_for_jobs_needs_the_standard_library_alone(self) -> None:
        code = "import json, sys, phalanx; phalanx.report(0, loss=1); print(json.dumps(sorted(sys.modules)))"
        # -S: without site-packages.
        python, package = [sys.executable, "-S", "-c", code], os.path.dirname(os.path.dirname(phalanx.__file__))
        found = subprocess.run(python, capture_output=True, text=True, check=True, cwd=package).stdout
        modules = {name.split(".")[0] for name in json.loads(found)}
        self.assertIn("phalanx", modules)
        self.assertFalse(modules & {"grpc", "google", "sklearn", "subprocess"}, modules)
        # Python 3.10 and later say which modules are theirs.
        standard = getattr(sys, "stdlib_module_names", modules)
        self.assertEqual(modules - set(standard) - {"phalanx", "__main__"}, set())

    def test_every_module_reads_as_python_3_9(self) -> None:
        modules = list(pathlib.Path(phalanx.__file__).parent.rglob("*.py"))
        self.assertGreater(len(modules), 10)
        for module in modules:
            ast.parse(module.read_text(), str(module), feature_version=(3, 9))

    def test_what_is_not_there_is_an_attribute_error(self) -> None:
        for module in (phalanx, phalanx.callbacks):
            with self.assertRaisesRegex(AttributeError, "no_such_name"):
                module.no_such_name

    def test_every_name_is_offered(self) -> None:
        for module in (phalanx, phalanx.callbacks):
            self.assertEqual(set(module.__all__) - set(dir(module)), set())
