"""The callbacks in the real frameworks, against a socket that plays the service. A framework that is not there is skipped."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import unittest
import warnings
from typing import Any, Optional

from phalanx import callbacks
from tests.support import InJob

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def needs(*modules: str) -> Any:
    """Skips a test case where a framework is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return unittest.skipIf(missing, f"{', '.join(missing)} not installed")


class Framework(InJob):
    """A service that wants the run to end at the step ``stop_at``, and keeps what checkpoint folders had in them."""

    stop_at: Optional[int] = None

    def setUp(self) -> None:
        super().setUp()
        self.checkpoints: dict[int, list[str]] = {}
        self.service.mood = self.mood
        warnings.simplefilter("ignore")
        self.set("RANK", None)

    def mood(self, request: dict[str, Any]) -> dict[str, Any]:
        if "checkpoint" in request:
            self.checkpoints[request["checkpoint"]["step"]] = sorted(os.listdir(request["checkpoint"]["path"]))
            return {"ok": True, "stop": False}
        stop = self.stop_at is not None and request["report"]["step"] >= self.stop_at
        return {"ok": True, "stop": stop}

    def curve(self, name: str) -> dict[int, float]:
        """What was reported of a metric, by step."""
        reports = [line["report"] for line in self.service.lines if "report" in line]
        return {report["step"]: report["metrics"][name] for report in reports if name in report["metrics"]}


@needs("xgboost", "numpy")
class XGBoost(Framework):
    def train(self, **more: Any) -> Any:
        import numpy
        import xgboost

        x = numpy.linspace(0, 1, 200).reshape(-1, 1)
        data = xgboost.DMatrix(x, label=numpy.sin(6 * x[:, 0]))
        callback = callbacks.XGBoostCallback(checkpoint_every=4)
        options = {"num_boost_round": 10, "evals": [(data, "train")], "verbose_eval": False, **more}
        return xgboost.train({"nthread": 1}, data, callbacks=[callback], **options)

    def test_every_round_is_reported(self) -> None:
        self.train()
        curve = self.curve("train/rmse")
        self.assertEqual(list(curve), list(range(1, 11)))
        self.assertLess(curve[10], curve[1] / 2)
        self.assertEqual(self.checkpoints, {4: ["model.ubj"], 8: ["model.ubj"]})

    def test_it_ends_when_the_service_wants_it(self) -> None:
        self.stop_at = 3
        booster = self.train()
        self.assertEqual(booster.num_boosted_rounds(), 3)
        self.assertEqual(self.checkpoints, {3: ["model.ubj"]})

    def test_a_restored_run_counts_on(self) -> None:
        first = self.train(num_boost_round=4)
        self.service.lines.clear()
        self.train(num_boost_round=3, xgb_model=first)
        self.assertEqual(list(self.curve("train/rmse")), [5, 6, 7])

    def test_other_ranks_are_silent(self) -> None:
        self.set("RANK", "1")
        self.train()
        self.assertEqual(self.service.lines, [])


@needs("lightgbm", "numpy")
class LightGBM(Framework):
    def train(self) -> Any:
        import lightgbm
        import numpy

        x = numpy.linspace(0, 1, 200).reshape(-1, 1)
        data = lightgbm.Dataset(x, label=numpy.sin(6 * x[:, 0]))
        callback = callbacks.LightGBMCallback(checkpoint_every=4)
        params = {"objective": "regression", "verbosity": -1, "num_threads": 1}
        return lightgbm.train(params, data, 10, valid_sets=[data], valid_names=["train"], callbacks=[callback])

    def test_every_round_is_reported(self) -> None:
        self.train()
        curve = self.curve("train/l2")
        self.assertEqual(list(curve), list(range(1, 11)))
        self.assertLess(curve[10], curve[1])
        self.assertEqual(self.checkpoints, {4: ["model.txt"], 8: ["model.txt"]})

    def test_it_ends_when_the_service_wants_it(self) -> None:
        self.stop_at = 3
        booster = self.train()
        self.assertEqual((booster.current_iteration(), booster.best_iteration), (3, 3))


