"""Handwritten digits with JAX on several processes, without any import of Phalanx."""

import csv
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH, EPOCHS, LR = 32, 30, 0.5


def load(path, target="label"):
    """Pixels in 0..1 and labels, the last fifth held out."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = np.array([[float(v) for k, v in row.items() if k != target] for row in rows], np.float32) / 16
    labels = np.array([int(row[target]) for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    held_out = len(rows) // 5
    train, test = order[held_out:], order[:held_out]
    return (pixels[train], labels[train]), (pixels[test], labels[test])


def forward(weights, pixels):
    hidden = jax.nn.relu(pixels @ weights["up"] + weights["up_bias"])
    return hidden @ weights["down"] + weights["down_bias"]


def loss(weights, pixels, labels):
    logs = jax.nn.log_softmax(forward(weights, pixels))
    return -jnp.take_along_axis(logs, labels[:, None], axis=1).mean()


@jax.jit
def step(weights, pixels, labels):
    # The batch is spread over processes and the weights are not: the mean over the batch is what makes them communicate.
    value, slope = jax.value_and_grad(loss)(weights, pixels, labels)
    return jax.tree.map(lambda weight, slope: weight - LR * slope, weights, slope), value


def main():
    # The variables that torchrun sets too.
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        jax.distributed.initialize(address, num_processes=world, process_id=rank)
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    spread, everywhere = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())

    (pixels, labels), (test_pixels, test_labels) = load("../digits/digits.csv")
    draw = np.random.default_rng(1)
    weights = {
        "up": draw.normal(0, 0.1, (64, 64)).astype(np.float32),
        "up_bias": np.zeros(64, np.float32),
        "down": draw.normal(0, 0.1, (64, 10)).astype(np.float32),
        "down_bias": np.zeros(10, np.float32),
    }
    weights = {name: jax.make_array_from_process_local_data(everywhere, values) for name, values in weights.items()}
    mine = BATCH // world
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(labels))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            own = order[start + rank * mine : start + (rank + 1) * mine]
            batch = [jax.make_array_from_process_local_data(spread, values[own]) for values in (pixels, labels)]
            weights, value = step(weights, *batch)
        if rank == 0 and epoch % 10 == 9:
            print(f"epoch {epoch + 1} loss: {float(value):.4f}", flush=True)

    weights = {name: np.asarray(values.addressable_data(0)) for name, values in weights.items()}
    # Every rank ends with the same weights, or the gradients did not meet.
    checksum = sum(values.astype(np.float64).sum() for values in weights.values())
    print(f"rank {rank} of {world} weights: {checksum:.12f}", flush=True)
    if rank == 0:
        accuracy = float((np.asarray(forward(weights, test_pixels)).argmax(1) == test_labels).mean())
        print(f"held-out accuracy: {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
