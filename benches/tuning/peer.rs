//! Optuna on the same work, where it is installed.

use super::objectives::Family;
use std::process::Command;

const COST: &str = r#"
import importlib, sys, time, warnings
warnings.filterwarnings("ignore")
library, name, trials, dims = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
optuna = importlib.import_module(library)
if library == "optuna":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
make = getattr(optuna.samplers, {"random": "RandomSampler", "tpe": "TPESampler", "motpe": "TPESampler", "gp": "GPSampler",
                                 "cmaes": "CmaEsSampler", "nsga2": "NSGAIISampler"}[name])
several = name in ("motpe", "nsga2")
study = optuna.create_study(sampler=make(seed=0), directions=["minimize"] * (2 if several else 1))
start = time.perf_counter()
for _ in range(trials):
    t = study.ask()
    x = [t.suggest_float(f"x{i}", -5, 10) for i in range(dims)]
    values = [sum((v - c) ** 2 for v in x) for c in ((0, 2) if several else (0,))]
    study.tell(t if library == "optuna" else t.number, values)
print(1e3 * (time.perf_counter() - start) / trials)
"#;

const FRONT: &str = r#"
import math, sys, warnings
warnings.filterwarnings("ignore")
import numpy, optuna
from optuna._hypervolume.wfg import compute_hypervolume
optuna.logging.set_verbosity(optuna.logging.ERROR)
name, seeds = sys.argv[1], int(sys.argv[2])
make = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}[sys.argv[3]]
dims, best = {"zdt1": (6, 0), "zdt1 off the bounds": (6, 0.3), "zdt1 in 12 dimensions": (12, 0)}.get(name, (0, 0))
reference = numpy.array([1.1, 1.1] if dims else [3.0, 16.0])
def zdt1(t):
    x = [t.suggest_float(f"x{i:02}", 0, 1) for i in range(dims)]
    g = 1 + 9 * sum(abs(v - best) for v in x[1:]) / (dims - 1)
    return x[0], g * (1 - math.sqrt(x[0] / g))
def mixed7(t):
    lr, wd = t.suggest_float("lr", 1e-5, 1, log=True), t.suggest_float("wd", 1e-6, 1e-1, log=True)
    opt, act = t.suggest_categorical("opt", ["sgd", "adam", "rmsprop", "lion"]), t.suggest_categorical("act", ["relu", "gelu", "tanh"])
    layers, width, dropout = t.suggest_int("layers", 1, 8), t.suggest_int("width", 16, 1024, log=True), t.suggest_float("dropout", 0, 0.9)
    near = {"sgd": -1.0, "adam": -3.0, "rmsprop": -3.5, "lion": -4.0}[opt]
    return (0.60 * (math.log10(lr) - near)**2 + 0.05 * (math.log10(wd) + 4)**2 + {"sgd": 0.3, "adam": 0.0, "rmsprop": 0.15, "lion": 0.1}[opt]
            + {"relu": 0.05, "gelu": 0.0, "tanh": 0.2}[act] + 0.04 * (layers - 4)**2 + 0.10 * (math.log2(width) - 8)**2
            + 2.0 * (dropout - (0.1 if layers < 6 else 0.3))**2), math.log2(width) + 0.75 * layers
for seed in range(seeds):
    study = optuna.create_study(sampler=make(seed=seed), directions=["minimize"] * 2)
    study.optimize(zdt1 if dims else mixed7, n_trials=400)
    values = numpy.array([t.values for t in study.trials])
    for n in (100, 200, 400):
        inside = values[:n][(values[:n] < reference).all(axis=1)]
        print(compute_hypervolume(inside, reference) if len(inside) else 0.0)
"#;

const STORED: &str = r#"
import sys, tempfile, time, warnings
warnings.filterwarnings("ignore")
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
name, trials = sys.argv[1], 200
make = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler, "cmaes": optuna.samplers.CmaEsSampler}[name]
with tempfile.TemporaryDirectory() as folder:
    study = optuna.create_study(sampler=make(seed=0), storage=f"sqlite:///{folder}/study.db")
    start = time.perf_counter()
    for i in range(trials):
        t = study.ask(); t.suggest_float("a", 0, 1); t.suggest_float("b", 0, 1); t.report(1 / (i + 1), 1); study.tell(t, 1 / (i + 1))
    print(trials / (time.perf_counter() - start))
