//! Optuna on the same work, where it is installed.

use super::objectives::Family;
use std::process::Command;

const COST: &str = r#"
import sys, time, warnings
warnings.filterwarnings("ignore")
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
name, trials, dims = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
make = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler}[name]
study = optuna.create_study(sampler=make(seed=0))
start = time.perf_counter()
for _ in range(trials):
    t = study.ask()
    study.tell(t, sum(t.suggest_float(f"x{i}", -5, 10) ** 2 for i in range(dims)))
print(1e3 * (time.perf_counter() - start) / trials)
"#;

const QUALITY: &str = r#"
import math, statistics, sys, warnings
warnings.filterwarnings("ignore")
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
name, seeds = sys.argv[1], int(sys.argv[2])
C = [1.0, 1.2, 3.0, 3.2]
A = [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
P = [[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
     [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]]
pi = math.pi
F = {
    "branin": ([(-5, 10), (0, 15)], lambda x: (x[1] - 5.1 / (4 * pi**2) * x[0]**2 + 5 / pi * x[0] - 6)**2 + 10 * (1 - 1 / (8 * pi)) * math.cos(x[0]) + 10),
    "hartmann6": ([(0, 1)] * 6, lambda x: -sum(c * math.exp(-sum(a * (v - p * 1e-4)**2 for a, v, p in zip(r, x, q))) for c, r, q in zip(C, A, P))),
    "rosenbrock10": ([(-5, 10)] * 10, lambda x: sum(100 * (b - a * a)**2 + (1 - a)**2 for a, b in zip(x, x[1:]))),
    "rastrigin5": ([(-5.12, 5.12)] * 5, lambda x: 50 + sum(v * v - 10 * math.cos(2 * pi * v) for v in x)),
    "rastrigin5 off centre": ([(-3.75, 6.49)] * 5, lambda x: 50 + sum(v * v - 10 * math.cos(2 * pi * v) for v in x)),
    "ackley5 off centre": ([(-19.431, 46.105)] * 5, lambda x: -20 * math.exp(-0.2 * math.sqrt(sum(v * v for v in x) / 5)) - math.exp(sum(math.cos(2 * pi * v) for v in x) / 5) + 20 + math.e),
    "ackley5": ([(-32.768, 32.768)] * 5, lambda x: -20 * math.exp(-0.2 * math.sqrt(sum(v * v for v in x) / 5)) - math.exp(sum(math.cos(2 * pi * v) for v in x) / 5) + 20 + math.e),
}
def mixed7(t):
    lr, wd = t.suggest_float("lr", 1e-5, 1, log=True), t.suggest_float("wd", 1e-6, 1e-1, log=True)
    opt, act = t.suggest_categorical("opt", ["sgd", "adam", "rmsprop", "lion"]), t.suggest_categorical("act", ["relu", "gelu", "tanh"])
    layers, width, dropout = t.suggest_int("layers", 1, 8), t.suggest_int("width", 16, 1024, log=True), t.suggest_float("dropout", 0, 0.9)
    best = {"sgd": -1.0, "adam": -3.0, "rmsprop": -3.5, "lion": -4.0}[opt]
    return (0.60 * (math.log10(lr) - best)**2 + 0.05 * (math.log10(wd) + 4)**2 + {"sgd": 0.3, "adam": 0.0, "rmsprop": 0.15, "lion": 0.1}[opt]
            + {"relu": 0.05, "gelu": 0.0, "tanh": 0.2}[act] + 0.04 * (layers - 4)**2 + 0.10 * (math.log2(width) - 8)**2
            + 2.0 * (dropout - (0.1 if layers < 6 else 0.3))**2)
def objective(t):
    if name == "mixed7":
        return mixed7(t)
    box, f = F[name]
    return f([t.suggest_float(f"x{i}", lo, hi) for i, (lo, hi) in enumerate(box)])
at100, at200 = [], []
for seed in range(seeds):
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=200)
    values = [t.value for t in study.trials]
    at100.append(min(values[:100])); at200.append(min(values))
print(statistics.median(at100), statistics.median(at200))
"#;

const STOPPING: &str = r#"
import statistics, sys, warnings, math
warnings.filterwarnings("ignore")
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
family, rule, seeds, M = sys.argv[1], sys.argv[2], int(sys.argv[3]), (1 << 64) - 1
make = {"none": optuna.pruners.NopPruner, "median": lambda: optuna.pruners.MedianPruner(5, 0, 1),
        "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(1, 3, 0), "hyperband": lambda: optuna.pruners.HyperbandPruner(1, 81, 3)}[rule]
def u(k):
    z = (k + 0x9E3779B97F4A7C15) & M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53
key = lambda seed, trial, slot: (seed * 1_000_000_007 + trial * 1_000_003 + slot) & M
def curve(seed, i):
    a, b, s = 0.05 + 0.95 * u(key(seed, i, 0))**1.5, 2.0 + u(key(seed, i, 1)), u(key(seed, i, 2))
    left = (lambda t: (1 + t)**-(0.3 + 1.2 * s)) if family == "curves" else (lambda t: math.exp(-t / (2.0 * 20.0**s)))
    g = lambda t: a + (b - a) * left(t)
    return g, lambda t: g(t) + 0.02 * (2 * u(key(seed, i, 1000 + t)) - 1)
epochs, regret = [], []
for seed in range(seeds):
    study = optuna.create_study(study_name=f"{family}-{seed}", sampler=optuna.samplers.RandomSampler(seed=seed), pruner=make())
    used, best = 0, float("inf")
    for i in range(100):
        t = study.ask(); g, loss = curve(seed, i)
        for e in range(1, 82):
            used += 1; t.report(loss(e), e)
            if t.should_prune():
                study.tell(t, state=optuna.trial.TrialState.PRUNED); break
        else:
            best = min(best, g(81)); study.tell(t, loss(81))
    epochs.append(used); regret.append(best - min(curve(seed, i)[0](81) for i in range(100)))
print(statistics.median(epochs), statistics.median(regret), sum(regret) / len(regret))
"#;

/// Milliseconds of one ask + tell.
pub(crate) fn cost(search: &str, trials: usize, dims: usize) -> Option<f64> {
    numbers(COST, &[search, &trials.to_string(), &dims.to_string()]).map(|[ms]| ms)
}

/// Its TPE's median best values after 100 and 200 trials.
pub(crate) fn quality(function: &str, seeds: u64) -> Option<[f64; 2]> {
    numbers(QUALITY, &[function, &seeds.to_string()])
}

/// Median epochs, median regret, mean regret.
pub(crate) fn stopping(family: Family, rule: &str, seeds: u64) -> Option<[f64; 3]> {
    numbers(STOPPING, &[family.as_str(), rule, &seeds.to_string()])
}

/// What the script prints; `None` where it cannot run or has no such thing.
fn numbers<const N: usize>(script: &str, args: &[&str]) -> Option<[f64; N]> {
    let python = std::env::var("PHALANX_PEER_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output =
        Command::new(python).arg("-c").arg(script).args(args).env("OMP_NUM_THREADS", "1").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let found: Option<Vec<f64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
    found?.try_into().ok()
}
