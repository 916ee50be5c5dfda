"""Optuna's best values on the functions of the quality bench: the fixture `optuna_quality.jsonl` beside this script.

usage: optuna_quality.py FIXTURE SAMPLER,… SEEDS

A sampler is `tpe` or `gp`; `tpe@4` has four trials in flight, of which the oldest ends next.

With a seed Optuna's samplers always do the same, so a run is made once: those in the fixture are passed over. Every run
is a line, with the versions that made it. The Gaussian process needs torch, and a minute or more a run; the runs in the
fixture had torch 1.13, whose `torch.device` was made a context that does nothing.
"""
import json
import math
import os
import sys
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")
import numpy
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}
TRIALS, MARKS = 200, (100, 200)
C = [1.0, 1.2, 3.0, 3.2]
A = [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
P = [[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
     [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]]
pi = math.pi


def branin(x):
    return (x[1] - 5.1 / (4 * pi**2) * x[0]**2 + 5 / pi * x[0] - 6)**2 + 10 * (1 - 1 / (8 * pi)) * math.cos(x[0]) + 10


def hartmann(x):
    return -sum(c * math.exp(-sum(a * (v - p * 1e-4)**2 for a, v, p in zip(r, x, q))) for c, r, q in zip(C, A, P))


def rosenbrock(x):
    return sum(100 * (b - a * a)**2 + (1 - a)**2 for a, b in zip(x, x[1:]))


def rastrigin(x):
    return 10 * len(x) + sum(v * v - 10 * math.cos(2 * pi * v) for v in x)


def ackley(x):
    far, waves = sum(v * v for v in x) / len(x), sum(math.cos(2 * pi * v) for v in x) / len(x)
    return -20 * math.exp(-0.2 * math.sqrt(far)) - math.exp(waves) + 20 + math.e


BOXES = {
    "branin": ([(-5, 10), (0, 15)], branin),
    "hartmann6": ([(0, 1)] * 6, hartmann),
    "rosenbrock10": ([(-5, 10)] * 10, rosenbrock),
    "rastrigin5": ([(-5.12, 5.12)] * 5, rastrigin),
    "ackley5": ([(-32.768, 32.768)] * 5, ackley),
    "rastrigin5 off centre": ([(-3.75, 6.49)] * 5, rastrigin),
    "ackley5 off centre": ([(-19.431, 46.105)] * 5, ackley),
}


def mixed7(t):
    lr, wd = t.suggest_float("lr", 1e-5, 1, log=True), t.suggest_float("wd", 1e-6, 1e-1, log=True)
    opt = t.suggest_categorical("opt", ["sgd", "adam", "rmsprop", "lion"])
    act = t.suggest_categorical("act", ["relu", "gelu", "tanh"])
    layers, width = t.suggest_int("layers", 1, 8), t.suggest_int("width", 16, 1024, log=True)
    dropout = t.suggest_float("dropout", 0, 0.9)
    best = {"sgd": -1.0, "adam": -3.0, "rmsprop": -3.5, "lion": -4.0}[opt]
    return (0.60 * (math.log10(lr) - best)**2 + 0.05 * (math.log10(wd) + 4)**2
            + {"sgd": 0.3, "adam": 0.0, "rmsprop": 0.15, "lion": 0.1}[opt] + {"relu": 0.05, "gelu": 0.0, "tanh": 0.2}[act]
            + 0.04 * (layers - 4)**2 + 0.10 * (math.log2(width) - 8)**2
            + 2.0 * (dropout - (0.1 if layers < 6 else 0.3))**2)


def objective(name):
    if name == "mixed7":
        return mixed7
    box, f = BOXES[name]
    return lambda t: f([t.suggest_float(f"x{i}", low, high) for i, (low, high) in enumerate(box)])


def best_values(name, sampler, seed):
    """The values in the order in which trials end."""
    kind, _, in_flight = sampler.partition("@")
    study, of = optuna.create_study(sampler=SAMPLERS[kind](seed=seed)), objective(name)
    values, flying = [], []
    for _ in range(TRIALS):
        trial = study.ask()
        flying.append((trial, of(trial)))
        if len(flying) == int(in_flight or 1):
            trial, value = flying.pop(0)
            study.tell(trial, value)
            values.append(value)
    return values + [value for _, value in flying]


def main():
    path, samplers, seeds = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
    done = set()
    if os.path.exists(path):
        with open(path, encoding="utf-8") as lines:
            done = {(run["function"], run["sampler"], run["seed"]) for run in map(json.loads, lines)}
    for sampler in samplers:
        for seed in range(seeds):
            for name in [*BOXES, "mixed7"]:
                if (name, sampler, seed) in done:
                    continue
                start = time.perf_counter()
                values = best_values(name, sampler, seed)
                run = {"function": name, "sampler": sampler, "seed": seed, "best": [min(values[:mark]) for mark in MARKS],
                       "seconds": round(time.perf_counter() - start, 1),
                       "optuna": optuna.__version__, "numpy": numpy.__version__}
                if sampler == "gp":
                    run["torch"] = sys.modules["torch"].__version__
                with open(path, "a", encoding="utf-8") as out:
                    out.write(json.dumps(run) + "\n")


if __name__ == "__main__":
    main()
