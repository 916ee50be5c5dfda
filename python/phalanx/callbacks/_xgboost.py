"""XGBoost: what it evaluates at the end of each round."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any, Optional

import xgboost

import phalanx
from phalanx.callbacks import _report


class XGBoostCallback(xgboost.callback.TrainingCallback):  # type: ignore[misc]
    """Reports ``DATA/METRIC`` of every round (steps are rounds, from 1) and ends the training when the service wants it to.

    ``checkpoint_every`` rounds, and before it ends, the booster is handed over as ``model.ubj`` in a checkpoint folder::

        folder = phalanx.restore()
        xgboost.train(…, xgb_model=folder + "/model.ubj" if folder else None, callbacks=[XGBoostCallback(checkpoint_every=50)])
    """

    def __init__(self, *, checkpoint_every: Optional[int] = None) -> None:
        self._checkpoint_every = checkpoint_every

    def after_iteration(self, model: Any, epoch: int, evals_log: Mapping[str, Any]) -> bool:
        if not _report.is_first_rank():
            return False
        metrics: dict[str, Any] = {}
        for data, logged in evals_log.items():
            for name, values in logged.items():
                # Of cross-validation: the mean and its deviation.
                metrics[f"{data}/{name}"] = values[-1][0] if isinstance(values[-1], tuple) else values[-1]
        # Unlike `epoch` it counts those of the booster that this one goes on from.
        step = model.num_boosted_rounds()
        stop = _report.report(step, metrics)
        if self._checkpoint_every and (stop or step % self._checkpoint_every == 0):
            with tempfile.TemporaryDirectory() as folder:
                model.save_model(os.path.join(folder, "model.ubj"))
                phalanx.checkpoint(folder, step)
        return stop
