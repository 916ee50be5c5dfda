"""Keras: what ``fit`` logs at the end of each epoch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any, Optional

import keras

import phalanx
from phalanx.callbacks import _report


class KerasCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Reports the logs of every epoch (steps are epochs, from 1) and stops ``fit`` when the service wants it to end.

    ``checkpoint_every`` epochs, and before it stops, the model is handed over as ``model.keras`` in a checkpoint folder::

        folder = phalanx.restore()
        model = keras.saving.load_model(folder + "/model.keras") if folder else build()
    """

    def __init__(self, *, checkpoint_every: Optional[int] = None) -> None:
        super().__init__()
        self._checkpoint_every = checkpoint_every

    def on_epoch_end(self, epoch: int, logs: Optional[Mapping[str, Any]] = None) -> None:
        if not _report.is_first_rank():
            return
        stop = _report.report(epoch + 1, logs or {})
        if self._checkpoint_every and (stop or (epoch + 1) % self._checkpoint_every == 0):
            with tempfile.TemporaryDirectory() as folder:
                self.model.save(os.path.join(folder, "model.keras"))
                phalanx.checkpoint(folder, epoch + 1)
        if stop:
            self.model.stop_training = True
