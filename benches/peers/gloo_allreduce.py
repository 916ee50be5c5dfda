"""torch.distributed over gloo: the time of all_reduce(SUM, float32) on loopback. usage: gloo_allreduce.py WORLD BYTES...

Measured as our own: one process and one thread a rank, the buffer rewritten and barriers passed before each timed call,
the mean over calls and ranks, the median over blocks. Prints one JSON object: bytes -> microseconds.
"""
import json
import os
import socket
import statistics
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

BLOCKS = 31
BLOCK_BYTES = 16 << 20


def measure(rank, world, size):
    data = torch.empty(size // 4)
    pattern = torch.arange(size // 4, dtype=torch.float32) % 256
    calls = max(2, min(100, BLOCK_BYTES // size))
    blocks = []
    for block in range(BLOCKS + 1):
        total = 0.0
        for call in range(calls):
            torch.add(pattern, float(rank + call % 16), out=data)
            dist.barrier()
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(data)
            total += time.perf_counter() - start
        wanted = (pattern + call % 16) * world + world * (world - 1) / 2
        assert torch.equal(data, wanted), "wrong result"
        mean = torch.tensor([total / calls / world], dtype=torch.float64)
        dist.all_reduce(mean)
        if block:
            blocks.append(mean.item())
    return statistics.median(blocks) * 1e6


def rank_main(rank, world, port, sizes, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    result = {size: measure(rank, world, size) for size in sizes}
    if rank == 0:
        out.put(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    world, sizes = int(sys.argv[1]), [int(size) for size in sys.argv[2:]]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    out = context.SimpleQueue()
    ranks = [context.Process(target=rank_main, args=(r, world, port, sizes, out)) for r in range(world)]
    for process in ranks:
        process.start()
    print(out.get(), flush=True)
    for process in ranks:
        process.join()
