"""PyTorch beside our trainer: two ranks on one net, with DistributedDataParallel over gloo and without communication.

usage: ddp_training.py mlp|cnn|transformer STEPS. One thread a rank, made-up data. The last line is JSON: steps a second of the
slower rank with DDP (`ddp`) and apart (`apart`).
"""
import json
import os
import socket
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

WARM_UP = 10
BATCHES = 8


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.heads, c // self.heads).transpose(1, 2) for part in self.qkv(x).split(c, dim=2))
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            a = (q @ k.transpose(-2, -1)) / (q.size(-1) ** 0.5)
            y = a.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf")).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, vocabulary=65, context=64, layers=2, width=128, heads=4):
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        return self.norm(self.blocks(x)) @ self.embedding.weight.T


def make(net):
    """The net, its batches of one rank, and its optimizer."""
    if net == "mlp":
        model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
        data = torch.randn(BATCHES, 128, 784), torch.randint(0, 10, (BATCHES, 128))
        return model, data, lambda p: torch.optim.SGD(p, lr=0.01)
    if net == "cnn":
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10))
        data = torch.randn(BATCHES, 128, 1, 28, 28), torch.randint(0, 10, (BATCHES, 128))
        return model, data, lambda p: torch.optim.Adam(p, lr=1e-3)
    data = torch.randint(0, 65, (BATCHES, 16, 64)), torch.randint(0, 65, (BATCHES, 16, 64))
    return Transformer(), data, lambda p: torch.optim.AdamW(p, lr=1e-3)


def work(rank, net, steps, port, answer):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(1)
    found = {}
    for mode in ("apart", "ddp"):
        model, (x, y), optimizer = make(net)
        model = nn.parallel.DistributedDataParallel(model) if mode == "ddp" else model
        optimizer = optimizer(model.parameters())

        def go(n):
            for i in range(n):
                optimizer.zero_grad()
                out = model(x[i % BATCHES])
                F.cross_entropy(out.reshape(-1, out.shape[-1]), y[i % BATCHES].reshape(-1)).backward()
                optimizer.step()
        go(WARM_UP)
        dist.barrier()
        start = time.perf_counter()
        go(steps)
        took = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        found[mode] = steps / took.item()
    if rank == 0:
        answer.put(found)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    net, steps = sys.argv[1], int(sys.argv[2])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    answer = context.SimpleQueue()
    ranks = [context.Process(target=work, args=(rank, net, steps, port, answer)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    found = answer.get()
    for rank in ranks:
        rank.join()
    print(json.dumps(found))
