"""Training frameworks joined to jobs: each reports its metrics, and ends the training when the service wants it to end.

Outside a job they do nothing. A framework is imported when its callback is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phalanx.callbacks._keras import KerasCallback as KerasCallback
    from phalanx.callbacks._lightgbm import LightGBMCallback as LightGBMCallback
    from phalanx.callbacks._lightning import LightningCallback as LightningCallback
    from phalanx.callbacks._transformers import TransformersCallback as TransformersCallback
    from phalanx.callbacks._xgboost import XGBoostCallback as XGBoostCallback

_LAZY = {
    "KerasCallback": "_keras",
    "LightGBMCallback": "_lightgbm",
    "LightningCallback": "_lightning",
    "TransformersCallback": "_transformers",
    "XGBoostCallback": "_xgboost",
}
__all__ = ["KerasCallback", "LightGBMCallback", "LightningCallback", "TransformersCallback", "XGBoostCallback"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
