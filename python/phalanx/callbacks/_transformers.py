"""Hugging Face transformers: what its ``Trainer`` logs and saves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Optional

import transformers

import phalanx
from phalanx.callbacks import _report


class TransformersCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Reports whatever the ``Trainer`` logs, hands over the checkpoints that it saves, and ends the training when the service
    wants it to end.

    A restarted job goes on by ``trainer.train(resume_from_checkpoint=phalanx.restore())``.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: Optional[Mapping[str, Any]] = None, **_: Any) -> None:
        stop = False
        if state.is_world_process_zero:
            stop = _report.report(state.global_step, logs or {})
        # Logs come at the same steps on every rank, so this meets.
        if _anywhere(stop):
            control.should_training_stop = True
            # A run that is paused goes on from what it saves now.
            control.should_save = control.should_save or args.save_strategy != "no"

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and os.path.isdir(folder):
            phalanx.checkpoint(folder, state.global_step)


def _anywhere(stop: bool) -> bool:
    """What rank 0 has heard, on every rank."""
    import torch.distributed as distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return stop
    heard = [stop]
    distributed.broadcast_object_list(heard, src=0)
    return heard[0]
