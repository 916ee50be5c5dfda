//! What a proposal costs, how good proposals are, and what early stopping saves, beside Optuna where it is installed.
//!
//! `cargo bench --bench tuning [-- cost|quality|stopping] [--seeds N] [--peer]`; `--peer` runs Optuna too, by the
//! Python of `PHALANX_PEER_PYTHON` (default `python3`). The objectives are those of the peers' own benchmark; their
//! check values are asserted first.

#[path = "tuning/objectives.rs"]
mod objectives;
#[path = "tuning/peer.rs"]
mod peer;

use objectives::{Curve, FUNCTIONS, Family, Function, OFF_CENTRE};
use phalanx_core::spec::SweepSpec;
use phalanx_tuner::{Ask, Decision, Outcome, Study};
use std::time::Instant;

const COST_TRIALS: usize = 1000;
/// For the Gaussian process, whose cost grows with the trials.
const COST_TRIALS_GP: usize = 100;
const COST_DIMS: usize = 10;
const COST_REPEATS: usize = 5;
const CURVES: u64 = 100;

fn main() {
    objectives::check();
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let wanted = |part: &str| {
        !args.iter().any(|arg| ["cost", "quality", "stopping"].contains(&arg.as_str()))
            || args.iter().any(|arg| arg == part)
    };
    let seeds = args
        .iter()
        .position(|arg| arg == "--seeds")
        .and_then(|at| args.get(at + 1)?.parse().ok())
        .unwrap_or(20);
    let peer = args.iter().any(|arg| arg == "--peer");
    if wanted("cost") {
        cost(peer);
    }
    if wanted("quality") {
        quality(seeds, peer);
    }
    if wanted("stopping") {
        stopping(seeds.min(20), peer);
    }
}

