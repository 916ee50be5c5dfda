"""What the callbacks have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import phalanx


def is_first_rank() -> bool:
    """Whether this process speaks for its gang: every rank has the same metrics, one reports them."""
    return os.environ.get("RANK", "0") == "0"


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What of ``metrics`` is a number: floats, integers, arrays and tensors of one element."""
    found = {}
    for name, value in metrics.items():
        if isinstance(value, (str, bytes)) or value is None:
            continue
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            # Text, a histogram, a tensor of several elements: not a curve.
            continue
    return found


def report(step: int, metrics: Mapping[str, Any]) -> bool:
    """Reports what there is, and returns whether the service wants this run to end."""
    found = numbers(metrics)
    return phalanx.report(step, found) if found else phalanx.should_stop()
