"""Handwritten digits with Lightning: a script for torchrun, without any import of Phalanx."""

import csv
import os

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(path, target="label"):
    """Pixels in 0..1 and labels, the last fifth held out."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = torch.tensor([[float(v) for k, v in row.items() if k != target] for row in rows]) / 16
    labels = torch.tensor([int(row[target]) for row in rows])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held_out = len(rows) // 5
    train, test = order[held_out:], order[:held_out]
    return TensorDataset(pixels[train], labels[train]), TensorDataset(pixels[test], labels[test])


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, _):
        pixels, labels = batch
        return nn.functional.cross_entropy(self.net(pixels), labels)

    def validation_step(self, batch, _):
        pixels, labels = batch
        right = (self.net(pixels).argmax(1) == labels).float().mean()
        self.log("accuracy", right, on_epoch=True, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main():
    lightning.seed_everything(0)
    train, test = load("../digits/digits.csv")
    # Lightning reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as under torchrun, and gives each rank its part of a batch.
    trainer = lightning.Trainer(
        accelerator="auto",
        strategy="ddp",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        max_epochs=5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    model = Digits()
    trainer.fit(model, DataLoader(train, batch_size=32, shuffle=True))
    found = trainer.validate(model, DataLoader(test, batch_size=32), verbose=False)
    # Every rank ends with the same weights, or the gradients did not meet.
    checksum = sum(parameter.double().sum().item() for parameter in model.parameters())
    print(f"rank {trainer.global_rank} of {trainer.world_size} weights: {checksum:.12f}", flush=True)
    if trainer.global_rank == 0:
        print(f"held-out accuracy: {found[0]['accuracy']:.4f}", flush=True)


if __name__ == "__main__":
    main()