@needs("keras", "jax")
class Keras(Framework):
    def train(self) -> Any:
        import keras
        import numpy

        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
        model.compile(optimizer="sgd", loss="mse", metrics=["mae"])
        x = numpy.linspace(0, 1, 64).reshape(-1, 1)
        callback = callbacks.KerasCallback(checkpoint_every=2)
        options = {"epochs": 5, "verbose": 0, "validation_split": 0.25, "callbacks": [callback]}
        return model.fit(x, 2 * x, **options)

    def test_every_epoch_is_reported(self) -> None:
        self.train()
        for name in ("loss", "mae", "val_loss", "val_mae"):
            self.assertEqual(list(self.curve(name)), [1, 2, 3, 4, 5])
        self.assertEqual(self.checkpoints, {2: ["model.keras"], 4: ["model.keras"]})

    def test_it_ends_when_the_service_wants_it(self) -> None:
        self.stop_at = 3
        history = self.train()
        self.assertEqual(len(history.epoch), 3)
        self.assertEqual(self.checkpoints[3], ["model.keras"])


@needs("lightning", "torch")
class Lightning(Framework):
    def train(self, ckpt_path: Optional[str] = None, epochs: int = 3) -> Any:
        import lightning.pytorch as pl
        import torch

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(1, 1)

            def training_step(self, batch: Any, _: int) -> Any:
                loss = (self.layer(batch) - 2 * batch).square().mean()
                self.log("loss", loss)
                self.log("mean", loss, on_step=False, on_epoch=True)
                return loss

            def validation_step(self, batch: Any, _: int) -> None:
                self.log("val/loss", (self.layer(batch) - 2 * batch).square().mean())

            def _register_sharded_tensor_state_dict_hooks_if_available(self) -> None:
                """Not used here, and the distribution's PyTorch 1.13 cannot import what it needs on Python 3.11."""

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        data = torch.utils.data.DataLoader(torch.linspace(0, 1, 40).reshape(-1, 1), batch_size=10)
        callback = callbacks.LightningCallback(checkpoint_every=2)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                default_root_dir=folder,
                max_epochs=epochs,
                log_every_n_steps=2,
                logger=False,
                accelerator="cpu",
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[callback],
            )
            trainer.fit(Module(), data, data, ckpt_path=ckpt_path or callback.restore())
        return trainer

    def test_what_is_logged_is_reported_where_it_is_new(self) -> None:
        self.train()
        # 4 steps an epoch.
        self.assertEqual(list(self.curve("loss")), [2, 4, 6, 8, 10, 12])
        self.assertEqual(list(self.curve("val/loss")), [4, 8, 12])
        self.assertEqual(list(self.curve("mean")), [4, 8, 12])
        self.assertEqual(self.checkpoints, {8: ["lightning.ckpt"]})

    def test_it_ends_when_the_service_wants_it(self) -> None:
        self.stop_at = 6
        trainer = self.train()
        self.assertEqual(trainer.global_step, 6)
        self.assertEqual(self.checkpoints[6], ["lightning.ckpt"])

    def test_it_goes_on_from_a_checkpoint(self) -> None:
        import shutil

        kept = os.path.join(self.folder, "kept")
        mood = self.service.mood

        def keep(request: dict[str, Any]) -> Any:
            if "checkpoint" in request:
                shutil.copytree(request["checkpoint"]["path"], kept)
            return mood(request)

        self.service.mood = keep
        self.train(epochs=2)
        self.service.lines.clear()
        self.set("PHALANX_CHECKPOINT", kept)
        self.train(epochs=3)
        self.assertEqual(list(self.curve("loss")), [10, 12])


@needs("transformers", "accelerate", "torch")
class Transformers(Framework):
    def train(self, folder: str, **more: Any) -> Any:
        import torch
        import transformers

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(1, 1)

            def forward(self, x: Any) -> Any:
                return {"loss": (self.layer(x) - 2 * x).square().mean()}

        args = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=8,
            logging_steps=2,
            save_steps=4,
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        data = [{"x": torch.tensor([index / 32])} for index in range(32)]
        trainer = transformers.Trainer(
            Model(), args, train_dataset=data, callbacks=[callbacks.TransformersCallback()], **more
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return trainer

    def test_what_is_logged_and_saved_is_handed_over(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.train(folder)
        self.assertEqual(list(self.curve("loss")), [2, 4, 6, 8])
        self.assertEqual(list(self.curve("train_loss")), [8])
        self.assertEqual(list(self.checkpoints), [4, 8])
        self.assertIn("trainer_state.json", self.checkpoints[4])

    def test_it_ends_when_the_service_wants_it(self) -> None:
        self.stop_at = 2
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.train(folder)
        self.assertEqual(trainer.state.global_step, 2)
        self.assertEqual(list(self.checkpoints), [2])
