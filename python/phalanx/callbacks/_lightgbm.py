"""LightGBM: what it evaluates at the end of each round."""

from __future__ import annotations

import os
import tempfile
from typing import Any, Optional

import lightgbm

import phalanx
from phalanx.callbacks import _report


class LightGBMCallback:
    """Reports ``DATA/METRIC`` of every round (steps are rounds, from 1) and ends the training when the service wants it to.

    ``checkpoint_every`` rounds, and before it ends, the booster is handed over as ``model.txt`` in a checkpoint folder::

        folder = phalanx.restore()
        lightgbm.train(…, init_model=folder + "/model.txt" if folder else None, callbacks=[LightGBMCallback()])
    """

    #: After the evaluation, and after LightGBM's own early stopping has had its say.
    order = 40
    before_iteration = False

    def __init__(self, *, checkpoint_every: Optional[int] = None) -> None:
        self._checkpoint_every = checkpoint_every

    def __call__(self, env: Any) -> None:
        if not _report.is_first_rank():
            return
        step = env.iteration + 1
        evaluated = env.evaluation_result_list or []
        stop = _report.report(step, {f"{one[0]}/{one[1]}": one[2] for one in evaluated})
        if self._checkpoint_every and (stop or step % self._checkpoint_every == 0):
            with tempfile.TemporaryDirectory() as folder:
                env.model.save_model(os.path.join(folder, "model.txt"))
                phalanx.checkpoint(folder, step)
        if stop:
            raise lightgbm.callback.EarlyStopException(env.iteration, evaluated)
