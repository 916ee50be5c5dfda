"""Counts, and goes on where it was when it was stopped: `count.py STEPS`."""

import os
import sys
import tempfile
import time
from pathlib import Path

import phalanx

folder = phalanx.restore()
step = int(Path(folder, "step").read_text()) if folder else 0
print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} starts at step {step}", flush=True)
while step < int(sys.argv[1]):
    time.sleep(0.1)
    step += 1
    stop = phalanx.report(step, {"count": step})
    if os.environ["RANK"] == "0" and (stop or step % 5 == 0):
        with tempfile.TemporaryDirectory() as made:
            Path(made, "step").write_text(str(step))
            phalanx.checkpoint(made, step=step)
    if stop:
        break
