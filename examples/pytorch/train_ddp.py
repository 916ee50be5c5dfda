"""Handwritten digits with PyTorch DistributedDataParallel: a script for torchrun, without any import of Phalanx."""

import argparse
import csv

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../digits/digits.csv")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.01)
    args = parser.parse_args()

    # RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from the environment, as under torchrun.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    # CUDA_VISIBLE_DEVICES holds this rank's devices alone, so its own is always the first.
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)

    train, test = load(args.data)
    sampler = DistributedSampler(train, shuffle=True, seed=0)
    loader = DataLoader(train, batch_size=32, sampler=sampler)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for pixels, labels in loader:
            loss = nn.functional.cross_entropy(model(pixels.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()  # gradients are averaged over the ranks here
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch + 1} loss: {loss.item():.4f}", flush=True)

    # Every rank ends with the same weights, or the gradients did not meet.
    checksum = sum(parameter.double().sum().item() for parameter in model.parameters())
    print(f"rank {rank} of {world} weights: {checksum:.12f}", flush=True)
    if rank == 0:
        with torch.no_grad():
            pixels, labels = test.tensors
            accuracy = (model.module(pixels.to(device)).argmax(1).cpu() == labels).float().mean().item()
        print(f"held-out accuracy: {accuracy:.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
