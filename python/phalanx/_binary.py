"""The ``phalanx`` command that belongs to this package."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from typing import Optional


def find(binary: Optional[str] = None) -> str:
    """The path of the command: the one that is named, the one beside this Python, or the one on ``PATH``."""
    if binary is not None:
        return binary
    # A wheel puts it there; whoever runs a venv's Python by its path has not got the folder on PATH.
    for folder in (sysconfig.get_path("scripts"), os.path.dirname(sys.executable)):
        path = os.path.join(folder or "", "phalanx")
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("phalanx")
    if found is None:
        raise FileNotFoundError("there is no `phalanx` command; pip install phalanx, or put it on PATH")
    return found