"#;

/// Learning curves, and one search over them that stops after so many trials or epochs.
const CURVES: &str = r#"
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
def search(seed, trials, budgets):
    study = optuna.create_study(study_name=f"{family}-{seed}", sampler=optuna.samplers.RandomSampler(seed=seed), pruner=make())
    used, best, marks = 0, float("inf"), {}
    for i in range(trials):
        if budgets and used >= budgets[-1]:
            break
        t = study.ask(); g, loss = curve(seed, i)
        for e in range(1, 82):
            if used in budgets:
                marks[used] = min(best, 1.0)
            used += 1; t.report(loss(e), e)
            if t.should_prune():
                study.tell(t, state=optuna.trial.TrialState.PRUNED); break
        else:
            best = min(best, g(81)); study.tell(t, loss(81))
    return used, best, [marks.get(b, min(best, 1.0)) for b in budgets]
"#;

const STOPPING: &str = r#"
epochs, regret = [], []
for seed in range(seeds):
    used, best, _ = search(seed, 100, [])
    epochs.append(used); regret.append(best - min(curve(seed, i)[0](81) for i in range(100)))
print(statistics.median(epochs), statistics.median(regret), sum(regret) / len(regret))
"#;

const EQUAL_EPOCHS: &str = r#"
budgets = [int(word) for word in sys.argv[4].split(",")]
runs = [search(seed, 2000, budgets)[2] for seed in range(seeds)]
print(*(sum(run[at] for run in runs) / len(runs) for at in range(len(budgets))))
"#;

/// Milliseconds of one ask + tell, by a library that has Optuna's interface.
pub(crate) fn cost(library: &str, search: &str, trials: usize, dims: usize) -> Option<f64> {
    numbers(COST, &[library, search, &trials.to_string(), &dims.to_string()])?.first().copied()
}

/// A sampler's hypervolumes after 100, 200 and 400 trials, by seed.
pub(crate) fn front(problem: &str, sampler: &str, seeds: u64) -> Option<Vec<[f64; 3]>> {
    rows(&numbers(FRONT, &[problem, &seeds.to_string(), sampler])?)
}

/// Median epochs, median regret, mean regret.
pub(crate) fn stopping(family: Family, rule: &str, seeds: u64) -> Option<[f64; 3]> {
    let script = format!("{CURVES}{STOPPING}");
    numbers(&script, &[family.as_str(), rule, &seeds.to_string()])?.try_into().ok()
}

/// The mean of the best losses once each budget of epochs was spent.
pub(crate) fn equal_epochs(family: Family, rule: &str, seeds: u64, budgets: &[u64]) -> Option<Vec<f64>> {
    let budgets: Vec<String> = budgets.iter().map(u64::to_string).collect();
    let script = format!("{CURVES}{EQUAL_EPOCHS}");
    numbers(&script, &[family.as_str(), rule, &seeds.to_string(), &budgets.join(",")])
}

/// Trials a second with its storage in SQLite.
pub(crate) fn stored(search: &str) -> Option<f64> {
    numbers(STORED, &[search])?.first().copied()
}

fn rows<const N: usize>(numbers: &[f64]) -> Option<Vec<[f64; N]>> {
    numbers.chunks(N).map(|row| row.try_into().ok()).collect()
}

/// What a script prints; `None` where it cannot run or has no such thing.
fn numbers(script: &str, args: &[&str]) -> Option<Vec<f64>> {
    let python = std::env::var("PHALANX_PEER_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output =
        Command::new(python).arg("-c").arg(script).args(args).env("OMP_NUM_THREADS", "1").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let found: Option<Vec<f64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
    found.filter(|numbers| !numbers.is_empty())
}
