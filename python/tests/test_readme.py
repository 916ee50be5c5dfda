"""What the README shows, as a reader would run it.

A block after `<!-- file: NAME -->` is saved; one after `<!-- executed -->` is run in a folder with those files, with a service
up, and has to print the `text` block after it, in which `…` stands for anything. One that says `executed: MODULE` needs that.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

from tests.support import PACKAGE, WithService, binary

BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```\n", re.DOTALL)


class Block(NamedTuple):
    mark: str
    language: str
    text: str


def blocks() -> list[Block]:
    with open(os.path.join(PACKAGE, "README.md"), encoding="utf-8") as file:
        return [Block(found["mark"] or "", found["language"], found["text"]) for found in BLOCK.finditer(file.read())]


class Readme(WithService):
    def test_every_block_works(self) -> None:
        found = blocks()
        self.assertGreaterEqual(sum(block.language == "python" for block in found), 4)
        with tempfile.TemporaryDirectory() as folder:
            for block, after in zip(found, [*found[1:], Block("", "", "")]):
                if block.language != "python":
                    continue
                if block.mark.startswith("file: "):
                    with open(os.path.join(folder, block.mark[6:]), "w", encoding="utf-8") as file:
                        file.write(block.text)
                    self.assertRegex(self.run_python(folder, [block.mark[6:]]), r"\Aloss \d")
                    continue
                mark, _, needed = block.mark.partition(": ")
                self.assertEqual(mark, "executed", block.text)
                needed = needed or "grpc"
                with self.subTest(needed=needed):
                    if importlib.util.find_spec(needed) is None:
                        self.skipTest(f"{needed} not installed")
                    self.assertEqual(after.language, "text")
                    wanted = ".*".join(map(re.escape, after.text.split("…")))
                    self.assertRegex(self.run_python(folder, ["-c", block.text]), rf"\A{wanted}\Z")

    def run_python(self, folder: str, args: list[str]) -> str:
        env = {
            **os.environ,
            "PHALANX_DATA": self.real.data,
            "PYTHONPATH": PACKAGE,
            "PATH": os.path.dirname(os.path.abspath(binary())) + os.pathsep + os.environ["PATH"],
        }
        ended = subprocess.run([sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        return ended.stdout
