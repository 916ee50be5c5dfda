"""Searches for a network that reads digits, and says what it has found: `python3 examples/digits/search.py`."""

import pathlib

import phalanx

client = phalanx.Client()  # the service that runs on this machine
sweep = client.create_sweep(pathlib.Path(__file__).with_name("sweep.toml"))
print(f"{sweep.id} runs: watch it at /sweeps/{sweep.id}")
sweep = sweep.wait()
print(f"{sweep.state}: trial {sweep.best.number} reached {sweep.best.value:.3f} with {sweep.best.params}")