fn study(text: &str) -> Study {
    let text = format!("version = 1\n[sweep]\nmetric = \"loss\"\n{text}");
    match SweepSpec::parse(&text, "bench") {
        Ok(spec) => Study::new(&spec),
        Err(problems) => panic!("{}", problems.render("bench.toml", &text)),
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Ask + 10 parameters + tell, mean over 1,000 trials, or over 100 where a Gaussian process is asked.
fn cost(with_peer: bool) {
    println!(
        "cost of ask + tell, {COST_DIMS} dimensions, mean over {COST_TRIALS} trials ({COST_TRIALS_GP} of gp), {COST_REPEATS} runs"
    );
    for search in ["random", "sobol", "tpe", "gp"] {
        let trials = if search == "gp" { COST_TRIALS_GP } else { COST_TRIALS };
        let mut means: Vec<f64> =
            (0..COST_REPEATS).map(|seed| 1e3 * run_cost(search, seed, trials) / trials as f64).collect();
        let ours = median(&mut means);
        print!("  {search:8} {ours:.4} ms (min {:.4}, max {:.4})", means[0], means[COST_REPEATS - 1]);
        let theirs = with_peer.then(|| peer::cost(search, trials, COST_DIMS)).flatten();
        match theirs {
            Some(theirs) => println!("   optuna {theirs:.3} ms   {:.0}x", theirs / ours),
            None => println!(),
        }
    }
}

fn run_cost(search: &str, seed: usize, trials: usize) -> f64 {
    let params: String =
        (0..COST_DIMS).map(|i| format!("x{i} = {{ kind = \"float\", low = -5, high = 10 }}\n")).collect();
    let mut study = study(&format!("seed = {seed}\n[search]\nkind = \"{search}\"\n[params]\n{params}"));
    let start = Instant::now();
    for _ in 0..trials {
        let Ask::Trial(trial) = study.ask() else { unreachable!("no bound was given") };
        let value = trial.params.values().filter_map(|value| value.as_f64()).map(|x| x * x).sum();
        study.tell(trial.number, Outcome::Values(vec![value])).expect("an open trial");
        study.take_records();
    }
    start.elapsed().as_secs_f64()
}

/// Median of the best value after 100 and 200 trials, one at a time and with 4 in flight.
fn quality(seeds: u64, with_peer: bool) {
    println!("median best value over {seeds} seeds after 100 / 200 trials, minimum at the right");
    for function in FUNCTIONS.iter().chain(&OFF_CENTRE) {
        println!("  {} (minimum {})", function.name, function.minimum);
        for (search, in_flight) in [("random", 1), ("tpe", 1), ("tpe", 4), ("auto", 1), ("auto", 4)] {
            let runs: Vec<[f64; 2]> =
                (0..seeds).map(|seed| run_quality(function, search, seed, in_flight)).collect();
            let at = |index: usize| median(&mut runs.iter().map(|run| run[index]).collect::<Vec<f64>>());
            println!("    {search:8} {in_flight} in flight  {:.6} / {:.6}", at(0), at(1));
        }
        if let Some([best100, best200]) = with_peer.then(|| peer::quality(function.name, seeds)).flatten() {
            println!("    optuna tpe            {best100:.6} / {best200:.6}");
        }
    }
}

fn run_quality(function: &Function, search: &str, seed: u64, in_flight: usize) -> [f64; 2] {
    let mut study =
        study(&format!("seed = {seed}\n[search]\nkind = \"{search}\"\n[params]\n{}", function.params));
    let (mut best, mut at) = (f64::INFINITY, [f64::NAN; 2]);
    let mut open = std::collections::VecDeque::new();
    for told in 1..=200 {
        while open.len() < in_flight {
            let Ask::Trial(trial) = study.ask() else { unreachable!("no bound was given") };
            open.push_back(trial);
        }
        let Some(trial) = open.pop_front() else { unreachable!("at least one is open") };
        let value = (function.value)(&trial.params);
        best = best.min(value);
        study.tell(trial.number, Outcome::Values(vec![value])).expect("an open trial");
        match told {
            100 => at[0] = best,
            200 => at[1] = best,
            _ => {}
        }
    }
    at
}

/// Epochs used against regret on families of learning curves.
fn stopping(seeds: u64, with_peer: bool) {
    println!(
        "early stopping, {CURVES} trials of {} epochs, {seeds} seeds: median epochs, median and mean regret",
        Curve::EPOCHS
    );
    for family in [Family::Curves, Family::Late] {
        for rule in ["none", "median", "asha", "hyperband", "promote"] {
            let runs: Vec<(f64, f64)> = (0..seeds).map(|seed| run_stopping(family, rule, seed)).collect();
            let mut epochs: Vec<f64> = runs.iter().map(|run| run.0).collect();
            let mut regrets: Vec<f64> = runs.iter().map(|run| run.1).collect();
            let mean = regrets.iter().sum::<f64>() / regrets.len() as f64;
            let (epochs, regret) = (median(&mut epochs), median(&mut regrets));
            print!("  {family:?} {rule:10} {epochs:6.0} epochs, regret {regret:.5}, mean {mean:.5}");
            match with_peer.then(|| peer::stopping(family, rule, seeds)).flatten() {
                Some([epochs, regret, mean]) => println!("   optuna {epochs:6.0}, {regret:.5}, {mean:.5}"),
                None => println!(),
            }
        }
    }
}

fn run_stopping(family: Family, rule: &str, seed: u64) -> (f64, f64) {
    let lines = match rule {
        "none" | "median" => format!("kind = \"{rule}\""),
        "promote" => "kind = \"asha\"\nmode = \"promote\"\nmax = 81".to_owned(),
        _ => format!("kind = \"{rule}\"\nmode = \"stop\"\nmax = 81"),
    };
    let mut study = study(&format!(
        "seed = {seed}\ntrials = {CURVES}\n[search]\nkind = \"random\"\n[stopping]\n{lines}\n"
    ));
    let curves: Vec<Curve> = (0..CURVES).map(|trial| Curve::new(family, seed, trial)).collect();
    let (mut epochs, mut best) = (0_u64, f64::INFINITY);
    while let Ask::Trial(trial) = study.ask() {
        let curve = &curves[trial.number as usize];
        let done = study.trials()[trial.number as usize].last_report().map_or(0, |(step, _)| step);
        let mut decision = Decision::Continue;
        for epoch in done + 1..=Curve::EPOCHS {
            epochs += 1;
            decision = study.report(trial.number, epoch, curve.loss(epoch)).expect("an open trial");
            if decision != Decision::Continue {
                break;
            }
        }
        if decision == Decision::Continue {
            best = best.min(curve.clean(Curve::EPOCHS));
        }
        if decision != Decision::Pause {
            study.tell(trial.number, Outcome::LastReport).expect("an open trial");
        }
    }
    let least = curves.iter().map(|curve| curve.clean(Curve::EPOCHS)).fold(f64::INFINITY, f64::min);
    (epochs as f64, best - least)
}
