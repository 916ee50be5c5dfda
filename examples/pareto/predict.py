"""Nearest neighbours on the digits, in plain Python: more examples and features are better, and slower."""

import csv
import pathlib
import time

import phalanx

params = phalanx.params()
k = params.get("neighbours", 3)
examples = params.get("examples", 200)
features = params.get("features", 64)

path = pathlib.Path(__file__).parent.parent / "digits" / "digits.csv"
with open(path, newline="") as file:
    rows = list(csv.DictReader(file))
names = [name for name in rows[0] if name != "label"][:features]
points = [([float(row[name]) for name in names], row["label"]) for row in rows]
known, asked = points[:examples], points[-100:]


def label(point):
    """The most frequent label among the nearest known points."""
    distances = sorted((sum((a - b) ** 2 for a, b in zip(point, other)), label) for other, label in known)
    nearest = [found for _, found in distances[:k]]
    return max(nearest, key=nearest.count)


started = time.perf_counter()
right = sum(label(point) == truth for point, truth in asked)
latency_ms = 1000 * (time.perf_counter() - started) / len(asked)
phalanx.report(1, accuracy=right / len(asked), latency_ms=latency_ms)
