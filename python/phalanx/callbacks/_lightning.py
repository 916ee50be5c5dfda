"""Lightning: what a module logs."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any, Optional

# Both names are in use; a program that has imported one means that one.
if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback
else:
    from lightning.pytorch import Callback

import phalanx
from phalanx.callbacks import _report

#: The file of a checkpoint folder.
FILE = "lightning.ckpt"


class LightningCallback(Callback):  # type: ignore[misc]
    """Reports what the module logs (steps are optimizer steps) and ends the training when the service wants it to end.

    What is logged in a training step comes every ``trainer.log_every_n_steps``, what is logged in a validation or at the end of
    an epoch comes with those. ``checkpoint_every`` epochs, and before it ends, a checkpoint is handed over::

        callback = LightningCallback(checkpoint_every=1)
        Trainer(callbacks=[callback]).fit(module, ckpt_path=callback.restore())
    """

    def __init__(self, *, checkpoint_every: Optional[int] = None) -> None:
        self._checkpoint_every = checkpoint_every
        #: Which names belong to which hook: that in which they were first seen.
        self._names: dict[str, set[str]] = {"batch": set(), "validation": set(), "epoch": set()}

    def restore(self) -> Optional[str]:
        """What ``fit`` takes as ``ckpt_path``: a file after a failure, a pause or a preemption, else None."""
        folder = phalanx.restore()
        return os.path.join(folder, FILE) if folder else None

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step and trainer.global_step % trainer.log_every_n_steps == 0:
            self._report(trainer, "batch")

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._report(trainer, "validation")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self._report(trainer, "epoch")
        every = self._checkpoint_every
        if every and ((trainer.current_epoch + 1) % every == 0 or trainer.should_stop):
            self._hand_over(trainer)

    def _report(self, trainer: Any, hook: str) -> None:
        logged = trainer.callback_metrics
        known = set().union(*(names for place, names in self._names.items() if place != hook))
        # The trainer keeps old values: one is reported where it is new, not again with every later step.
        metrics = {name: value for name, value in logged.items() if name not in known}
        self._names[hook].update(metrics)
        stop = _report.report(trainer.global_step, metrics) if trainer.is_global_zero else False
        # The same hooks run on every rank, so this meets.
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            trainer.should_stop = True

    def _hand_over(self, trainer: Any) -> None:
        # Every rank takes part in saving, into a folder that rank 0 names.
        with tempfile.TemporaryDirectory() as own:
            folder = trainer.strategy.broadcast(own)
            trainer.save_checkpoint(os.path.join(folder, FILE))
            if trainer.is_global_zero:
                phalanx.checkpoint(folder, trainer.global_step)
            trainer.strategy.barrier()
