"""A small data-parallel training on GPUs for ci/gpu.sh, under the torchrun contract. usage: gpu_train.py train|die

The loss must fall to a tenth. With `die`, rank 1 kills itself in the middle of the first attempt.
"""
import os
import signal
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

STEPS = 200
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.cuda.set_device(0)  # a rank sees its own device alone
dist.init_process_group("nccl")
torch.manual_seed(7)
net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1)).cuda()
net = DistributedDataParallel(net, device_ids=[0])
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
truth = torch.randn(64, 1, device="cuda")
torch.manual_seed(100 + rank)
first = last = None
for step in range(STEPS):
    if sys.argv[1] == "die" and rank == 1 and step == STEPS // 2 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    x = torch.randn(256, 64, device="cuda")
    loss = torch.nn.functional.mse_loss(net(x), x @ truth)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    last = loss.item()
    first = first or last
print(f"rank {rank} of {world} on {torch.cuda.get_device_name(0)}: loss {first:.3f} to {last:.3f} in {STEPS} steps")
dist.destroy_process_group()
sys.exit(0 if last < first / 10 else 1)
